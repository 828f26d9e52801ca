//! The smallest and largest value of each slice of an array.

use std::array;

use super::{check_length, tiling::Tiling};
use crate::{Error, Granularity, Range, Result};

/// One range for each slice of `x`, in the order of the scales; an empty slice has the range `[0, 0]`.
///
/// # Errors
/// An axis outside the shape, a block size of 0, a length other than the shape's, a NaN or infinity (its index is told).
pub fn slice_ranges(x: &[f32], shape: &[usize], granularity: Granularity) -> Result<Vec<Range>> {
    let tiling = Tiling::new(shape, granularity)?;
    check_length("input", tiling.elements(), x.len())?;
    check_finite(x, shape)?;
    let unseen = Range {
        lo: f32::INFINITY,
        hi: f32::NEG_INFINITY,
    };
    let mut ranges = vec![
        if x.is_empty() {
            Range { lo: 0.0, hi: 0.0 }
        } else {
            unseen
        };
        tiling.slices()
    ];
    tiling.for_each_run(|run, slices| match &mut ranges[slices] {
        [range] => widen(range, extrema(&x[run])),
        ranges => {
            for (range, &x) in ranges.iter_mut().zip(&x[run]) {
                widen(range, Range { lo: x, hi: x });
            }
        }
    });
    Ok(ranges)
}

fn widen(range: &mut Range, seen: Range) {
    *range = Range {
        lo: range.lo.min(seen.lo),
        hi: range.hi.max(seen.hi),
    };
}

/// Lanes break a chain of operations that the compiler may not reorder by itself.
const LANES: usize = 16;

#[inline(never)]
fn extrema(x: &[f32]) -> Range {
    let (mut lo, mut hi) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        lo = array::from_fn(|lane| lo[lane].min(chunk[lane]));
        hi = array::from_fn(|lane| hi[lane].max(chunk[lane]));
    }
    Range {
        lo: lo.iter().chain(rest).copied().fold(f32::INFINITY, f32::min),
        hi: hi.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max),
    }
}

fn check_finite(x: &[f32], shape: &[usize]) -> Result<()> {
    if all_finite(x) {
        return Ok(());
    }
    let found = x.iter().enumerate().find(|(_, value)| !value.is_finite());
    found.map_or(Ok(()), |(at, &value)| {
        Err(Error::NonFinite {
            value,
            index: unravel(at, shape),
        })
    })
}

fn all_finite(x: &[f32]) -> bool {
    // 0 * x is 0 or NaN, and NaN stays.
    let mut sums = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        sums = array::from_fn(|lane| sums[lane] + 0.0 * chunk[lane]);
    }
    sums.iter().chain(rest).all(|value| value.is_finite())
}

/// The index of the `flat`-th element of a row-major array.
fn unravel(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&length| {
            let i = flat % length;
            flat /= length;
            i
        })
        .collect();
    index.reverse();
    index
}
