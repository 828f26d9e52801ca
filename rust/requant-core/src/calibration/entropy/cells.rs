//! One side of zero, cut into the cells of levels.

use std::ops::RangeInclusive;

use crate::calibration::{
    logarithm::Logarithm,
    model::{Side, locate, to_f64_len},
};

/// `ln(1 - x) >= -CHORD x` up to 1/2, the share that both ends together may clip.
pub(super) const CHORD: f64 = 2.0 * std::f64::consts::LN_2;

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
    fn plus_times(self, other: Self, factor: f64) -> Self {
        Self {
            mass: self.mass + factor * other.mass,
            n_log_n: self.n_log_n + factor * other.n_log_n,
            bins: self.bins + factor * other.bins,
        }
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        Self {
            mass: self.mass - other.mass,
            n_log_n: self.n_log_n - other.n_log_n,
            bins: self.bins - other.bins,
        }
    }

    /// What a cell loses by being one level, and the logarithm of its density in `Q`.
    #[inline(always)]
    fn shape(self, log: &Logarithm) -> (f64, f64) {
        if self.mass > 0.0 {
            let density = log.of(self.mass / self.bins);
            (self.n_log_n - self.mass * density, density)
        } else {
            (0.0, f64::NEG_INFINITY)
        }
    }
}

fn n_log_n(n: f64, log: &Logarithm) -> f64 {
    if n > 0.0 { n * log.of(n) } else { 0.0 }
}

/// What the level of zero itself loses.
pub(super) fn centre(negative: &Cells, positive: &Cells, step: f64, log: &Logarithm) -> f64 {
    let half = |side: &Cells| side.from[0].minus(side.beyond(step / 2.0));
    half(negative).plus_times(half(positive), 1.0).shape(log).0
}

/// One side of zero where it ends with some level.
#[derive(Clone)]
pub(super) struct End {
    /// Of the cells from level 1, and of clipping.
    pub(super) cost: f64,
    /// How many values are clipped.
    pub(super) clipped: f64,
}

pub(super) struct Cells {
    /// Sums of each bin and all bins beyond it, and a zero.
    from: Vec<Sums>,
    /// What clipping costs at least, with the end in this bin.
    least_cost: Vec<f64>,
    /// No end that lies in an earlier bin can win.
    innermost: usize,
    /// How far below zero this side's part of a candidate's cost can be.
    pub(super) slack: f64,
    /// More must not be clipped.
    limit: f64,
    // Room for `costs`: each cell with what lies beyond it, its shape and density, and the ends.
    cut: Vec<(Sums, f64)>,
    shapes: Vec<(f64, f64)>,
    ends: Vec<End>,
}

impl Cells {
    pub(super) fn new(side: &Side, total: f64, widest: f64, log: &Logarithm) -> Self {
        let mut from = vec![Sums::default(); side.counts.len() + 1];
        for (i, &mass) in side.counts.iter().enumerate().rev() {
            let bin = Sums {
                mass,
                n_log_n: n_log_n(mass, log),
                bins: if mass > 0.0 { 1.0 } else { 0.0 },
            };
            from[i] = from[i + 1].plus_times(bin, 1.0);
        }
        let mut cells = Self {
            from,
            least_cost: Vec::new(),
            innermost: 0,
            slack: 0.0,
            limit: total / 4.0,
            cut: Vec::new(),
            shapes: Vec::new(),
            ends: Vec::new(),
        };
        cells.bound(&side.counts, widest, log);
        cells
    }

