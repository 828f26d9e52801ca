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
//! Candidates are ruled out by what their clipping costs at least, before their cells are looked at; that never changes
//! the result.

mod cells;

use std::ops::RangeInclusive;

use super::{Request, Window, model::Model};
use crate::{
    Range,
    kernels::{self, Kernels, density::ln},
};
use cells::Cells;

pub(super) const NAME: &str = "entropy";

pub(super) fn range(request: &Request) -> Range {
    let (window, total) = (Window::new(request), request.model.total);
    let mut sides = Sides::new(&request.model, &window);
    // Differences below this are rounding.
    let resolution = 1e-12 * total;
    let mut best = (f64::INFINITY, request.widened(request.stats.min(), request.stats.max()));
    for step in window.steps().filter(|step| *step >= 1.0) {
        let Some(splits) = sides.rule_out(&window, step, best.0) else {
            continue;
        };
        sides.begin(step);
        for above in sides.cut(splits, best.0) {
            if sides.least(above) < best.0 {
                let (cost, clipped) = sides.cost(above);
                let cost = cost + total * ln(1.0 - clipped / total);
                if cost < best.0 - resolution {
                    best = (cost, window.range(request, step, (window.levels - above, above)));
                }
            }
        }
    }
    best.1
}

/// Both sides of zero, cut with one step. A split of the levels is named by how many are above zero.
struct Sides {
    negative: Cells,
    positive: Cells,
    /// Levels other than zero.
    levels: usize,
    /// What the level of zero loses.
    centre: f64,
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
            centre: 0.0,
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

    /// Cuts cells, from zero outwards, until nothing is left of the splits or all cells of the rest are cut: the splits at both ends are
    /// left out as soon as they cannot cost less than `best`.
    fn cut(&mut self, splits: RangeInclusive<usize>, best: f64) -> RangeInclusive<usize> {
        let (mut first, mut last) = splits.into_inner();
        while first <= last && self.least_of(first, last) < best {
            let whole = (first, last);
            while first <= last && self.least(first) >= best {
                first += 1;
            }
            while first < last && self.least(last) >= best {
                last -= 1;
            }
            if (first, last) != whole {
                continue;
            }
            if self.negative.done() >= self.levels - first && self.positive.done() >= last {
                return first..=last;
            }
            self.negative.advance(self.levels - first, self.kernels);
            self.positive.advance(last, self.kernels);
        }
        RangeInclusive::new(1, 0)
    }

    /// What any of these splits costs at least, by the cells that have been cut.
    fn least_of(&self, first: usize, last: usize) -> f64 {
        let below = self.levels - last;
        let lost = self.centre + self.negative.lost(below) + self.positive.lost(first);
        lost + self.negative.least_beyond(below) + self.positive.least_beyond(first)
    }

    /// What a split costs at least, by the cells that have been cut.
    fn least(&self, above: usize) -> f64 {
        let below = self.levels - above;
        self.lost(above) + self.negative.least_end(below) + self.positive.least_end(above)
    }

    /// What a split, all of whose cells are cut, costs but for `N ln((N - T) / N)`, and how many values it clips.
    fn cost(&self, above: usize) -> (f64, f64) {
        let below = self.levels - above;
        (
            self.lost(above) + self.negative.end(below) + self.positive.end(above),
            self.negative.clipped(below) + self.positive.clipped(above),
        )
    }

    fn lost(&self, above: usize) -> f64 {
        self.centre + self.negative.lost(self.levels - above) + self.positive.lost(above)
    }
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
