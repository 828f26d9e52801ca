//! The range whose quantized distribution is closest to the original, by Kullback-Leibler divergence.
//!
//! TensorRT's construction (Migacz 2017, "8-bit inference with TensorRT"), on this crate's levels. For a step and a split
//! of the levels, each level's cell is half a step to either side of it. With `n_i` the count of bin `i`:
//!
//! * `P` is the original within the cells, the values clipped at an end added to the last bin inside that end (the one
//!   that holds the point half a bin inside);
//! * `Q` is what the levels keep of the values within the cells: in each cell its mass `M`, spread evenly over the
//!   cell's bins that are not empty in `P`. Their number is `s`; bins cut by a cell's edge count in proportion;
//! * the divergence of the two, both divided by their sums, is the cost of the candidate.
//!
//! Written out, with `N` values of which `T` are clipped,
//!
//! ```text
//! N KL(P || Q) = sum over cells of [sum n ln n - M ln(M / s)]  +  the two ends  +  N ln((N - T) / N)
//! end          = (n + t) ln(n + t) - n ln n - t ln(M / s)         t values clipped at it; n, M, s of its bin and cell
//! ```
//!
//! so prefix sums make a cell cost one logarithm, and each side of zero a running sum over its cells. All steps at least
//! one bin wide, and all zero points, are tried; where there is none (16-bit types) the full range is the answer.
//!
//! Three points differ from common practice:
//!
//! * Exact zeros are no part of any cell: they are represented without error, in `P` and `Q` alike. The spike that ReLU
//!   leaves at zero therefore does not blur the cell it falls in, and does not pull the range together.
//! * `sum n ln n` of a sample exceeds that of the distribution it is drawn from, by about half a nat for each bin (Miller
//!   1955, "Note on the bias of information estimates"), which favours narrow ranges when values are few. `(1 - 1/n^2) / 2`
//!   is taken off for each bin; it is within 0.03 nat of the expectation for Poisson counts.
//! * Histograms have over 2,048 bins where all values have one sign. With 128 bins for 128 levels, onnxruntime's default,
//!   one candidate exists, and the method is minmax.

use super::{Request, Window, logarithm::Logarithm, model::Side, model::to_f64_len};
use crate::Range;

pub(super) const NAME: &str = "entropy";

pub(super) fn range(request: &Request) -> Range {
    let (window, model, log) = (Window::new(request), &request.model, Logarithm::new());
    let (negative, positive) = (Cells::new(&model.negative, &log), Cells::new(&model.positive, &log));
    let (mut below, mut above) = (Vec::new(), Vec::new());
    let mut best = (f64::INFINITY, request.widened(request.stats.min(), request.stats.max()));
    for step in window.steps().filter(|step| *step >= 1.0) {
        let centre = shape(&negative.cell(0.0, step / 2.0).plus(&positive.cell(0.0, step / 2.0)), &log).0;
        // Beyond `reach` levels nothing is clipped, and every split that clips on one side only is a waste.
        let (reach_below, reach_above) = (negative.reach(step), positive.reach(step));
        let most_above = reach_above.min(window.levels);
        let least_above = window.levels.saturating_sub(reach_below).min(most_above);
        let (first, last) = window.split.map_or((least_above, most_above), |(_, above)| (above, above));
        negative.costs(step, window.levels - last..=window.levels - first, &log, &mut below);
        positive.costs(step, first..=last, &log, &mut above);
        for (i, (above, below)) in above.iter().zip(below.iter().rev()).enumerate() {
            let cost = centre + above.cost + below.cost;
            let kept = 1.0 - (above.clipped + below.clipped) / model.total;
            // ln(kept) >= 1 - 1 / kept, so that most candidates need no logarithm.
            if cost + model.total * (1.0 - 1.0 / kept) < best.0 {
                let cost = cost + model.total * log.of(kept);
                if cost < best.0 {
                    best = (cost, window.range(request, step, (window.levels - first - i, first + i)));
                }
            }
        }
    }
    best.1
}

/// `n ln n` less its bias.
fn n_log_n(n: f64, log: &Logarithm) -> f64 {
    if n > 0.0 { n * log.of(n) - (1.0 - 1.0 / (n * n).max(1.0)) / 2.0 } else { 0.0 }
}

