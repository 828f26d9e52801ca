//! One side of zero, cut into the cells of levels.

use super::{
    bound::{Bins, Bound, n_log_n},
    losses::Losses,
    surely,
};
use crate::{
    calibration::model::Side,
    kernels::{
        Kernels, Tail,
        density::{beyond, ln, locate, log_ratio, to_f64},
    },
};

/// Kernels take whole multiples of so many cells at once.
const VECTORS: usize = 16;

/// What the level of zero itself loses.
pub(super) fn centre(negative: &Cells, positive: &Cells) -> f64 {
    let (mut mass, mut bins, mut n_log_n) = (0.0, 0.0, 0.0);
    for side in [negative, positive] {
        let beyond = side.beyond(0);
        mass += side.tails[0].mass - beyond.mass;
        bins += side.tails[0].bins - beyond.bins;
        n_log_n += side.n_log_n[0] - side.n_log_n_beyond(0);
    }
    if mass > 0.0 {
        n_log_n - mass * ln(mass / bins)
    } else {
        0.0
    }
}

pub(super) struct Cells {
    /// Sums of each bin and all bins beyond it, and a zero.
    tails: Vec<Tail>,
    /// The same of `n ln(n)`.
    n_log_n: Vec<f64>,
    counts: Vec<f64>,
    /// `n ln(n)` of each bin.
    own: Vec<f64>,
    /// The fullest of each bin and all beyond it.
    fullest: Vec<f64>,
    /// For steps up to 1, 2, 4 .. bins, if there were any.
    bounds: Vec<Option<Bound>>,
    /// The bound in use.
    bound: usize,
    /// All values of both sides; not more than a quarter of them may be clipped.
    total: f64,
    /// The step that the side is cut with.
    step: f64,
    losses: Losses,
    /// What cells lose at least.
    lost: Vec<f32>,
    /// What lies beyond each level's cell, as far as it has been cut: up to level `done`.
    edges: Vec<Tail>,
    /// `M ln(M / s)` of each level's cell, and of all up to it.
    spreads: Vec<f64>,
    sums: Vec<f64>,
    done: usize,
}

impl Cells {
    pub(super) fn new(side: &Side, total: f64) -> Self {
        let bins = side.counts.len().max(1);
        let mut own = vec![0.0; side.counts.len()];
        let (mut tails, mut beyond) = (vec![Tail::default(); bins + 1], vec![0.0; bins + 1]);
        for (i, &mass) in side.counts.iter().enumerate().rev() {
            tails[i] = Tail {
                mass: tails[i + 1].mass + mass,
                bins: tails[i + 1].bins + if mass > 0.0 { 1.0 } else { 0.0 },
            };
            own[i] = n_log_n(mass);
            beyond[i] = beyond[i + 1] + own[i];
        }
        let mut fullest = side.counts.clone();
        for i in (1..fullest.len()).rev() {
            fullest[i - 1] = fullest[i - 1].max(fullest[i]);
        }
        Self {
            losses: Losses::new(&tails, &beyond),
            lost: Vec::new(),
            tails,
            n_log_n: beyond,
            counts: side.counts.clone(),
            own,
            fullest,
            bounds: Vec::new(),
            bound: 0,
            total,
            step: 1.0,
            edges: Vec::new(),
            spreads: Vec::new(),
            sums: Vec::new(),
            done: 0,
        }
    }

    /// Begins with a search: nothing is ruled out.
    pub(super) fn start(&mut self) {
        self.bounds.iter_mut().flatten().for_each(Bound::start);
    }

    /// Takes the bound for steps up to a power of two.
    pub(super) fn bound(&mut self, width: f64) {
        let bound = log2(width);
        self.bound = bound;
        if self.bounds.len() <= bound {
            self.bounds.resize_with(bound + 1, || None);
        }
        if self.bounds[bound].is_none() {
            let bins = Bins {
                counts: &self.counts,
                own: &self.own,
                tails: &self.tails,
                fullest: &self.fullest,
            };
            self.bounds[bound] = Some(Bound::new(&bins, self.total, width));
        }
    }

    /// The bound of the step.
    fn in_use(&self) -> &Bound {
        self.bounds[self.bound].as_ref().expect("made when it was taken")
    }

