//! A histogram whose bins are found while the values stream by, and that merges without error.
//!
//! Bins lie on an absolute grid, mirrored in 0: value `v` falls into bin `trunc(v / 2^e)` for `v > 0`, and one less for
//! `v < 0`.
//!
//! ```text
//!            -2w     -w      0       w      2w
//!    ...  ----|-------|------|-------|-------|----  ...        w = 2^e
//!       bin -3  bin -2  bin -1  bin 0   bin 1   bin 2
//! ```
//!
//! `e` is the smallest exponent at which the bins from that of min(0, smallest) to that of max(0, largest) number at
//! most [`BINS`], so more than a quarter and, where all values have one sign, more than half of the bins lie within the
//! range. It only grows as values arrive, and growing by one merges bins `2i` and `2i + 1` into `i`. So the counts are
//! those of binning everything at the final `e`: the same for any order of values, cut into batches or merging.

use crate::{
    Result,
    kernels::{BINS, generic::slot},
};

/// Counts of the finite values seen. Zeros are counted apart: every scheme represents them without error.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// The range of the values, widened to contain 0.
    lo: f32,
    hi: f32,
    exponent: i32,
    zeros: u64,
    /// The nonzero values of bin `i`, at `i mod BINS`: no shifting while the range grows and `e` does not.
    counts: Box<[u64; BINS]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            lo: 0.0,
            hi: 0.0,
            exponent: MIN_EXPONENT,
            zeros: 0,
            counts: Box::new([0; BINS]),
        }
    }
}

impl Histogram {
    /// Width of a bin, a power of two.
    pub fn width(&self) -> f64 {
        2f64.powi(self.exponent)
    }

    /// Values that are 0 or -0.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// Edges of the bins that the range touches, ascending, one more than there are bins. At least one bin.
    pub fn edges(&self) -> Vec<f64> {
        let bins = self.negative_bins() + self.positive_bins().max(1);
        let first = -to_f64(self.negative_bins());
        (0..=bins).map(|i| (first + to_f64(i)) * self.width()).collect()
    }

    /// Values in each bin of [`Histogram::edges`]; the zeros are in the bin that begins with 0.
    pub fn counts(&self) -> Vec<u64> {
        let mut counts: Vec<u64> = self.nonzero_counts().collect();
        let zero = self.negative_bins();
        counts.resize(counts.len().max(zero + 1), 0);
        counts[zero] += self.zeros;
        counts
    }

    /// The range of the values, widened to contain 0.
    pub(crate) fn range(&self) -> (f32, f32) {
        (self.lo, self.hi)
    }

    /// Counts of the values above 0, from 0 outwards.
    pub(crate) fn positive(&self) -> impl DoubleEndedIterator<Item = u64> {
        self.counts[..self.positive_bins()].iter().copied()
    }

    /// Counts of the values below 0, from 0 outwards.
    pub(crate) fn negative(&self) -> impl DoubleEndedIterator<Item = u64> {
        self.counts[BINS - self.negative_bins()..].iter().rev().copied()
    }

    /// Counts of the nonzero values, ascending.
    pub(super) fn nonzero_counts(&self) -> impl Iterator<Item = u64> {
        self.negative().rev().chain(self.positive())
    }

    /// The histogram of values in `min..=max` whose [`Histogram::nonzero_counts`] `next` gives.
    pub(super) fn restore(min: f32, max: f32, zeros: u64, mut next: impl FnMut() -> Result<u64>) -> Result<Self> {
        let mut histogram = Self::default();
        histogram.grow(min, max);
        histogram.zeros = zeros;
        let (negative, positive) = (histogram.negative_bins(), histogram.positive_bins());
        for slot in (BINS - negative..BINS).chain(0..positive) {
            histogram.counts[slot] = next()?;
        }
        Ok(histogram)
    }

    /// All values, if they fit 64 bits.
    pub(super) fn total(&self) -> Option<u64> {
        self.counts
            .iter()
            .try_fold(self.zeros, |sum, count| sum.checked_add(*count))
    }

