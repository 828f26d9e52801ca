//! What cells lose at least, without a logarithm for each.
//!
//! Let `F(i, j)` be what a cell of the whole bins `i..j` loses. While an edge of a cell moves through a bin, the cell's mass and bins change
//! linearly, and `M ln(M / s)` is convex in the two. So what is lost is concave in each edge, and at least what lies between the corners:
//!
//! ```text
//! lost(i + x, j + y) >= (1 - y) [(1 - x) F(i, j) + x F(i + 1, j)]  +  y [(1 - x) F(i, j + 1) + x F(i + 1, j + 1)]
//! ```
//!
//! The difference is of second order: where counts scatter by chance it is about 1 / s^2 of what is lost. All cells of a step are `width` bins
//! wide or one more, where `width` is its whole part; so the steps between two whole numbers share a table of corners. Cells of many bins are
//! few, as those of 4-bit types: to compute them takes less than their tables would.
//!
//! Steps are rounded to [`GRID`], on which all edges are exact. That moves an edge by 5e-10 bins at most, and changes what is lost by less
//! than that part of the bin's values, times a logarithm.

use crate::kernels::{Corners, Kernels, Tables, Tail};

/// No tables are made of wider cells; those of 8-bit types have at most 33 bins.
const WIDEST: usize = 33;

/// So many steps fit a bin, for 4,096 bins and an edge.
const GRID: f64 = (1u64 << 39) as f64;

pub(super) struct Losses {
    /// Mass, bins and `n ln(n)` of each bin and all beyond it, and zeros for the widest cell.
    sums: [Vec<f64>; 3],
    /// `F(i, i + width)` of the widths in use, for all `i` up to two beyond the last bin.
    runs: [Vec<f32>; WIDEST + 3],
    /// Where the corners for a width begin, if a step has asked for them.
    starts: [Option<usize>; WIDEST + 2],
    /// Of each bin, and of all beyond.
    corners: Vec<Corners>,
    /// Entries for each width.
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
            starts: [None; WIDEST + 2],
            corners: Vec::new(),
            len: tails.len(),
        }
    }

    /// What each cell from that of level `first` on loses at least, but for rounding: 0 where there is no table. `step` is at least one bin.
    pub(super) fn of(&mut self, step: f64, first: usize, out: &mut [f32], kernels: &dyn Kernels) {
        let step = on_grid(step);
        match self.tables(step, kernels) {
            Some(tables) => kernels.interpolate(&tables, step, first, out),
            None => out.fill(0.0),
        }
    }

    /// What the cells of the first levels lose at least, but for rounding, or of so many of them that it is more than `limit`.
    pub(super) fn add_up(&mut self, step: f64, count: usize, limit: f32, kernels: &dyn Kernels) -> f32 {
        let step = on_grid(step);
        let tables = self.tables(step, kernels);
        tables.map_or(0.0, |tables| kernels.add_up(&tables, step, count, limit))
    }

    fn tables(&mut self, step: f64, kernels: &dyn Kernels) -> Option<Tables<'_>> {
        let width = whole(step);
        if width > WIDEST {
            return None;
        }
        let [narrow, wide] = [width, width + 1].map(|width| self.start(width, kernels));
        Some(Tables {
            corners: &self.corners,
            wide,
            narrow,
            bins: self.len,
        })
    }

    /// Where the corners for a width begin.
    fn start(&mut self, width: usize, kernels: &dyn Kernels) -> usize {
        self.starts[width].unwrap_or_else(|| self.extend(width, kernels))
    }

    #[cold]
    fn extend(&mut self, width: usize, kernels: &dyn Kernels) -> usize {
        let (len, start) = (self.len, self.corners.len());
        for width in width - 1..=width + 1 {
            let runs = &mut self.runs[width];
            if runs.is_empty() {
                runs.resize(len + 1, 0.0);
                kernels.lose(self.sums.each_ref().map(Vec::as_slice), width, runs);
            }
        }
        let [shorter, same, longer] = [width - 1, width, width + 1].map(|width| &self.runs[width][..=len]);
        let corners = (0..len).map(|i| Corners([same[i], shorter[i + 1], longer[i], same[i + 1]]));
        self.corners.extend(corners);
        self.starts[width] = Some(start);
        start
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "at most 2^51"
)]
fn on_grid(step: f64) -> f64 {
    (step * GRID) as i64 as f64 / GRID
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of bins"
)]
fn whole(step: f64) -> usize {
    step as usize
}
