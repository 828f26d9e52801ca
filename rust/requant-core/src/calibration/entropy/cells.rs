//! One side of zero, cut into the cells of levels.

use std::ops::RangeInclusive;

use crate::calibration::{
    logarithm::Logarithm,
    model::{Side, locate, to_f64_len},
};

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
            let bin = Sums { mass, n_log_n: n_log_n(mass, log), bins: if mass > 0.0 { 1.0 } else { 0.0 } };
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
    /// `N ln((N - T) / N) >= -2 ln 2 T`. So an end that clips `t`, with `n` in its bin, costs at least
    /// `(n + t) ln(n + t) - n ln n - t ln q - 2 ln 2 t`, which is convex in `t`, least where `n + t = q e^(2 ln 2 - 1)`, and
    /// rises with `n`. The cells before it cost at least nothing, by the log-sum inequality.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the number of bins")]
    fn bound(&mut self, counts: &[f64], widest: f64, log: &Logarithm) {
        const CHORD: f64 = 2.0 * std::f64::consts::LN_2;
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
                let (q, n) = (fullest[i.saturating_sub(widest as usize + 2)], counts[i].min(counts[i.saturating_sub(1)]));
                let t = (q * (CHORD - 1.0).exp() - n).clamp(least, most);
                n_log_n(n + t, log) - n_log_n(n, log) - t * (if q > 0.0 { log.of(q) } else { 0.0 } + CHORD)
            })
            .collect();
        self.slack = -self.least_cost.iter().copied().fold(0.0, f64::min);
    }

    /// Leaves out the ends whose clipping alone costs more than `budget`; budgets only shrink.
    pub(super) fn rule_out(&mut self, budget: f64) {
        let worse = self.least_cost[self.innermost..].iter().take_while(|cost| **cost > budget);
        self.innermost += worse.count();
    }

    /// The least number of levels that is not ruled out, and the least that clips nothing.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the number of bins")]
    pub(super) fn levels(&self, step: f64) -> (usize, usize) {
        let levels = |bins: usize| (to_f64_len(bins) / step - 0.5).ceil().max(0.0) as usize;
        (levels(self.innermost), levels(self.from.len() - 1))
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

    /// What it costs to end with each of these levels.
    ///
    /// In three short loops: one long one keeps too few cells in flight to hide the latency of a logarithm.
    pub(super) fn costs(&mut self, step: f64, ends: RangeInclusive<usize>, log: &Logarithm) -> &[End] {
        let edge = |level: usize| (to_f64_len(level) + 0.5) * step;
        self.cut.clear();
        let mut outside = self.beyond(edge(0));
        for level in 0..*ends.end() {
            let beyond = self.beyond(edge(level + 1));
            self.cut.push((outside.minus(beyond), beyond.mass));
            outside = beyond;
        }
        self.shapes.clear();
        self.shapes.extend(self.cut.iter().map(|(cell, _)| cell.shape(log)));
        self.ends.clear();
        let mut total = 0.0;
        if *ends.start() == 0 {
            // With no level on this side all its values would be clipped to zero: no candidate, unless there are none.
            let clipped = self.beyond(edge(0)).mass;
            self.ends.push(End { cost: if clipped > 0.0 { f64::INFINITY } else { 0.0 }, clipped });
        }
        for (i, ((cell, clipped), (shape, density))) in self.cut.iter().zip(&self.shapes).enumerate() {
            total += shape;
            if i + 1 >= *ends.start() {
                let end = if *clipped > 0.0 { self.end(*cell, *density, *clipped, edge(i + 1), log) } else { 0.0 };
                self.ends.push(End { cost: total + end, clipped: *clipped });
            }
        }
        &self.ends
    }

    /// What clipping to the last cell costs.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a bin's index")]
    fn end(&self, cell: Sums, density: f64, clipped: f64, edge: f64, log: &Logarithm) -> f64 {
        let i = (edge - 0.5) as usize;
        let bin = self.from[i].minus(self.from[i + 1]);
        let joined = n_log_n(bin.mass + clipped, log) - bin.n_log_n;
        if cell.mass == 0.0 || clipped > self.limit {
            f64::INFINITY // with no mass in the cell, Q has nothing where P has the clipped values
        } else if bin.mass > 0.0 {
            joined - clipped * density
        } else {
            // One more bin is not empty, and the cell's mass is spread over it too.
            let spread = log.of(1.0 + 1.0 / cell.bins);
            joined - clipped * (density - spread) + cell.mass * spread
        }
    }
}
