//! The range whose quantized distribution is closest to the original, by Kullback-Leibler divergence.
//!
//! TensorRT's construction (Migacz 2017, "8-bit inference with TensorRT"), on this crate's levels. For a step and a split
//! of the levels, each level's cell is half a step to either side of it. With `n_i` the count of bin `i`:
//!
//! * `P` is the original within the cells, the values clipped at an end added to the last bin inside that end (the one
//!   that holds the point half a bin inside, as far as it lies inside);
//! * `Q` is what the levels keep of the values within the cells: in each cell its mass `M`, spread evenly over the
//!   cell's bins that are not empty in `P`. Their number is `s`; bins cut by a cell's edge count in proportion;
//! * the divergence of the two, both divided by their sums, is the cost of the candidate.
//!
//! Written out, with `N` values of which `T` are clipped,
//!
//! ```text
//! N KL(P || Q) = sum over cells of [sum n ln n - M ln(M / s)]  +  the two ends  +  N ln((N - T) / N)
//! end          = (m + t) ln((m + t) / l) - m ln(m / l) - t ln(M / s)
//! ```
//!
//! where `t` values are clipped at the end, `m` is the mass of its bin inside it, `l` the length of that part, and `M` and
//! `s` are of its cell. So prefix sums make a cell cost one logarithm, and each side of zero a running sum over its cells. All steps at least
//! one bin wide, and all zero points, are candidates, except those that put no level where there are values, clip more
//! than a quarter of all values at one end, or clip at one end while the other lies beyond the data. Where none is left
//! (16-bit types) the full range is the answer.
//!
//! Two points differ from common practice:
//!
//! * Exact zeros are no part of any cell: they are represented without error, in `P` and `Q` alike. The spike that ReLU
//!   leaves at zero therefore does not blur the cell it falls in, and does not pull the range together.
//! * Histograms have over 2,048 bins where all values have one sign. With 128 bins for 128 levels, onnxruntime's default,
//!   one candidate exists, and the method is minmax.
//!
//! Candidates are ruled out by what their clipping costs at least, and then by what their cells lose at least (see [`losses`]), of which
//! no more are looked at than it takes. Only what is left is computed; that never changes the result.

mod bound;
mod cells;
mod losses;

use std::ops::RangeInclusive;

use super::{Request, Window, model::Model};
use crate::{
    Range,
    kernels::{self, Kernels, density::ln},
};
use cells::{BLOCK, Cells};

pub(super) const NAME: &str = "entropy";

pub(super) fn range(request: &Request) -> Range {
    let window = Window::new(request);
    let mut search = Search {
        request,
        window: &window,
        sides: Sides::new(&request.model, &window),
        best: (f64::INFINITY, request.widened(request.stats.min(), request.stats.max())),
    };
    for step in window.steps().filter(|step| *step >= 1.0) {
        search.consider(step);
    }
    search.best.1
}

/// A search, with the least cost so far and the range that it is of.
struct Search<'a> {
    request: &'a Request<'a>,
    window: &'a Window,
    sides: Sides,
    best: (f64, Range),
}

impl Search<'_> {
    /// Looks at all splits of a step.
    fn consider(&mut self, step: f64) {
        let sides = &mut self.sides;
        // Differences below this are rounding, and no divergence is negative.
        let resolution = 1e-12 * sides.total;
        if self.best.0 <= resolution {
            return;
        }
        let Some(splits) = sides.rule_out(self.window, step, self.best.0) else {
            return;
        };
        sides.begin(step);
        let Some(splits) = sides.bound_losses(splits, self.best.0) else {
            return;
        };
        for (i, above) in splits.enumerate() {
            if sides.least[i] + sides.least_ends(above) >= self.best.0 {
                continue;
            }
            let ends = sides.ends(above);
            if sides.least[i] + ends >= self.best.0 {
                continue;
            }
            let cost = sides.lost(above) + ends;
            if cost < self.best.0 - resolution {
                let split = (self.window.levels - above, above);
                self.best = (cost, self.window.range(self.request, step, split));
            }
        }
    }
}

/// What is taken off a bound for its rounding: a share of what f32 sums up, and that of each value in differences of sums.
const ROUNDING: (f64, f64) = (1e-5, 1e-11);

/// Cells after which splits are left out for the first time.
const FIRST: usize = 2 * BLOCK;
/// So many splits are worth a look at their ends before that.
const FEW: usize = 8;

/// Both sides of zero, cut with one step. A split of the levels is named by how many are above zero.
struct Sides {
    negative: Cells,
    positive: Cells,
    /// Levels other than zero.
    levels: usize,
    /// All values.
    total: f64,
    /// What the level of zero loses.
    centre: f64,
    /// What the cells of each split lose at least.
    least: Vec<f64>,
    kernels: &'static dyn Kernels,
}

impl Sides {
    fn new(model: &Model, window: &Window) -> Self {
        let widest = window.steps().next().unwrap_or(0.0);
        let cells = |side| Cells::new(side, model.total, widest, window.levels);
        Self {
            negative: cells(&model.negative),
            positive: cells(&model.positive),
            levels: window.levels,
            total: model.total,
            centre: 0.0,
            least: Vec::new(),
            kernels: kernels::current(),
        }
    }

