//! What cells lose at least, without a logarithm for each.
//!
//! Let `F(i, j)` be what a cell of the whole bins `i..j` loses. While an edge of a cell moves through a bin, the cell's
//! mass and bins change linearly, and `M ln(M / s)` is convex in the two. So what is lost is concave in each edge, and
//! at least what lies between the corners:
//!
//! ```text
//! lost(i + x, j + y) >= (1 - y) [(1 - x) F(i, j) + x F(i + 1, j)]  +  y [(1 - x) F(i, j + 1) + x F(i + 1, j + 1)]
//! ```
//!
//! The difference is of second order: where counts scatter by chance it is about 1 / s^2 of what is lost. All cells of
//! a step are `width` bins wide or one more, where `width` is its whole part; so the steps between two whole numbers
//! share tables of `F`. Cells of many bins are few, as those of 4-bit types: to compute them takes less than their
//! tables would.
//!
//! An edge of neighbouring steps moves by a few bins, so that what it needs of a table lies in a vector or two: sixteen
//! steps are looked at together, level by level.
//!
//! Steps are rounded to [`GRID`], on which all edges are exact, and the parts `x` and `y` to f32. That moves an edge by
//! 3.1e-8 bins at most, and what is lost by less than 14 times that part of all values: a corner loses at most `ln(35)`
//! for each of its values, which are those of two cells at most, and an edge is one of two.

use crate::kernels::{Kernels, STEPS, Tail, WINDOW};

/// No tables are made of wider cells; those of 8-bit types have at most 33 bins.
const WIDEST: usize = 33;

/// So many steps fit a bin, for 4,096 bins and an edge.
const GRID: f64 = (1u64 << 39) as f64;

pub(super) struct Losses {
    /// Mass, bins and `n ln(n)` of each bin and all beyond it, and zeros for the widest cell.
    sums: [Vec<f64>; 3],
    /// `F(i, i + width)` of the widths in use, of each bin and all beyond, and zeros.
    runs: [Vec<f32>; WIDEST + 3],
    /// Entries without the zeros.
    len: usize,
}

impl Losses {
    /// `tails` and `n_log_n` have an entry for each bin and a zero.
    pub(super) fn new(tails: &[Tail], n_log_n: &[f64]) -> Self {
        let len = tails.len() + WIDEST + 3;
        let padded = |sums: &mut dyn Iterator<Item = f64>| {
            let mut padded = Vec::with_capacity(len);
            padded.extend(sums);
            padded.resize(len, 0.0);
            padded
        };
        Self {
            sums: [
                padded(&mut tails.iter().map(|tail| tail.mass)),
                padded(&mut tails.iter().map(|tail| tail.bins)),
                padded(&mut n_log_n.iter().copied()),
            ],
            runs: [const { Vec::new() }; WIDEST + 3],
            len: tails.len(),
        }
    }

    /// Values of each bin and all beyond it, and zeros.
    pub(super) fn masses(&self) -> &[f64] {
        &self.sums[0]
    }

    /// See [`Kernels::add_up`]: what each cell loses at least, but for rounding, and 0 where there is no table. Steps
    /// are at least one bin.
    pub(super) fn add_up(
        &mut self,
        steps: &[f64; STEPS],
        first: usize,
        from: &[f32; STEPS],
        sums: &mut [[f32; STEPS]],
        kernels: &dyn Kernels,
    ) {
        let width = whole(steps[0]);
        if width > WIDEST {
            sums.fill(*from);
            return;
        }
        let runs = &mut self.runs[width - 1..][..4];
        for (runs, width) in runs.iter_mut().zip(width - 1..) {
            if runs.is_empty() {
                runs.resize(self.len + WINDOW, 0.0);
                kernels.lose(self.sums.each_ref().map(Vec::as_slice), width, &mut runs[..self.len]);
            }
        }
        let runs = [&runs[0][..], &runs[1], &runs[2], &runs[3]];
        kernels.add_up(runs, steps, first, from, sums);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "at most 2^51"
)]
pub(super) fn on_grid(step: f64) -> f64 {
    (step * GRID) as i64 as f64 / GRID
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of bins"
)]
pub(super) fn whole(step: f64) -> usize {
    step as usize
}