/// Sums over bins or parts of bins.
#[derive(Clone, Copy, Default)]
struct Sums {
    mass: f64,
    n_log_n: f64,
    /// Bins that are not empty.
    bins: f64,
}

impl Sums {
    #[inline(always)]
    fn plus(&self, other: &Self) -> Self {
        self.plus_times(other, 1.0)
    }

    #[inline(always)]
    fn plus_times(&self, other: &Self, factor: f64) -> Self {
        Self {
            mass: self.mass + factor * other.mass,
            n_log_n: self.n_log_n + factor * other.n_log_n,
            bins: self.bins + factor * other.bins,
        }
    }
}

/// What the cell of a level loses by being one level, and the logarithm of its density in `Q`.
#[inline(always)]
fn shape(cell: &Sums, log: &Logarithm) -> (f64, f64) {
    if cell.mass > 0.0 {
        let density = log.of(cell.mass / cell.bins);
        (cell.n_log_n - cell.mass * density, density)
    } else {
        (0.0, f64::NEG_INFINITY)
    }
}

/// One side of zero where it ends with some level.
struct End {
    cost: f64,
    clipped: f64,
}

/// One side of zero, ready to be cut into cells of any width.
struct Cells {
    /// A bin, and the sums of all bins beyond it.
    bins: Vec<(Sums, Sums)>,
}

impl Cells {
    fn new(side: &Side, log: &Logarithm) -> Self {
        let mut beyond = Sums::default();
        let mut bins: Vec<_> = side
            .counts
            .iter()
            .rev()
            .map(|&mass| {
                let bin = Sums { mass, n_log_n: n_log_n(mass, log), bins: if mass > 0.0 { 1.0 } else { 0.0 } };
                let entry = (bin, beyond);
                beyond = beyond.plus(&bin);
                entry
            })
            .collect();
        bins.reverse();
        Self { bins }
    }

    /// Sums of what lies beyond `x`.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bin's index")]
    fn beyond(&self, x: f64) -> Sums {
        let i = x as usize;
        match self.bins.get(i) {
            Some((bin, beyond)) => beyond.plus_times(bin, to_f64_len(i + 1) - x),
            None => Sums::default(),
        }
    }

    fn cell(&self, from: f64, to: f64) -> Sums {
        self.beyond(from).plus_times(&self.beyond(to), -1.0)
    }

    /// The least number of levels that clip nothing.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the number of bins")]
    fn reach(&self, step: f64) -> usize {
        (to_f64_len(self.bins.len()) / step - 0.5).ceil().max(0.0) as usize
    }

    /// The cost of ending with each of these levels: of the cells from level 1, and of the clipping.
    fn costs(&self, step: f64, ends: std::ops::RangeInclusive<usize>, log: &Logarithm, costs: &mut Vec<End>) {
        costs.clear();
        let mut outside = self.beyond(step / 2.0);
        let mut total = 0.0;
        for level in 0..=*ends.end() {
            // With no level on this side its values would be clipped to zero: no candidate.
            let mut end = if level == 0 && outside.mass > 0.0 { f64::INFINITY } else { 0.0 };
            if level > 0 {
                let edge = (to_f64_len(level) + 0.5) * step;
                let beyond = self.beyond(edge);
                let cell = outside.plus_times(&beyond, -1.0);
                outside = beyond;
                let (lost, density) = shape(&cell, log);
                total += lost;
                if level >= *ends.start() && outside.mass > 0.0 {
                    end = self.end(&cell, density, outside.mass, edge, log);
                }
            }
            if level >= *ends.start() {
                costs.push(End { cost: total + end, clipped: outside.mass });
            }
        }
    }

    /// What clipping to the last cell costs.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bin's index")]
    fn end(&self, cell: &Sums, density: f64, clipped: f64, edge: f64, log: &Logarithm) -> f64 {
        let bin = self.bins.get((edge - 0.5) as usize).map_or(Sums::default(), |(bin, _)| *bin);
        let joined = n_log_n(bin.mass + clipped, log) - bin.n_log_n;
        if cell.mass == 0.0 {
            f64::INFINITY // Q has nothing where P has the clipped values
        } else if bin.mass > 0.0 {
            joined - clipped * density
        } else {
            // One more bin is not empty, and the cell's mass is spread over it too.
            let spread = log.of(1.0 + 1.0 / cell.bins);
            joined - clipped * (density - spread) + cell.mass * spread
        }
    }
}
