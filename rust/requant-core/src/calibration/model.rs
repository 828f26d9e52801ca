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

use crate::stats::Histogram;

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
    bins: Vec<Bin>,
}

/// Density within a bin, and the three functions at its outer edge.
#[derive(Clone, Copy)]
struct Bin {
    density: f64,
    beyond: f64,
    excess: f64,
    excess_sq: f64,
}

/// The least width of the last bin, for which the density stays finite.
const POINT: f64 = 1e-6;

/// Steps so fine that a sum over the levels equals an integral with its first correction.
const FINE: f64 = 0.125;

impl Side {
    pub(super) fn new(counts: Vec<f64>, extent: f64) -> Self {
        let end = extent.max(to_f64_len(counts.len()) - 1.0 + POINT);
        let mut side = Self {
            bins: Vec::with_capacity(counts.len()),
            counts,
            extent,
            end,
        };
        let (mut beyond, mut excess, mut excess_sq) = (0.0, 0.0, 0.0);
        for (i, count) in side.counts.iter().enumerate().rev() {
            let length = (end - to_f64_len(i)).min(1.0);
            let bin = Bin {
                density: count / length,
                beyond,
                excess,
                excess_sq,
            };
            side.bins.push(bin);
            (beyond, excess, excess_sq) = (bin.beyond(length), bin.excess(length), bin.excess_sq(length));
        }
        side.bins.reverse();
        side
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bins.is_empty()
    }

    /// How many magnitudes exceed `x`.
    pub(super) fn beyond(&self, x: f64) -> f64 {
        self.bin(x).map_or(0.0, |(bin, rest)| bin.beyond(rest))
    }

    /// Sum of what magnitudes exceed `x` by.
    pub(super) fn excess(&self, x: f64) -> f64 {
        self.bin(x).map_or(0.0, |(bin, rest)| bin.excess(rest))
    }

    /// Sum of the squares of what magnitudes exceed `x` by.
    pub(super) fn excess_sq(&self, x: f64) -> f64 {
        self.bin(x).map_or(0.0, |(bin, rest)| bin.excess_sq(rest))
    }

    /// The bin of `x`, and how far `x` is from its outer edge.
    #[inline(always)]
    fn bin(&self, x: f64) -> Option<(&Bin, f64)> {
        let (i, rest) = locate(x);
        Some((self.bins.get(i)?, rest.min(self.end - x).max(0.0)))
    }

    /// Sum of the squared errors of rounding to the levels `0, step .. levels * step`; see the module's page. Infinity, as
    /// soon as it is certain to exceed `limit`.
    pub(super) fn squared_error(&self, step: f64, levels: usize, limit: f64) -> f64 {
        /// Levels between looks at the limit.
        const STRIDE: usize = 16;
        if step <= FINE {
            // Midpoint rule: sum of step * excess(midpoints) = integral + step^2 / 24 * (change of beyond).
            let end = step * to_f64_len(levels);
            return self.excess_sq(end) + step * step / 12.0 * (self.beyond(0.0) - self.beyond(end));
        }
        let midpoint = |k: usize| (to_f64_len(k) + 0.5) * step;
        let (all, last) = (self.excess_sq(0.0), self.excess(midpoint(levels.max(1) - 1)));
        let mut sum = 0.0;
        for first in (0..levels).step_by(STRIDE) {
            let next = self.excess(midpoint(first));
            // Excess is convex, so that what is left of the sum is at most that of its chord.
            if all - step * (2.0 * sum + to_f64_len(levels - first) * (next + last)) > limit {
                return f64::INFINITY;
            }
            if next == 0.0 {
                break;
            }
            sum += (first..levels.min(first + STRIDE))
                .map(|k| self.excess(midpoint(k)))
                .sum::<f64>();
        }
        all - 2.0 * step * sum
    }

    /// The part of that error that clipping makes, and how many values are clipped: those half a step beyond the last
    /// level, where `(X - KD)^2 = (X - edge)^2 + D (X - edge) + D^2 / 4`.
    pub(super) fn overload(&self, step: f64, levels: usize) -> (f64, f64) {
        let Some((bin, rest)) = self.bin((to_f64_len(levels) + 0.5) * step) else {
            return (0.0, 0.0);
        };
        let clipped = bin.beyond(rest);
        (
            bin.excess_sq(rest) + step * (bin.excess(rest) + step / 4.0 * clipped),
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

impl Bin {
    #[inline(always)]
    fn beyond(&self, rest: f64) -> f64 {
        self.beyond + self.density * rest
    }

    #[inline(always)]
    fn excess(&self, rest: f64) -> f64 {
        self.excess + rest * (self.beyond + self.density * rest / 2.0)
    }

    #[inline(always)]
    fn excess_sq(&self, rest: f64) -> f64 {
        self.excess_sq + rest * (2.0 * self.excess + rest * (self.beyond + self.density * rest / 3.0))
    }
}

/// A bin that contains `x`, from 0 to 2^31, and how far `x` is from the bin's outer edge.
///
/// Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits: a third of the time that `as usize` takes. To
/// the nearest, so that `x - 1/2` gives the bin below an edge or the one above it, and either will do.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are meant")]
pub(super) fn locate(x: f64) -> (usize, f64) {
    const MAGIC: f64 = 1.5 * (1u64 << 52) as f64;
    let shifted = (x - 0.5) + MAGIC;
    (shifted.to_bits() as u32 as usize, shifted - MAGIC + 1.0 - x)
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 values")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "at most the number of levels")]
pub(super) fn to_f64_len(len: usize) -> f64 {
    len as f64
}
