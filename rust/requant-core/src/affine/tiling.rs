//! How the scales lie over a row-major array.

use std::ops::Range;

use crate::{Error, Granularity, Result};

/// An array seen as `[outer, axis, inner]`, with the rule that says which slice (scale) an element belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    pub(super) outer: usize,
    pub(super) axis: usize,
    pub(super) inner: usize,
    pub(super) rule: Rule,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Rule {
    /// All elements are one slice.
    Whole,
    /// `[o, a, i]` belongs to slice `a`.
    Channels,
    /// `[o, a, i]` belongs to slice `[o, a / size, i]`.
    Blocks { size: usize },
}

impl Tiling {
    pub(super) fn new(shape: &[usize], granularity: Granularity) -> Result<Self> {
        let axes = |axis: usize, rule| match shape.get(axis) {
            None => Err(Error::Axis {
                axis,
                shape: shape.to_vec(),
            }),
            Some(&length) => Ok(Self {
                outer: product(&shape[..axis]),
                axis: length,
                inner: product(&shape[axis + 1..]),
                rule,
            }),
        };
        match granularity {
            Granularity::PerTensor => Ok(Self {
                outer: 1,
                axis: 1,
                inner: product(shape),
                rule: Rule::Whole,
            }),
            Granularity::PerChannel { axis } => axes(axis, Rule::Channels),
            Granularity::PerBlock { block_size: 0, .. } => Err(Error::BlockSize),
            Granularity::PerBlock { axis, block_size } => axes(axis, Rule::Blocks { size: block_size }),
            Granularity::PerToken => match shape.split_last() {
                None => Err(Error::Axis {
                    axis: 0,
                    shape: Vec::new(),
                }),
                Some((&row, rows)) => Ok(Self {
                    outer: 1,
                    axis: product(rows),
                    inner: row,
                    rule: Rule::Channels,
                }),
            },
        }
    }

    pub(super) fn elements(&self) -> usize {
        product(&[self.outer, self.axis, self.inner])
    }

    pub(super) fn slices(&self) -> usize {
        match self.rule {
            Rule::Whole => 1,
            Rule::Channels => self.axis,
            Rule::Blocks { size } => product(&[self.outer, self.axis.div_ceil(size), self.inner]),
        }
    }

    /// Calls `f(run, slices)` for contiguous runs of elements that together cover the array in order. `slices` is
    /// either one slice, which the whole run belongs to, or as many as the run has elements, one for each.
    #[inline(always)]
    pub(super) fn for_each_run(&self, mut f: impl FnMut(Range<usize>, Range<usize>)) {
        let Self {
            outer,
            axis,
            inner,
            rule,
        } = *self;
        if self.elements() == 0 {
            return;
        }
        match rule {
            Rule::Whole => f(0..inner, 0..1),
            Rule::Channels if inner == 1 => (0..outer).for_each(|o| f(span(o, axis), 0..axis)),
            Rule::Channels => (0..outer * axis).for_each(|row| f(span(row, inner), span(row % axis, 1))),
            Rule::Blocks { size } if inner == 1 => {
                let blocks = axis.div_ceil(size);
                for slice in 0..outer * blocks {
                    let (o, b) = (slice / blocks, slice % blocks);
                    f(
                        o * axis + b * size..o * axis + axis.min((b + 1).saturating_mul(size)),
                        span(slice, 1),
                    );
                }
            }
            Rule::Blocks { size } => {
                let blocks = axis.div_ceil(size);
                for row in 0..outer * axis {
                    let (o, a) = (row / axis, row % axis);
                    f(span(row, inner), span(o * blocks + a / size, inner));
                }
            }
        }
    }
}

/// The `index`-th range of `length`.
fn span(index: usize, length: usize) -> Range<usize> {
    index * length..(index + 1) * length
}

/// Saturating, so that an impossible shape fails the length check instead of wrapping into it.
fn product(lengths: &[usize]) -> usize {
    lengths
        .iter()
        .fold(1, |product, &length| product.saturating_mul(length))
}
