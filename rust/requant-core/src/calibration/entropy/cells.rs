//! One side of zero, cut into the cells of levels.

use super::{bound::Bound, losses::Losses};
use crate::{
    calibration::model::Side,
    kernels::{
        Bins, Kernels, STEPS, Tail,
        density::{beyond, ln, locate, log_ratio, to_f64},
    },
};

/// Kernels take whole multiples of so many cells at once.
const VECTORS: usize = 16;

/// Cells after which it may turn out that no more need to be added up.
const LOOK: usize = 16;

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
    /// The values of a bin or of that before, whichever are fewer, and `n ln(n)` of these.
    fewest: Vec<f64>,
    fewest_log: Vec<f64>,
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
    /// What cells of neighbouring steps lose at least, added up; nothing in the first entry.
    added: Vec<[f32; STEPS]>,
    /// What lies beyond each level's cell, as far as it has been cut: up to level `done`.
    edges: Vec<Tail>,
    /// `M ln(M / s)` of each level's cell, and of all up to it.
    spreads: Vec<f64>,
    sums: Vec<f64>,
    done: usize,
}

impl Cells {
    pub(super) fn new(side: &Side, total: f64, kernels: &dyn Kernels) -> Self {
        let bins = side.counts.len().max(1);
        let (mut own, mut fewest_log) = (vec![0.0; side.counts.len()], vec![0.0; side.counts.len()]);
        let mut fewest = side.counts.clone();
        for (fewest, before) in fewest.iter_mut().skip(1).zip(&side.counts) {
            *fewest = fewest.min(*before);
        }
        kernels.n_log_n(&side.counts, &mut own);
        kernels.n_log_n(&fewest, &mut fewest_log);
        let (mut tails, mut beyond) = (vec![Tail::default(); bins + 1], vec![0.0; bins + 1]);
        let (mut tail, mut sum, mut most) = (Tail::default(), 0.0, 0.0f64);
        let mut fullest = vec![0.0; side.counts.len()];
        for (i, &mass) in side.counts.iter().enumerate().rev() {
            tail.mass += mass;
            tail.bins += if mass > 0.0 { 1.0 } else { 0.0 };
            sum += own[i];
            most = most.max(mass);
            (tails[i], beyond[i], fullest[i]) = (tail, sum, most);
        }
        Self {
            losses: Losses::new(&tails, &beyond),
            added: Vec::new(),
            tails,
            n_log_n: beyond,
            fewest,
            fewest_log,
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
    pub(super) fn bound(&mut self, width: f64, kernels: &dyn Kernels) {
        let bound = log2(width);
        self.bound = bound;
        if self.bounds.len() <= bound {
            self.bounds.resize_with(bound + 1, || None);
        }
        if self.bounds[bound].is_none() {
            let bins = Bins {
                fewest: &self.fewest,
                n_log_n: &self.fewest_log,
                beyond: self.losses.masses(),
                fullest: &self.fullest,
                total: self.total,
            };
            self.bounds[bound] = Some(Bound::new(&bins, 1 << bound, kernels));
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

    /// The least number of levels that is not ruled out.
    pub(super) fn inner_levels(&self, step: f64) -> usize {
        levels_to(self.in_use().innermost(), step)
    }

    /// The least number of levels that clips nothing.
    pub(super) fn outer_levels(&self, step: f64) -> usize {
        levels_to(self.fewest.len(), step)
    }

    /// What ending with a level costs at least, with its share of `N ln(1 - T / N)`, beyond its cells.
    pub(super) fn least_end(&self, level: usize) -> f64 {
        self.in_use().least_in(self.bin(level))
    }

    /// What ending with a level costs at least, for all steps from `narrowest` to this one.
    pub(super) fn least_ends(&self, level: usize, narrowest: f64) -> f64 {
        let first = bin((to_f64(level) + 0.5) * narrowest);
        self.in_use().least_within(first, self.bin(level))
    }

    /// The bin that a level's cell ends in.
    fn bin(&self, level: usize) -> usize {
        bin(self.edge(level))
    }

    /// Begins with a step.
    pub(super) fn begin(&mut self, step: f64) {
        (self.step, self.done) = (step, 0);
    }

    /// Adds to `sum` what the cells of the first levels of neighbouring steps lose at least, but for rounding; `false`
    /// where all sums exceed `limit`.
    pub(super) fn add_common(
        &mut self,
        steps: &[f64; STEPS],
        levels: usize,
        limit: f32,
        sum: &mut [f32; STEPS],
        kernels: &dyn Kernels,
    ) -> bool {
        let mut sums = [[0.0; STEPS]; LOOK];
        for done in (0..levels).step_by(LOOK) {
            let sums = &mut sums[..LOOK.min(levels - done)];
            self.losses.add_up(steps, done + 1, sum, sums, kernels);
            *sum = sums[sums.len() - 1];
            if sum.iter().all(|sum| *sum > limit) {
                return false;
            }
        }
        true
    }

    /// Adds up what the next `count` cells from that of level `first` on lose at least, but for rounding.
    pub(super) fn add_each(&mut self, steps: &[f64; STEPS], first: usize, count: usize, kernels: &dyn Kernels) {
        self.added.resize(count + 1, [0.0; STEPS]);
        let from = [0.0; STEPS];
        self.losses.add_up(steps, first, &from, &mut self.added[1..], kernels);
    }

    /// These sums, from none of the cells to all.
    pub(super) fn added(&self) -> &[[f32; STEPS]] {
        &self.added
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

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bin's index")]
fn bin(edge: f64) -> usize {
    edge as usize
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
    use crate::{
        calibration::entropy::losses::on_grid,
        kernels::{self, density::share},
    };

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
            let mut cells = Cells::new(&Side::new(counts, extent), total, kernels::current());
            for (step, width) in [(4.0, 4.0), (2.71, 4.0), (2.0, 2.0), (1.3, 8.0), (1.0, 1.0)] {
                cells.bound(width, kernels::current());
                cells.begin(step);
                let most = cells.outer_levels(step);
                let mut lost_before = cells.lost(0, kernels::current());
                for level in 1..=most {
                    let (clipped, lost) = (cells.clipped(level), cells.lost(level, kernels::current()));
                    let (cost, least) = (
                        cells.end(level) - clipped * share(clipped, total),
                        cells.least_end(level),
                    );
                    cells.add_each(&[on_grid(step); STEPS], level, 1, kernels::current());
                    let bound = f64::from(cells.added()[1][0]);
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
                    assert!(cost >= cells.least_ends(level, step) - rounding, "{what}");
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