    /// What an end that is not ruled out costs at least.
    pub(super) fn least(&self) -> f64 {
        self.in_use().least()
    }

    /// Leaves out the ends whose clipping alone costs more than `budget`; budgets only shrink.
    pub(super) fn rule_out(&mut self, budget: f64) {
        let bound = self.bounds[self.bound].as_mut();
        bound.expect("made when it was taken").rule_out(budget);
    }

    /// The least number of levels that is not ruled out, and the least that clips nothing.
    pub(super) fn levels(&self, step: f64) -> (usize, usize) {
        let innermost = self.in_use().innermost();
        (levels_to(innermost, step), levels_to(self.counts.len(), step))
    }

    /// What ending with a level costs at least, with its share of `N ln(1 - T / N)`, beyond its cells.
    pub(super) fn least_end(&self, level: usize) -> f64 {
        self.in_use().least_in(self.bin(level))
    }

    /// What ending with any of the levels up to one costs at least.
    pub(super) fn least_end_to(&self, level: usize) -> f64 {
        self.in_use().least_to(self.bin(level))
    }

    /// The bin that a level's cell ends in.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bin's index")]
    fn bin(&self, level: usize) -> usize {
        self.edge(level) as usize
    }

    /// Begins with a step.
    pub(super) fn begin(&mut self, step: f64) {
        (self.step, self.done) = (step, 0);
    }

    /// What the cells of the first levels lose at least, or of so many of them that it is more than `limit`.
    #[expect(clippy::cast_possible_truncation, reason = "rounded to f32")]
    pub(super) fn common_loss(&mut self, levels: usize, limit: f64, kernels: &dyn Kernels) -> f64 {
        // Rounding must not end it too early: a little more, or infinity.
        let limit = (limit * (1.0 + 1e-4)) as f32;
        surely(self.losses.add_up(self.step, levels, limit, kernels))
    }

    /// What each cell of `count` levels from `first` on loses at least, but for rounding.
    pub(super) fn losses(&mut self, first: usize, count: usize, kernels: &dyn Kernels) -> &[f32] {
        let whole = count.next_multiple_of(VECTORS);
        if self.lost.len() < whole {
            self.lost.resize(whole, 0.0);
        }
        self.losses.of(self.step, first, &mut self.lost[..whole], kernels);
        &self.lost[..count]
    }

    /// What the cells up to a level lose.
    pub(super) fn lost(&mut self, level: usize, kernels: &dyn Kernels) -> f64 {
        if level > self.done {
            self.cut(level, kernels);
        }
        self.n_log_n_beyond(0) - self.n_log_n_beyond(level) - if level == 0 { 0.0 } else { self.sums[level] }
    }

    /// Cuts the cells up to `level`, or a few more.
    fn cut(&mut self, level: usize, kernels: &dyn Kernels) {
        let (first, last) = (self.done + 1, level.next_multiple_of(VECTORS));
        if self.edges.len() <= last {
            self.edges.resize(last + 1, Tail::default());
            self.spreads.resize(last + 1, 0.0);
            self.sums.resize(last + 1, 0.0);
        }
        self.edges[0] = self.beyond(0);
        let (edges, spreads) = (&mut self.edges[first - 1..=last], &mut self.spreads[first..=last]);
        kernels.cut(&self.tails, self.step, first, edges, spreads);
        let mut sum = self.sums[first - 1];
        for (spread, total) in spreads.iter().zip(&mut self.sums[first..=last]) {
            sum += spread;
            *total = sum;
        }
        self.done = last;
    }

    /// How many values lie beyond a level.
    pub(super) fn clipped(&self, level: usize) -> f64 {
        self.beyond(level).mass
    }

    /// What lies beyond a level's cell.
    fn beyond(&self, level: usize) -> Tail {
        beyond(&self.tails, self.edge(level))
    }

    /// The outer edge of a level's cell.
    fn edge(&self, level: usize) -> f64 {
        (to_f64(level) + 0.5) * self.step
    }

    fn n_log_n_beyond(&self, level: usize) -> f64 {
        let (i, rest) = locate(self.edge(level), self.n_log_n.len() - 2);
        let (bin, next) = (self.n_log_n[i], self.n_log_n[i + 1]);
        next + rest * (bin - next)
    }

