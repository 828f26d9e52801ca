//! What clipping costs at least: ends that cannot win are ruled out by it.

use std::f64::consts::LN_2;

use crate::kernels::{Tail, density::ln};

pub(super) fn n_log_n(n: f64) -> f64 {
    if n > 0.0 { n * ln(n) } else { 0.0 }
}

/// `e^x` from 0 to 1/2, within 3e-5 of it.
fn exp(x: f64) -> f64 {
    1.0 + x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0))))
}

/// The share `c` of an end that clips `t` in what is clipped: `N ln(1 - T / N) >= -c t - c u`, if `u` is clipped at the other end.
///
/// `N ln(1 - T / N)` is concave in `T = t + u`, so that it is at least `N / 2 ln(1 - 2t / N)` and the same of `u`; and `-ln(1 - x) <= c x` with
/// `c = (2 - x) / (2 (1 - x))`, which rises with `x = 2t / N`.
pub(super) fn share(clipped: f64, total: f64) -> f64 {
    let x = 2.0 * clipped.min(total / 4.0) / total;
    (2.0 - x) / (2.0 - 2.0 * x)
}

/// The bins of a side: their values, `n ln(n)` of these, the sums of each bin and all beyond it, the fullest of each bin and all beyond it.
#[derive(Clone, Copy)]
pub(super) struct Bins<'a> {
    pub(super) counts: &'a [f64],
    pub(super) own: &'a [f64],
    pub(super) tails: &'a [Tail],
    pub(super) fullest: &'a [f64],
}

/// What clipping costs at least, by the bin that the end lies in, for all steps up to a width.
///
/// `Q`'s density in the last cell is at most that of its fullest bin, `q`. So an end that clips `t`, with `m` in its part of a bin, costs at
/// least
///
/// ```text
/// (m + t) ln(m + t) - m ln m - t ln q - c t,        c the share of the most that can be clipped there
/// ```
///
/// which is convex in `t`, least where `m + t = q e^(c - 1)`, and rises with `m`, of which there is at least half a bin. The cells cost at least
/// nothing, by the log-sum inequality.
pub(super) struct Bound {
    least: Vec<f64>,
    /// The least of all bins up to this one that are not ruled out.
    before: Vec<f64>,
    /// The least of this bin and all beyond it, or of not clipping.
    beyond: Vec<f64>,
    /// No end that lies in an earlier bin can win.
    innermost: usize,
}

impl Bound {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most the number of bins"
    )]
    pub(super) fn new(bins: &Bins<'_>, total: f64, width: f64) -> Self {
        let &Bins {
            counts,
            own,
            tails,
            fullest,
        } = bins;
        let bins = counts.len();
        let (mut least, mut beyond) = (vec![f64::INFINITY; bins], vec![0.0f64; bins + 1]);
        let (mut q, mut log_q) = (1.0, 0.0);
        for i in (0..bins).rev() {
            let (outer, inner) = (tails[i + 1].mass, tails[i].mass.min(total / 4.0));
            beyond[i] = beyond[i + 1];
            if outer > inner {
                continue; // too many
            }
            let fullest = fullest[i.saturating_sub(width as usize + 2)];
            if fullest != q {
                (q, log_q) = (fullest, ln(fullest));
            }
            let c = share(inner, total);
            let before = i.saturating_sub(1);
            let fewest = if counts[i] < counts[before] { i } else { before };
            // Half a bin: (n / 2) ln(n / 2).
            let (m, m_log_m) = (counts[fewest] / 2.0, (own[fewest] - counts[fewest] * LN_2) / 2.0);
            let t = if m + outer > 2.0 * q {
                outer // as e^(c - 1) is less than 2
            } else {
                (q * exp(c - 1.0) - m).clamp(outer, inner)
            };
            // Where the function is least it is so flat that what is off by 1e-5 counts for less than 1e-9.
            least[i] = n_log_n(m + t) - m_log_m - t * (log_q + c) - 1e-9 * q;
            beyond[i] = beyond[i].min(least[i]);
        }
        let mut before = least.clone();
        for i in 1..bins {
            before[i] = before[i].min(before[i - 1]);
        }
        Self {
            least,
            before,
            beyond,
            innermost: 0,
        }
    }

    /// Begins with a search: nothing is ruled out.
    pub(super) fn start(&mut self) {
        self.innermost = 0;
    }

    /// What an end in any of the bins up to one costs at least.
    pub(super) fn least_to(&self, bin: usize) -> f64 {
        match self.before.get(bin) {
            Some(least) => *least,
            None => self.before.last().map_or(0.0, |least| least.min(0.0)),
        }
    }

    /// What an end that is not ruled out costs at least.
    pub(super) fn least(&self) -> f64 {
        self.beyond[self.innermost]
    }

    /// What an end in a bin costs at least.
    pub(super) fn least_in(&self, bin: usize) -> f64 {
        self.least.get(bin).copied().unwrap_or(0.0)
    }

    /// Rules out the ends whose clipping alone costs more than `budget`; budgets only shrink.
    pub(super) fn rule_out(&mut self, budget: f64) {
        let worse = self.least[self.innermost..].iter().take_while(|cost| **cost > budget);
        self.innermost += worse.count();
    }

    /// The first bin that is not ruled out.
    pub(super) fn innermost(&self) -> usize {
        self.innermost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What both ends clip costs at least the share of each.
    #[test]
    fn shares_hold() {
        for (t, u) in (0..=50).flat_map(|t| (0..=50).map(move |u| (f64::from(t) / 200.0, f64::from(u) / 200.0))) {
            let both = t * share(t, 1.0) + u * share(u, 1.0);
            assert!((1.0 - t - u).ln() >= -both - 1e-12, "{t} {u}");
        }
    }
}