    fn positive_bins(&self) -> usize {
        bins(self.hi, self.exponent)
    }

    fn negative_bins(&self) -> usize {
        bins(-self.lo, self.exponent)
    }

    /// `1 / width`, which f32 holds exactly.
    pub(super) fn inv_width(&self) -> f32 {
        power_of_two(-self.exponent)
    }

    /// Whether values in `lo..=hi` can be counted without widening the bins.
    pub(super) fn has_room(&self, lo: f32, hi: f32) -> bool {
        exponent(lo.min(self.lo), hi.max(self.hi)) == self.exponent
    }

    /// Widens the range to contain `lo..=hi`, and the bins as that demands.
    pub(super) fn grow(&mut self, lo: f32, hi: f32) {
        let coarser = exponent(lo.min(self.lo), hi.max(self.hi));
        let merged = coarser - self.exponent;
        if merged > 0 {
            let mut counts = Box::new([0; BINS]);
            for (i, count) in self.positive().enumerate() {
                counts[i >> merged.min(31)] += count;
            }
            for (i, count) in self.negative().enumerate() {
                counts[BINS - 1 - (i >> merged.min(31))] += count;
            }
            (self.exponent, self.counts) = (coarser, counts);
        }
        (self.lo, self.hi) = (lo.min(self.lo), hi.max(self.hi));
    }

    /// Adds counts of the present grid: `count` values in bin 0 or wherever `slot` is, of which `zeros` in bin 0 are 0.
    pub(super) fn add(&mut self, counts: impl Iterator<Item = u64>, zeros: u64) {
        for (total, count) in self.counts.iter_mut().zip(counts) {
            *total += count;
        }
        self.counts[0] -= zeros;
        self.zeros += zeros;
    }

    /// Adds values within the present range.
    pub(super) fn add_each(&mut self, x: &[f32]) {
        let inv_width = self.inv_width();
        for v in x {
            if *v == 0.0 {
                self.zeros += 1;
            } else {
                self.counts[slot(*v, inv_width)] += 1;
            }
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.grow(other.lo, other.hi);
        if other.exponent == self.exponent {
            self.add(other.counts.iter().copied(), 0);
        } else {
            let mut other = other.clone();
            other.grow(self.lo, self.hi);
            self.add(other.counts.iter().copied(), 0);
        }
        self.zeros += other.zeros;
    }
}

/// Keeps both `2^e` and `2^-e` normal; at the other end the largest range of f32 needs 117.
const MIN_EXPONENT: i32 = -126;

/// The smallest exponent that fits `lo..=hi`, where `lo <= 0 <= hi`.
fn exponent(lo: f32, hi: f32) -> i32 {
    let magnitude = hi.max(-lo);
    // The larger side alone takes BINS / 2 bins and a fraction at the first of these, so at most one doubling follows.
    let alone = (log2_floor(magnitude) - BINS.ilog2().cast_signed() + 1).max(MIN_EXPONENT);
    alone + i32::from(bins(hi, alone) + bins(-lo, alone) > BINS)
}

/// Bins that values in `0..=extent` touch, of which 0 touches none.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most BINS")]
fn bins(extent: f32, exponent: i32) -> usize {
    if extent > 0.0 {
        (extent * power_of_two(-exponent)) as usize + 1
    } else {
        0
    }
}

/// `floor(log2(|v|))`; of zero and subnormals, less than that of any normal number. The sign is left out, as the maximum
/// of 0.0 and -0.0 may be either.
fn log2_floor(v: f32) -> i32 {
    (v.abs().to_bits() >> 23).cast_signed() - 127
}

/// `2^exponent` of a normal f32.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits((exponent + 127).cast_unsigned() << 23)
}

#[expect(clippy::cast_precision_loss, reason = "at most BINS")]
fn to_f64(i: usize) -> f64 {
    i as f64
}