    /// What clipping to the last cell costs.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bin's index")]
    pub(super) fn end(&self, level: usize) -> f64 {
        let outside = self.beyond(level);
        let clipped = outside.mass;
        if clipped == 0.0 {
            return 0.0;
        }
        if level == 0 || clipped > self.total / 4.0 {
            return f64::INFINITY; // all values of this side would be clipped to zero, or too many
        }
        let inside = self.beyond(level - 1);
        let (cell, bins) = (inside.mass - clipped, inside.bins - outside.bins);
        if cell <= 0.0 {
            return f64::INFINITY; // with no mass in the cell, Q has nothing where P has the clipped values
        }
        let edge = self.edge(level);
        let i = (edge - 0.5) as usize;
        let length = (edge - to_f64(i)).min(1.0);
        let bin = self.tails[i].mass - self.tails[i + 1].mass;
        let mass = bin * length + clipped;
        let density = log_ratio(cell, bins);
        let joined = mass * ln(mass / length) - (self.n_log_n[i] - self.n_log_n[i + 1]) * length;
        if bin > 0.0 {
            joined - clipped * density
        } else {
            // This part of a bin is not empty any more, and the cell's mass is spread over it too.
            let spread = ln(1.0 + length / bins);
            joined - clipped * (density - spread) + cell * spread
        }
    }
}

fn log2(power: f64) -> usize {
    (power.to_bits() >> 52) as usize - 1023
}

/// The least number of levels whose cells reach so many bins.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "at most the number of bins"
)]
fn levels_to(bins: usize, step: f64) -> usize {
    let least = (to_f64(bins) / step - 0.5).max(0.0);
    let whole = least as usize;
    whole + usize::from(to_f64(whole) < least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{calibration::entropy::bound::share, kernels};

    /// What is ruled out never costs less than its bound says: tails of any slope, spikes, holes.
    #[test]
    fn bounds_hold() {
        let mut state = 1u64;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let (mut bounded, mut lost_sum, mut bound_sum) = (0, 0.0, 0.0);
        for case in 0..300 {
            let (slope, size, holes) = (0.7 + 0.03 * f64::from(case % 10), 10f64.powi(case % 5), random(4));
            let counts: Vec<f64> = (0..60)
                .map(|i| {
                    let spike = if random(15) == 0 { 20.0 } else { 1.0 };
                    let expected = size * slope.powi(i) * spike * to_f64(usize::try_from(random(100)).unwrap_or(0));
                    if random(4) < holes { 0.0 } else { expected.ceil() }
                })
                .chain([1.0])
                .collect();
            let (total, extent) = (counts.iter().sum(), to_f64(counts.len()));
            let mut cells = Cells::new(&Side::new(counts, extent), total);
            for (step, width) in [(4.0, 4.0), (2.71, 4.0), (2.0, 2.0), (1.3, 8.0), (1.0, 1.0)] {
                cells.bound(width);
                cells.begin(step);
                let (_, most) = cells.levels(step);
                let mut lost_before = cells.lost(0, kernels::current());
                for level in 1..=most {
                    let (clipped, lost) = (cells.clipped(level), cells.lost(level, kernels::current()));
                    let (cost, least) = (
                        cells.end(level) - clipped * share(clipped, total),
                        cells.least_end(level),
                    );
                    let bound = f64::from(cells.losses(level, 1, kernels::current())[0]);
                    let what = format!(
                        "case {case}, step {step}, level {level}: {cost} {least}, {lost} {lost_before} {bound}"
                    );
                    let rounding = 1e-9 * total;
                    assert!(
                        bound >= 0.0 && lost - lost_before >= bound * (1.0 - 1e-5) - rounding,
                        "{what}"
                    );
                    assert!(cost >= least - rounding, "{what}");
                    assert!(cost >= cells.least() - rounding, "{what}");
                    assert!(cost >= cells.least_end_to(level) - rounding, "{what}");
                    bounded += usize::from(cost.is_finite() && least > 0.2 * cost && cost > 0.0);
                    (lost_sum, bound_sum) = (lost_sum + lost - lost_before, bound_sum + bound);
                    lost_before = lost;
                }
            }
        }
        assert!(bound_sum > 0.8 * lost_sum, "{bound_sum} of {lost_sum}");
        assert!(bounded > 100, "bounds that bite: {bounded}");
    }
}