    /// Fills in `least_cost` and `slack`.
    ///
    /// `Q`'s density in the last cell is at most that of its fullest bin, `q`. With at most half of the values clipped,
    /// `N ln((N - T) / N) >= -CHORD T`. So an end that clips `t`, with `m` in its part of a bin, costs at least
    /// `(m + t) ln(m + t) - m ln m - t ln q - CHORD t`, which is convex in `t`, least where `m + t = q e^(CHORD - 1)`, and
    /// rises with `m`, of which there is at least half a bin. The cells cost at least nothing, by the log-sum inequality.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most the number of bins"
    )]
    fn bound(&mut self, counts: &[f64], widest: f64, log: &Logarithm) {
        let mut fullest = counts.to_vec();
        for i in (1..fullest.len()).rev() {
            fullest[i - 1] = fullest[i - 1].max(fullest[i]);
        }
        self.least_cost = (0..counts.len())
            .map(|i| {
                let (least, most) = (self.from[i + 1].mass, self.from[i].mass);
                if least > self.limit {
                    return f64::INFINITY;
                }
                let q = fullest[i.saturating_sub(widest as usize + 2)].max(1.0);
                let m = counts[i].min(counts[i.saturating_sub(1)]) / 2.0;
                let t = (q * (CHORD - 1.0).exp() - m).clamp(least, most);
                n_log_n(m + t, log) - n_log_n(m, log) - t * (log.of(q) + CHORD)
            })
            .collect();
        self.slack = -self.least_cost.iter().copied().fold(0.0, f64::min);
    }

    /// Leaves out the ends whose clipping alone costs more than `budget`; budgets only shrink.
    pub(super) fn rule_out(&mut self, budget: f64) {
        let worse = self.least_cost[self.innermost..]
            .iter()
            .take_while(|cost| **cost > budget);
        self.innermost += worse.count();
    }

    /// The least number of levels that is not ruled out, and the least that clips nothing.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most the number of bins"
    )]
    pub(super) fn levels(&self, step: f64) -> (usize, usize) {
        let levels = |bins: usize| (to_f64_len(bins) / step - 0.5).ceil().max(0.0) as usize;
        (levels(self.innermost), levels(self.from.len() - 1))
    }

    /// What clipping at `edge` costs at least, with its share of `N ln((N - T) / N)`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bin's index")]
    fn least_cost(&self, edge: f64) -> f64 {
        self.least_cost[edge as usize]
    }

    /// Sums of what lies beyond `x`.
    #[inline(always)]
    fn beyond(&self, x: f64) -> Sums {
        let (i, rest) = locate(x);
        match self.from.get(i..i + 2) {
            Some(&[bin, next]) => next.plus_times(bin.minus(next), rest),
            _ => Sums::default(),
        }
    }

    /// What it costs to end with each of these levels; infinity where it is certain that no cost within `budget` comes of
    /// it, the budget being what a candidate may cost beyond its centre and [`Cells::slack`] of both sides.
    pub(super) fn costs(&mut self, step: f64, ends: RangeInclusive<usize>, budget: f64, log: &Logarithm) -> &[End] {
        /// Short loops over a few cells: one long loop would keep too few in flight to hide a logarithm's latency.
        const BLOCK: usize = 32;
        let (first, last) = (*ends.start(), *ends.end());
        let edge = |level: usize| (to_f64_len(level) + 0.5) * step;
        let (mut level, mut outside, mut total) = (0, self.beyond(edge(0)), 0.0);
        self.ends.clear();
        if first == 0 {
            // With no level on this side all its values would be clipped to zero: no candidate, unless there are none.
            let cost = if outside.mass > 0.0 { f64::INFINITY } else { 0.0 };
            self.ends.push(End {
                cost,
                clipped: outside.mass,
            });
        }
        while level < last && total <= budget {
            let block = level + 1..=last.min(level + BLOCK);
            self.cut.clear();
            for level in block.clone() {
                let beyond = self.beyond(edge(level));
                self.cut.push((outside.minus(beyond), beyond.mass));
                outside = beyond;
            }
            self.shapes.clear();
            self.shapes.extend(self.cut.iter().map(|(cell, _)| cell.shape(log)));
            for ((cell, clipped), (shape, density)) in self.cut.iter().zip(&self.shapes) {
                level += 1;
                total += shape;
                if level >= first {
                    let end = if *clipped == 0.0 {
                        0.0
                    } else if total + self.least_cost(edge(level)) > budget - self.slack {
                        f64::INFINITY
                    } else {
                        self.end(*cell, *density, *clipped, edge(level), log)
                    };
                    self.ends.push(End {
                        cost: total + end,
                        clipped: *clipped,
                    });
                }
            }
        }
        self.ends.resize(
            last - first + 1,
            End {
                cost: f64::INFINITY,
                clipped: 0.0,
            },
        );
        &self.ends
    }

    /// What clipping to the last cell costs.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bin's index")]
    fn end(&self, cell: Sums, density: f64, clipped: f64, edge: f64, log: &Logarithm) -> f64 {
        let i = (edge - 0.5) as usize;
        let length = (edge - to_f64_len(i)).min(1.0);
        let bin = self.from[i].minus(self.from[i + 1]);
        let mass = bin.mass * length + clipped;
        let joined = mass * log.of(mass / length) - bin.n_log_n * length;
        if cell.mass == 0.0 || clipped > self.limit {
            f64::INFINITY // with no mass in the cell, Q has nothing where P has the clipped values
        } else if bin.mass > 0.0 {
            joined - clipped * density
        } else {
            // This part of a bin is not empty any more, and the cell's mass is spread over it too.
            let spread = log.of(1.0 + length / cell.bins);
            joined - clipped * (density - spread) + cell.mass * spread
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is ruled out never costs less than its bound says: tails of any slope, spikes, holes.
    #[test]
    fn bounds_hold() {
        let log = Logarithm::new();
        let mut state = 1u64;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let mut bounded = 0;
        for case in 0..300 {
            let (slope, size, holes) = (0.7 + 0.03 * f64::from(case % 10), 10f64.powi(case % 5), random(4));
            let counts: Vec<f64> = (0..60)
                .map(|i| {
                    let spike = if random(15) == 0 { 20.0 } else { 1.0 };
                    let expected = size * slope.powi(i) * spike * to_f64_len(usize::try_from(random(100)).unwrap_or(0));
                    if random(4) < holes { 0.0 } else { expected.ceil() }
                })
                .chain([1.0])
                .collect();
            let (total, extent, widest) = (counts.iter().sum(), to_f64_len(counts.len()), 4.0);
            let mut cells = Cells::new(&Side::new(counts, extent), total, widest, &log);
            for step in [1.0, 1.3, 2.0, 2.71, 4.0] {
                let (_, most) = cells.levels(step);
                let ends = cells.costs(step, 1..=most, f64::INFINITY, &log).to_vec();
                for (level, end) in (1..).zip(ends) {
                    let cost = end.cost - CHORD * end.clipped;
                    assert!(
                        cost >= -cells.slack - 1e-9 * total,
                        "case {case}, step {step}, level {level}"
                    );
                    if end.clipped > 0.0 {
                        let least = cells.least_cost((to_f64_len(level) + 0.5) * step);
                        assert!(
                            cost >= least - 1e-9 * total,
                            "case {case}, step {step}, level {level}: {cost} {least}"
                        );
                        bounded += usize::from(end.cost.is_finite() && least > 0.2 * cost && cost > 0.0);
                    }
                }
            }
        }
        assert!(bounded > 100, "bounds that bite: {bounded}");
    }
}
