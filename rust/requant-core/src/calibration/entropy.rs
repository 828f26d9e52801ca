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
use cells::Cells;

pub(super) const NAME: &str = "entropy";

pub(super) fn range(request: &Request) -> Range {
    let window = Window::new(request);
    let mut sides = request.seen.sides.borrow_mut();
    let mut search = Search {
        request,
        window: &window,
        sides: sides.get_or_insert_with(|| Sides::new(request.model)),
        best: (f64::INFINITY, request.widened(request.stats.min(), request.stats.max())),
        resolution: 1e-12 * request.model.total,
        least: Vec::new(),
    };
    search.sides.start(window.step(window.steps()));
    // First a few: what they have found lets most of the others be ruled out early.
    let (few, all) = ((1..=window.steps()).rev().step_by(64), (1..=window.steps()).rev());
    search.consider_all(few.map(|i| window.step(i)));
    search.consider_all(all.map(|i| window.step(i)));
    search.best.1
}

/// A search, with the least cost so far and the range that it is of.
struct Search<'a> {
    request: &'a Request<'a>,
    window: &'a Window,
    sides: &'a mut Sides,
    best: (f64, Range),
    resolution: f64,
    /// What the cells of each split of a step lose at least.
    least: Vec<f64>,
}

impl Search<'_> {
    /// Looks at steps, from wide to narrow.
    fn consider_all(&mut self, steps: impl Iterator<Item = f64>) {
        for step in steps.take_while(|step| *step >= 1.0) {
            // Differences below this are rounding, and no divergence is negative.
            if self.best.0 <= self.resolution {
                break;
            }
            match self.sides.rule_out(self.window, step, self.best.0) {
                Some(splits) => self.consider(step, splits),
                None => break, // narrower ones need still more levels
            }
        }
    }

    /// Looks at some splits of a step.
    fn consider(&mut self, step: f64, splits: RangeInclusive<usize>) {
        let (window, sides) = (self.window, &mut *self.sides);
        sides.begin(step);
        let Some(splits) = sides.bound_losses(splits, window.levels, self.best.0, &mut self.least) else {
            return;
        };
        for (least, above) in self.least.iter().zip(splits) {
            let split = (window.levels - above, above);
            if least + sides.least_ends(split) >= self.best.0 {
                continue;
            }
            let ends = sides.ends(split);
            if least + ends >= self.best.0 {
                continue;
            }
            let cost = sides.lost(split) + ends;
            if cost < self.best.0 - self.resolution {
                self.best = (cost, window.range(self.request, step, split));
            }
        }
    }
}

/// What is taken off a bound for its rounding: a share of what f32 sums up, and that of each value in differences of sums and
/// on the grid of steps.
const ROUNDING: (f64, f64) = (1e-5, 5e-8);

/// Levels below and above zero.
type Split = (usize, usize);

/// Both sides of zero, cut with one step.
pub(super) struct Sides {
    negative: Cells,
    positive: Cells,
    /// All values.
    total: f64,
    /// A power of two that no step of the search exceeds.
    widest: f64,
    /// What the level of zero loses.
    centre: f64,
    /// What the ends of each few splits cost at least.
    ends: Vec<f64>,
    kernels: &'static dyn Kernels,
}

impl Sides {
    fn new(model: &Model) -> Self {
        Self {
            negative: Cells::new(&model.negative, model.total),
            positive: Cells::new(&model.positive, model.total),
            total: model.total,
            widest: 1.0,
            centre: 0.0,
            ends: Vec::new(),
            kernels: kernels::current(),
        }
    }

    /// Begins with a search, whose steps are at most `widest`: nothing is ruled out.
    fn start(&mut self, widest: f64) {
        self.widest = 1.0;
        while self.widest < widest {
            self.widest *= 2.0;
        }
        self.negative.start();
        self.positive.start();
    }

