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

use crate::kernels::{Corners, Kernels, Tail};

/// No tables are made of wider cells; those of 8-bit types have at most 33 bins.
const WIDEST: usize = 33;

pub(super) struct Losses {
    /// Mass, bins and `n ln(n)` of each bin and all beyond it, and zeros for the widest cell.
    sums: [Vec<f64>; 3],
    /// The largest width that has a table.
    widest: usize,
    /// `F(i, i + width)` of the widths in use, for all `i` up to two beyond the last bin.
    runs: Vec<Vec<f32>>,
    /// The corners for the widest and those that follow, as far as steps have asked: of each bin, and of all beyond.
    corners: Vec<Corners>,
}

impl Losses {
    /// `tails` and `n_log_n` have an entry for each bin and a zero.
    pub(super) fn new(tails: &[Tail], n_log_n: &[f64], widest: f64) -> Self {
        let widest = whole(widest).min(WIDEST) + 1;
        let len = tails.len() + widest + 2;
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
            widest,
            runs: vec![Vec::new(); widest + 2],
            corners: Vec::with_capacity((widest + 1) * tails.len()),
        }
    }

    /// What each cell from that of level `first` on loses at least, but for rounding: 0 where there is no table. `step` is at least one bin.
    pub(super) fn of(&mut self, step: f64, first: usize, out: &mut [f32], kernels: &dyn Kernels) {
        let (width, len) = (whole(step), self.len());
        if width >= self.widest {
            return out.fill(0.0);
        }
        let wide = (self.widest - width - 1) * len;
        while self.corners.len() < wide + 2 * len {
            self.extend(self.widest - self.corners.len() / len, kernels);
        }
        kernels.interpolate(&self.corners[wide..][..2 * len], width, step, first, out);
    }

    /// Entries for each width.
    fn len(&self) -> usize {
        self.sums[0].len() - self.widest - 2
    }

    #[cold]
    fn extend(&mut self, width: usize, kernels: &dyn Kernels) {
        let len = self.len();
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
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of bins"
)]
fn whole(step: f64) -> usize {
    step as usize
}
