//! The range whose quantized distribution is closest to the original, by Kullback-Leibler divergence.
//!
//! TensorRT's construction (Migacz 2017, "8-bit inference with TensorRT"), on this crate's levels. For a step and a
//! split of the levels, each level's cell is half a step to either side of it. With `n_i` the count of bin `i`:
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
//! where `t` values are clipped at the end, `m` is the mass of its bin inside it, `l` the length of that part, and `M`
//! and `s` are of its cell. So prefix sums make a cell cost one logarithm, and each side of zero a running sum over its
//! cells. All steps at least one bin wide, and all zero points, are candidates, except those that put no level where
//! there are values, clip more than a quarter of all values at one end, or clip at one end while the other lies beyond
//! the data. Where none is left (16-bit types) the full range is the answer.
//!
//! Two points differ from common practice:
//!
//! * Exact zeros are no part of any cell: they are represented without error, in `P` and `Q` alike. The spike that ReLU
//!   leaves at zero therefore does not blur the cell it falls in, and does not pull the range together.
//! * Histograms have over 2,048 bins where all values have one sign. With 128 bins for 128 levels, onnxruntime's
//!   default, one candidate exists, and the method is minmax.
//!
//! Candidates are ruled out by what their clipping costs at least, and then by what their cells lose at least (see
//! [`losses`]), for sixteen neighbouring steps together and of no more cells than it takes. Only what is left is
//! computed; that never changes the result.

mod bound;
mod cells;
mod losses;

use std::ops::RangeInclusive;