    /// The splits of a step, without those of which one end alone is certain to cost more than `best`, which only falls.
    fn rule_out(&mut self, window: &Window, step: f64, best: f64) -> Option<RangeInclusive<usize>> {
        self.negative.bound(step);
        self.positive.bound(step);
        self.negative.rule_out(best - self.positive.least());
        self.positive.rule_out(best - self.negative.least());
        splits(window, self.negative.levels(step), self.positive.levels(step))
    }

    fn begin(&mut self, step: f64) {
        self.negative.begin(step);
        self.positive.begin(step);
        self.centre = cells::centre(&self.negative, &self.positive);
    }

    /// What the cells of each split lose at least, but of those splits that are certain to cost `best`.
    fn bound_losses(&mut self, splits: RangeInclusive<usize>, best: f64) -> Option<RangeInclusive<usize>> {
        let (mut first, mut last) = splits.into_inner();
        let mut budget = best - self.centre + ROUNDING.1 * self.total;
        // The cells of all splits that have been looked at, from zero outwards.
        let (mut below, mut above) = (0, 0);
        let mut ends = if last - first < FEW {
            self.least_ends_of(first, last)
        } else {
            f64::NEG_INFINITY
        };
        while ends < budget {
            let is_done = below == self.levels - last && above == first;
            if is_done || below + above >= FIRST && ends == f64::NEG_INFINITY {
                let whole = (first, last);
                let least_below = self.negative.least_levels(budget - self.positive.least());
                first = first.max(self.positive.least_levels(budget - self.negative.least()));
                last = last.min(self.levels.checked_sub(least_below)?);
                if (first, last) != whole || ends == f64::NEG_INFINITY {
                    ends = self.least_ends_of(first, last);
                    continue;
                }
                if is_done {
                    break;
                }
            }
            for (side, done, levels) in [
                (&mut self.negative, &mut below, self.levels - last),
                (&mut self.positive, &mut above, first),
            ] {
                let count = (levels - *done).min(BLOCK);
                if count > 0 {
                    budget -= sum(&side.losses(*done + 1, count, self.kernels));
                    *done += count;
                }
            }
        }
        if ends >= budget {
            return None;
        }
        // Those that only some of them have. As long as `best` is infinite, all are NaN, and nothing is ruled out.
        self.least.clear();
        self.least.resize(last - first + 1, best - budget);
        add_running(&mut self.positive, first, self.least.iter_mut(), self.kernels);
        add_running(
            &mut self.negative,
            self.levels - last,
            self.least.iter_mut().rev(),
            self.kernels,
        );
        Some(first..=last)
    }

    /// What the ends of these splits cost at least; infinity where there are none.
    fn least_ends_of(&self, first: usize, last: usize) -> f64 {
        let ends = (first..=last).map(|above| self.least_ends(above));
        ends.fold(f64::INFINITY, f64::min)
    }

    /// What the ends of a split cost at least, with `N ln((N - T) / N)`.
    fn least_ends(&self, above: usize) -> f64 {
        self.negative.least_end(self.levels - above) + self.positive.least_end(above)
    }

    /// What the ends of a split cost, with `N ln((N - T) / N)`.
    fn ends(&self, above: usize) -> f64 {
        let below = self.levels - above;
        let clipped = self.negative.clipped(below) + self.positive.clipped(above);
        self.negative.end(below) + self.positive.end(above) + self.total * ln(1.0 - clipped / self.total)
    }

    /// What the cells of a split lose.
    fn lost(&mut self, above: usize) -> f64 {
        let below = self.negative.lost(self.levels - above, self.kernels);
        self.centre + below + self.positive.lost(above, self.kernels)
    }
}

/// Adds to each but the first of `least` what the cells beyond `level` lose at least, one more to each than to the one before.
fn add_running<'a>(
    side: &mut Cells,
    level: usize,
    least: impl ExactSizeIterator<Item = &'a mut f64>,
    kernels: &dyn Kernels,
) {
    let (mut lost, mut block) = (0.0, [0.0; BLOCK]);
    let count = least.len() - 1;
    for (i, least) in least.skip(1).enumerate() {
        if i % BLOCK == 0 {
            block = side.losses(level + i + 1, BLOCK.min(count - i), kernels);
        }
        lost += surely(block[i % BLOCK]);
        *least += lost;
    }
}

fn sum(block: &[f32; BLOCK]) -> f64 {
    let mut lanes = [0.0; 8];
    for eight in block.as_chunks::<8>().0 {
        for (lane, lost) in lanes.iter_mut().zip(eight) {
            *lane += lost;
        }
    }
    lanes.into_iter().map(surely).sum()
}

/// What a sum in f32 is at least, before rounding.
fn surely(lost: f32) -> f64 {
    f64::from(lost) * (1.0 - ROUNDING.0)
}

/// How many levels to put above zero, given the least that each side takes and the most that it has a use for.
fn splits(window: &Window, below: (usize, usize), above: (usize, usize)) -> Option<RangeInclusive<usize>> {
    let last = window.levels.checked_sub(below.0)?;
    let (first, last) = match window.split {
        Some((_, fixed)) => (fixed.max(above.0), fixed.min(last)),
        None => {
            // Clipping at one end while the other end lies beyond the data is a waste.
            let last = last.min(above.1);
            (window.levels.saturating_sub(below.1).min(last).max(above.0), last)
        }
    };
    (first <= last).then_some(first..=last)
}
