//! A histogram as a density: mass spread evenly within each bin, zeros apart, each side of 0 by itself.
//!
//! All lengths are in bins. Since bins mirror each other in 0, both sides are the same type: magnitudes `X` from 0
//! outwards. Three functions of a magnitude `x` answer every question about squared error in constant time:
//!
//! ```text
//! beyond(x)    = how many X > x                                 linear within a bin
//! excess(x)    = sum of (X - x)  over X > x,   excess'    = -beyond       quadratic
//! excess_sq(x) = sum of (X - x)^2 over X > x,  excess_sq' = -2 excess     cubic
//! ```
//!
//! Rounding magnitudes to the nearest of the levels `0, D, 2D .. KD` errs by
//!
//! ```text
//! sum of (X - Q(X))^2 = excess_sq(0) - 2D * sum over k = 1..K of excess((k - 1/2) D)
//! ```
//!
//! because raising the level from `(k - 1)D` to `kD`, for the `X` beyond their midpoint `m`, takes
//! `(X - (k - 1)D)^2 - (X - kD)^2 = 2D(X - m)` off the error. Rounding and clipping are both in it: a value beyond `KD`
//! just never meets a higher level. A step costs one evaluation for each level, whatever the histogram's size.

use crate::{
    kernels::{
        self, Piece,
        density::{locate, to_f64 as to_f64_len},
    },
    stats::Histogram,
};

/// What the methods that optimise see of a tensor.
pub(super) struct Model {
    /// Magnitudes of the values below 0.
    pub(super) negative: Side,
    /// The values above 0.
    pub(super) positive: Side,
    /// All finite values, zeros included.
    pub(super) total: f64,
    /// Width of a bin, in reals.
    width: f64,
}

impl Model {
    pub(super) fn new(histogram: &Histogram) -> Self {
        let width = histogram.width();
        let (lo, hi) = histogram.range();
        let negative = Side::new(histogram.negative().map(to_f64).collect(), -f64::from(lo) / width);
        let positive = Side::new(histogram.positive().map(to_f64).collect(), f64::from(hi) / width);
        Self {
            total: to_f64(histogram.zeros()) + negative.beyond(0.0) + positive.beyond(0.0),
            negative,
            positive,
            width,
        }
    }

    /// The real that is `x` bins from 0. Only the largest f32 can round beyond f32.
    #[expect(clippy::cast_possible_truncation, reason = "rounded to f32")]
    pub(super) fn real(&self, x: f64) -> f32 {
        ((x * self.width) as f32).min(f32::MAX)
    }

    /// The square of a real for a square of bins.
    pub(super) fn real_sq(&self, x: f64) -> f64 {
        x * self.width * self.width
    }

    /// The inverse of [`Model::real`].
    pub(super) fn bins(&self, real: f32) -> f64 {
        f64::from(real) / self.width
    }

    /// Magnitudes of all values.
    pub(super) fn magnitudes(&self) -> Side {
        let (a, b) = (&self.negative.counts, &self.positive.counts);
        let (mut sum, shorter) = if a.len() > b.len() {
            (a.clone(), b)
        } else {
            (b.clone(), a)
        };
        sum.iter_mut().zip(shorter).for_each(|(sum, count)| *sum += count);
        Side::new(sum, self.negative.extent.max(self.positive.extent))
    }
}

/// The values on one side of 0.
pub(super) struct Side {
    /// Values in each bin.
    pub(super) counts: Vec<f64>,
    /// The largest magnitude.
    pub(super) extent: f64,
    /// Where the last bin's mass ends: at the largest magnitude, unless that is the bin's inner edge.
    end: f64,
    bins: Vec<Piece>,
}

/// The least width of the last bin, for which the density stays finite.
const POINT: f64 = 1e-6;

/// Steps so fine that a sum over the levels equals an integral with its first correction.
pub(super) const FINE: f64 = 0.125;

impl Side {
    pub(super) fn new(counts: Vec<f64>, extent: f64) -> Self {
        let end = extent.max(to_f64_len(counts.len()) - 1.0 + POINT);
        let mut bins = vec![Piece::default(); counts.len()];
        let (mut beyond, mut excess, mut excess_sq) = (0.0, 0.0, 0.0);
        for (i, (bin, count)) in bins.iter_mut().zip(&counts).enumerate().rev() {
            let length = (end - to_f64_len(i)).min(1.0);
            *bin = Piece {
                density: if length < 1.0 { count / length } else { *count },
                beyond,
                excess,
                excess_sq,
            };
            (beyond, excess, excess_sq) = (
                bin.beyond_point(length),
                bin.excess_over(length),
                bin.excess_sq_over(length),
            );
        }
        Self {
            counts,
            extent,
            end,
            bins,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bins.is_empty()
    }

    /// How many magnitudes exceed `x`.
    pub(super) fn beyond(&self, x: f64) -> f64 {
        self.bin(x).map_or(0.0, |(bin, rest)| bin.beyond_point(rest))
    }

    /// Sum of what magnitudes exceed `x` by.
    pub(super) fn excess(&self, x: f64) -> f64 {
        self.bin(x).map_or(0.0, |(bin, rest)| bin.excess_over(rest))
    }

    /// Sum of the squares of what magnitudes exceed `x` by.
    pub(super) fn excess_sq(&self, x: f64) -> f64 {
        self.bin(x).map_or(0.0, |(bin, rest)| bin.excess_sq_over(rest))
    }

    /// The bin of `x`, and how far `x` is from its outer edge.
    #[inline(always)]
    fn bin(&self, x: f64) -> Option<(&Piece, f64)> {
        let x = x.min(self.end);
        let (i, rest) = locate(x, self.bins.len().saturating_sub(1));
        Some((self.bins.get(i)?, rest.min(self.end - x)))
    }

    /// Sum of the squared errors of rounding to the levels `0, step .. levels * step`; see the module's page.
    pub(super) fn squared_error(&self, step: f64, levels: usize) -> f64 {
        let end = step * to_f64_len(levels);
        if step <= FINE || self.is_empty() {
            // Midpoint rule: sum of step * excess(midpoints) = integral + step^2 / 24 * (change of beyond).
            return self.excess_sq(end) + step * step / 12.0 * (self.beyond(0.0) - self.beyond(end));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most eight for each bin"
        )]
        let not_beyond = (self.end / step) as usize + 1;
        let sum = kernels::current().excess(&self.bins, self.end, step, 0, levels.min(not_beyond));
        self.excess_sq(0.0) - 2.0 * step * sum
    }

    /// The part of that error that clipping makes, and how many values are clipped: those half a step beyond the last
    /// level, where `(X - KD)^2 = (X - edge)^2 + D (X - edge) + D^2 / 4`.
    pub(super) fn overload(&self, step: f64, levels: usize) -> (f64, f64) {
        let Some((bin, rest)) = self.bin((to_f64_len(levels) + 0.5) * step) else {
            return (0.0, 0.0);
        };
        let clipped = bin.beyond_point(rest);
        (
            bin.excess_sq_over(rest) + step * (bin.excess_over(rest) + step / 4.0 * clipped),
            clipped,
        )
    }

    /// The smallest magnitude that at most `outside` values exceed.
    pub(super) fn quantile(&self, outside: f64) -> f64 {
        let i = self.bins.partition_point(|bin| bin.beyond > outside);
        if self.beyond(0.0) <= outside {
            return 0.0;
        }
        let bin = self.bins[i];
        let outer = (to_f64_len(i) + 1.0).min(self.end);
        (outer - (outside - bin.beyond) / bin.density).min(self.extent)
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 values")]
fn to_f64(count: u64) -> f64 {
    count as f64
}