use super::{Request, Window, model::Model};
use crate::{
    Range,
    kernels::{self, Kernels, STEPS, density::ln},
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
    search.consider_few();
    search.consider_all();
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
    /// Looks at one step of many.
    fn consider_few(&mut self) {
        for step in (1..=self.window.steps()).rev().step_by(64).map(|i| self.window.step(i)) {
            let Some(splits) = self.begin(step) else {
                return;
            };
            self.sides.begin(step);
            let levels = self.window.levels;
            let lost = splits.clone().map(|above| self.sides.lost((levels - above, above)));
            self.least.clear();
            self.least.extend(lost);
            self.consider(step, splits);
        }
    }

    /// Looks at all steps, some neighbours at a time.
    fn consider_all(&mut self) {
        let mut i = self.window.steps();
        while i > 0 && self.begin(self.window.step(i)).is_some() {
            i -= self.consider_neighbours(i);
        }
    }

    /// The splits of a step that are not ruled out by clipping; `None` where no more steps need to be looked at, from
    /// wide to narrow.
    fn begin(&mut self, step: f64) -> Option<RangeInclusive<usize>> {
        // Differences below this are rounding, and no divergence is negative.
        if step < 1.0 || self.best.0 <= self.resolution {
            return None;
        }
        // Narrower ones need still more levels.
        self.sides.rule_out(self.window, step, self.best.0)
    }

    /// Looks at neighbouring steps of one whole part, of which `widest` is the last, and says how many.
    fn consider_neighbours(&mut self, widest: usize) -> usize {
        let (window, sides) = (self.window, &mut *self.sides);
        let wide = window.step(widest);
        let is_alike = |step: &f64| losses::whole(*step) == losses::whole(wide);
        // From narrow to wide, the narrowest more than once where there are fewer.
        let mut steps = [wide; STEPS];
        let neighbours = (1..=widest)
            .rev()
            .take(STEPS)
            .map(|i| window.step(i))
            .take_while(is_alike);
        let count = steps
            .iter_mut()
            .rev()
            .zip(neighbours)
            .map(|(lane, step)| *lane = step)
            .count();
        let (unused, used) = steps.split_at_mut(STEPS - count);
        unused.fill(used[0]);
        let Some(splits) = sides.splits(window, steps[0], wide) else {
            return count;
        };
        let first = *splits.start();
        let open = sides.bound_losses(&steps, splits, window.levels, self.best.0);
        for lane in (STEPS - count..STEPS).rev().filter(|lane| open[*lane]) {
            let (step, best) = (steps[lane], self.best.0);
            let Some(splits) = self.sides.splits(window, step, step) else {
                break;
            };
            let least = splits
                .clone()
                .map(|above| self.sides.least_lost(lane, above - first, best));
            self.least.clear();
            self.least.extend(least);
            self.sides.begin(step);
            self.consider(step, splits);
        }
        count
    }

    /// Looks at some splits of a step.
    fn consider(&mut self, step: f64, splits: RangeInclusive<usize>) {
        let (window, sides) = (self.window, &mut *self.sides);
        for (least, above) in self.least.iter().zip(splits) {
            let split = (window.levels - above, above);
            if least.is_infinite() || least + sides.least_ends(split) >= self.best.0 {
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

/// What is taken off a bound for its rounding: a share of what f32 sums up, and that of each value in differences of
/// sums and in where edges lie.
const ROUNDING: (f64, f64) = (2e-5, 5e-7);

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
    /// What the level of zero loses, once it was asked for, and what it loses at least in neighbouring steps.
    centre: Option<f64>,
    least_centre: f64,
    /// What the ends of each split of neighbouring steps cost at least.
    ends: Vec<f64>,
    /// What the cells that all of these splits have lose at least, by step.
    common: [f32; STEPS],
    kernels: &'static dyn Kernels,
}

impl Sides {
    fn new(model: &Model) -> Self {
        let kernels = kernels::current();
        Self {
            negative: Cells::new(&model.negative, model.total, kernels),
            positive: Cells::new(&model.positive, model.total, kernels),
            total: model.total,
            widest: 1.0,
            centre: None,
            least_centre: 0.0,
            ends: Vec::new(),
            common: [0.0; STEPS],
            kernels,
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

    /// How many levels above zero the splits of a step have, without those of which one end alone is certain to cost
    /// more than `best`, which only falls.
    fn rule_out(&mut self, window: &Window, step: f64, best: f64) -> Option<RangeInclusive<usize>> {
        // A bound for wider steps holds, too; most that are ruled out are by the first, so that few others are made.
        let mut width = self.widest;
        loop {
            self.negative.bound(width, self.kernels);
            self.positive.bound(width, self.kernels);
            self.negative.rule_out(best - self.positive.least());
            self.positive.rule_out(best - self.negative.least());
            let splits = self.splits(window, step, step)?;
            width /= 2.0;
            if width < step {
                return Some(splits);
            }
        }
    }

    /// Those of any step from `narrow` to `wide`, which is at most the one that was looked at.
    fn splits(&self, window: &Window, narrow: f64, wide: f64) -> Option<RangeInclusive<usize>> {
        let needs = |side: &Cells| Needs {
            least: side.inner_levels(wide),
            most: (side.outer_levels(wide), side.outer_levels(narrow)),
        };
        splits(window, &needs(&self.negative), &needs(&self.positive))
    }

    fn begin(&mut self, step: f64) {
        self.negative.begin(step);
        self.positive.begin(step);
        self.centre = None;
    }

    /// What the level of zero loses.
    fn centre(&mut self) -> f64 {
        *self
            .centre
            .get_or_insert_with(|| cells::centre(&self.negative, &self.positive))
    }

    /// Adds up what the cells of each split of neighbouring steps lose at least, and says which steps have one that is
    /// not certain to cost `best`. These are from narrow to wide.
    fn bound_losses(
        &mut self,
        steps: &[f64; STEPS],
        splits: RangeInclusive<usize>,
        levels: usize,
        best: f64,
    ) -> [bool; STEPS] {
        let (first, last) = splits.into_inner();
        // The level of zero loses least in the narrowest.
        self.begin(steps[0]);
        self.least_centre = self.centre();
        self.begin(steps[STEPS - 1]);
        let steps = &steps.map(losses::on_grid);
        let (negative, positive, narrowest) = (&self.negative, &self.positive, steps[0]);
        let ends = (first..=last)
            .map(|above| negative.least_ends(levels - above, narrowest) + positive.least_ends(above, narrowest));
        self.ends.clear();
        self.ends.extend(ends);
        // What a sum in f32 exceeds if what it says is certain to exceed what the ends leave.
        let budget = best - self.least_centre + ROUNDING.1 * self.total;
        let limit = |ends: f64| to_f32((budget - ends) * (1.0 + 2.0 * ROUNDING.0));
        let least_ends = self.ends.iter().copied().fold(f64::INFINITY, f64::min);
        // The cells that all splits have, from zero outwards, and then those that only some of them have.
        self.common = [0.0; STEPS];
        let (below, above) = (levels - last, first);
        for (side, levels) in [(&mut self.negative, below), (&mut self.positive, above)] {
            if !side.add_common(steps, levels, limit(least_ends), &mut self.common, self.kernels) {
                return [false; STEPS];
            }
        }
        let least_common = self.common.iter().copied().fold(f32::INFINITY, f32::min);
        let limits = self.ends.iter().map(|ends| limit(*ends));
        let is_open = |limit: &f32| least_common <= *limit;
        self.positive.add_each(steps, above + 1, last - first, self.kernels);
        self.negative.add_each(steps, below + 1, last - first, self.kernels);
        let mut open = [false; STEPS];
        let sides = self.positive.added().iter().zip(self.negative.added().iter().rev());
        for (limit, (above, below)) in limits.zip(sides).filter(|(limit, _)| is_open(limit)) {
            for lane in 0..STEPS {
                open[lane] |= self.common[lane] + (above[lane] + below[lane]) <= limit;
            }
        }
        open
    }

    /// What the cells of one of these splits lose at least, infinite where it is certain to cost `best`.
    fn least_lost(&self, lane: usize, above: usize, best: f64) -> f64 {
        let sides = [self.positive.added(), self.negative.added()];
        let below = sides[1].len() - 1 - above;
        let lost = self.common[lane] + (sides[0][above][lane] + sides[1][below][lane]);
        // What a sum in f32 is at least, before rounding.
        let least = f64::from(lost) * (1.0 - ROUNDING.0) + self.least_centre - ROUNDING.1 * self.total;
        if least + self.ends[above] < best {
            least
        } else {
            f64::INFINITY
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
        self.centre() + below + self.positive.lost(above, self.kernels)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounded to f32")]
fn to_f32(limit: f64) -> f32 {
    limit as f32
}

/// Levels of a side: the least that it takes, and the most that it has a use for with the widest step and with the
/// narrowest.
struct Needs {
    least: usize,
    most: (usize, usize),
}

/// How many levels to put above zero.
fn splits(window: &Window, below: &Needs, above: &Needs) -> Option<RangeInclusive<usize>> {
    let last = window.levels.checked_sub(below.least)?;
    let (first, last) = match window.split {
        Some((_, fixed)) => (fixed, fixed.min(last)),
        // Clipping at one end while the other end lies beyond the data is a waste.
        None => (
            window.levels.saturating_sub(below.most.1).min(above.most.0),
            last.min(above.most.1),
        ),
    };
    let first = first.max(above.least);
    (first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What steps between two have for splits is among what both are asked for at once.
    #[test]
    fn splits_of_neighbours_hold_those_of_each() {
        let needs = |[least, wide, narrow]: [usize; 3]| Needs {
            least,
            most: (wide, narrow),
        };
        let triples = || (0..6usize).flat_map(|a| (a..7).flat_map(move |b| (b..8).map(move |c| [a, b, c])));
        for window in [(None, 9), (Some((5, 4)), 9)].map(|(split, levels)| Window::of_levels(split, levels)) {
            for (below, above) in triples().flat_map(|below| triples().map(move |above| (below, above))) {
                let all = splits(&window, &needs(below), &needs(above));
                // A step between them has the wide one's need of levels or more.
                for (b, a) in [(below[1], above[1]), (below[2], above[2]), (below[1], above[2])] {
                    let one = splits(&window, &needs([below[0], b, b]), &needs([above[0], a, a]));
                    let is_within = |one: &RangeInclusive<usize>| {
                        all.as_ref()
                            .is_some_and(|all| all.start() <= one.start() && one.end() <= all.end())
                    };
                    assert!(
                        one.as_ref().is_none_or(is_within),
                        "{below:?} {above:?}: {one:?} of {all:?}"
                    );
                }
            }
        }
    }
}