    /// How many levels above zero the splits of a step have, without those of which one end alone is certain to cost more than `best`,
    /// which only falls.
    fn rule_out(&mut self, window: &Window, step: f64, best: f64) -> Option<RangeInclusive<usize>> {
        // A bound for wider steps holds, too; most that are ruled out are by the first, so that few others are made.
        let mut width = self.widest;
        loop {
            self.negative.bound(width);
            self.positive.bound(width);
            self.negative.rule_out(best - self.positive.least());
            self.positive.rule_out(best - self.negative.least());
            let splits = splits(window, self.negative.levels(step), self.positive.levels(step))?;
            width /= 2.0;
            if width < step {
                return Some(splits);
            }
        }
    }

    fn begin(&mut self, step: f64) {
        self.negative.begin(step);
        self.positive.begin(step);
    }

    /// Writes what the cells of each split lose at least, but of those splits that are certain to cost `best`.
    fn bound_losses(
        &mut self,
        splits: RangeInclusive<usize>,
        levels: usize,
        best: f64,
        least: &mut Vec<f64>,
    ) -> Option<RangeInclusive<usize>> {
        let (mut first, mut last) = splits.into_inner();
        self.bound_ends(first, last, levels);
        let least_ends = self.ends.iter().copied().fold(f64::INFINITY, f64::min);
        let mut budget = best + ROUNDING.1 * self.total;
        // The cells that all splits have, from zero outwards.
        let (below, above) = (levels - last, first);
        for (side, levels) in [(&mut self.negative, below), (&mut self.positive, above)] {
            budget -= side.common_loss(levels, budget - least_ends, self.kernels);
            if least_ends >= budget {
                return None;
            }
        }
        self.centre = cells::centre(&self.negative, &self.positive);
        budget -= self.centre;
        let few = self.ends.iter().position(|ends| *ends < budget)?;
        let later = self.ends.iter().rev().position(|ends| *ends < budget)?;
        last = last.min(first + FEW * (self.ends.len() - later) - 1);
        first += FEW * few;
        // Those that only some of them have. As long as `best` is infinite, all are NaN, and nothing is ruled out.
        least.clear();
        least.resize(last - first + 1, best - budget);
        let losses = self.positive.losses(above + 1, last - above, self.kernels);
        add_running(losses, least.iter_mut(), first - above);
        let losses = self.negative.losses(below + 1, levels - first - below, self.kernels);
        add_running(losses, least.iter_mut().rev(), levels - last - below);
        Some(first..=last)
    }

    /// Writes what the ends of each few splits cost at least: no more than any that clip less, so that one look serves neighbours.
    fn bound_ends(&mut self, first: usize, last: usize, levels: usize) {
        self.ends.clear();
        for above in (first..=last).step_by(FEW) {
            let most = last.min(above + FEW - 1);
            let below = self.negative.least_end_to(levels - above);
            self.ends.push(below + self.positive.least_end_to(most));
        }
    }

    /// What the ends of a split cost at least, with `N ln((N - T) / N)`.
    fn least_ends(&self, (below, above): Split) -> f64 {
        self.negative.least_end(below) + self.positive.least_end(above)
    }

    /// What the ends of a split cost, with `N ln((N - T) / N)`.
    fn ends(&self, (below, above): Split) -> f64 {
        let clipped = self.negative.clipped(below) + self.positive.clipped(above);
        self.negative.end(below) + self.positive.end(above) + self.total * ln(1.0 - clipped / self.total)
    }

    /// What the cells of a split lose.
    fn lost(&mut self, (below, above): Split) -> f64 {
        let below = self.negative.lost(below, self.kernels);
        self.centre + below + self.positive.lost(above, self.kernels)
    }
}

/// Splits whose ends are bounded together.
const FEW: usize = 6;

/// Adds what cells lose at least to splits, of which the first has `common` of them and each other one more.
fn add_running<'a>(losses: &[f32], least: impl Iterator<Item = &'a mut f64>, common: usize) {
    let (common, others) = losses.split_at(common);
    let mut lost = sum(common);
    let mut losses = others.iter();
    for least in least {
        *least += lost;
        lost += losses.next().map_or(0.0, |lost| surely(*lost));
    }
}

fn sum(losses: &[f32]) -> f64 {
    let (eights, rest) = losses.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for eight in eights {
        for (lane, lost) in lanes.iter_mut().zip(eight) {
            *lane += lost;
        }
    }
    lanes.iter().chain(rest).map(|lost| surely(*lost)).sum()
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
