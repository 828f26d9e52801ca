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
//!
//! What kernels count stays in their small counters from one array to the next, until one could overflow: moving it to
//! the counts after each array takes as long as counting 3,000 values.

use std::{mem::take, ops::AddAssign};

use crate::{
    Result,
    kernels::{BINS, Counters, Kernels, Summary, WAYS},
};

/// Counts of the finite values seen. Zeros are counted apart: every scheme represents them without error.
#[derive(Debug, Clone)]
pub struct Histogram {
    /// The range of the values, widened to contain 0.
    lo: f32,
    hi: f32,
    exponent: i32,
    zeros: u64,
    /// The nonzero values of bin `i`, at `i mod BINS`: no shifting while the range grows and `e` does not. These and more.
    counts: Option<Box<[u64; BINS]>>,
    recent: Option<Box<Recent>>,
}

/// What kernels have counted, zeros included.
#[derive(Debug, Clone)]
struct Recent {
    counters: Counters,
    values: u64,
    zeros: u64,
}

impl Recent {
    const NONE: Self = Self {
        counters: [[0; BINS]; WAYS],
        values: 0,
        zeros: 0,
    };

    fn nonzero(&self, slot: usize) -> u64 {
        let counted: u64 = self.counters.iter().map(|table| u64::from(table[slot])).sum();
        counted - if slot == 0 { self.zeros } else { 0 }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            lo: 0.0,
            hi: 0.0,
            exponent: MIN_EXPONENT,
            zeros: 0,
            counts: None,
            recent: None,
        }
    }
}

impl PartialEq for Histogram {
    fn eq(&self, other: &Self) -> bool {
        (self.lo, self.hi, self.exponent, self.zeros) == (other.lo, other.hi, other.exponent, other.zeros)
            && (0..BINS).all(|slot| self.nonzero(slot) == other.nonzero(slot))
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
        (0..self.positive_bins()).map(|slot| self.nonzero(slot))
    }

    /// Counts of the values below 0, from 0 outwards.
    pub(crate) fn negative(&self) -> impl DoubleEndedIterator<Item = u64> {
        (BINS - self.negative_bins()..BINS).rev().map(|slot| self.nonzero(slot))
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
        let counts = histogram.counts.insert(Box::new([0; BINS]));
        let (negative, positive) = (
            bins(-histogram.lo, histogram.exponent),
            bins(histogram.hi, histogram.exponent),
        );
        for slot in (BINS - negative..BINS).chain(0..positive) {
            counts[slot] = next()?;
        }
        Ok(histogram)
    }

    /// All values, if they fit 64 bits.
    pub(super) fn total(&self) -> Option<u64> {
        (0..BINS).try_fold(self.zeros, |sum, slot| sum.checked_add(self.nonzero(slot)))
    }

    fn nonzero(&self, slot: usize) -> u64 {
        self.counts.as_ref().map_or(0, |counts| counts[slot])
            + self.recent.as_ref().map_or(0, |recent| recent.nonzero(slot))
    }

    fn positive_bins(&self) -> usize {
        bins(self.hi, self.exponent)
    }

    fn negative_bins(&self) -> usize {
        bins(-self.lo, self.exponent)
    }

    /// `1 / width`, which f32 holds exactly.
    fn inv_width(&self) -> f32 {
        power_of_two(-self.exponent)
    }

    /// Whether values in `lo..=hi` can be counted without widening the bins.
    fn has_room(&self, lo: f32, hi: f32) -> bool {
        exponent(lo.min(self.lo), hi.max(self.hi)) == self.exponent
    }

    /// Counts values, fewer than 2^31; `None`, and nothing counted, where one is not finite.
    ///
    /// Counts first and looks at the range afterwards: after the first ones, values that widen the bins are few, and are
    /// taken back and counted again.
    pub(super) fn count(&mut self, x: &[f32], kernels: &dyn Kernels) -> Option<Summary> {
        if self.recent.as_ref().is_some_and(|recent| recent.values >= 1 << 31) {
            self.settle();
        }
        if (self.lo, self.hi) == (0.0, 0.0) {
            let (lo, hi) = kernels.extrema(x)?;
            self.grow(lo, hi);
        }
        let mut found = self.tally(x, 1, kernels);
        if !found.is_some_and(|found| self.has_room(found.min, found.max)) {
            self.tally(x, 1u32.wrapping_neg(), kernels);
            let Summary { min, max, .. } = found?;
            self.grow(min, max);
            found = self.tally(x, 1, kernels);
        }
        let found = found?;
        self.grow(found.min, found.max);
        self.zeros += u64::from(found.zeros);
        if let Some(recent) = &mut self.recent {
            recent.values += x.len() as u64;
            recent.zeros += u64::from(found.zeros);
        }
        Some(found)
    }

    fn tally(&mut self, x: &[f32], step: u32, kernels: &dyn Kernels) -> Option<Summary> {
        let inv_width = self.inv_width();
        let recent = self.recent.get_or_insert_with(|| Box::new(Recent::NONE));
        kernels.tally(x, inv_width, step, &mut recent.counters)
    }

    /// Moves what is in the counters to the counts.
    fn settle(&mut self) {
        if let Some(recent) = self.recent.take() {
            self.add(|slot| recent.nonzero(slot));
        }
    }

    fn add(&mut self, nonzero: impl Fn(usize) -> u64) {
        let counts = self.counts.get_or_insert_with(|| Box::new([0; BINS]));
        for (slot, count) in counts.iter_mut().enumerate() {
            *count += nonzero(slot);
        }
    }

    /// Widens the range to contain `lo..=hi`, and the bins as that demands.
    pub(super) fn grow(&mut self, lo: f32, hi: f32) {
        let coarser = exponent(lo.min(self.lo), hi.max(self.hi));
        let merged = coarser - self.exponent;
        if merged > 0 {
            let (negative, positive) = (self.negative_bins(), self.positive_bins());
            if negative == BINS {
                self.settle(); // the outermost bin is where zeros are counted
            }
            if let Some(counts) = &mut self.counts {
                merge_bins(counts, negative, positive, merged);
            }
            for counters in self.recent.iter_mut().flat_map(|recent| &mut recent.counters) {
                merge_bins(counters, negative, positive, merged);
            }
            self.exponent = coarser;
        }
        (self.lo, self.hi) = (lo.min(self.lo), hi.max(self.hi));
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.grow(other.lo, other.hi);
        if other.exponent < self.exponent {
            let mut other = other.clone();
            other.grow(self.lo, self.hi);
            return self.merge(&other);
        }
        self.settle();
        self.add(|slot| other.nonzero(slot));
        self.zeros += other.zeros;
    }
}

/// Merges `2^merged` neighbours into one, on both sides of 0.
fn merge_bins<T: Copy + Default + AddAssign>(bins: &mut [T; BINS], negative: usize, positive: usize, merged: i32) {
    let merged = merged.min(31);
    for i in 0..positive {
        let count = take(&mut bins[i]);
        bins[i >> merged] += count;
    }
    for i in 0..negative {
        let count = take(&mut bins[BINS - 1 - i]);
        bins[BINS - 1 - (i >> merged)] += count;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;

    #[test]
    fn counters_that_could_overflow_are_emptied() {
        let (mut kept, mut emptied) = (Histogram::default(), Histogram::default());
        for x in [[-1.0, 0.0, 0.5], [0.0, 0.0, -0.7], [3.0, 0.5, 0.0]] {
            assert!(kept.count(&x, kernels::current()).is_some());
            if let Some(recent) = &mut emptied.recent {
                recent.values = 1 << 31;
            }
            assert!(emptied.count(&x, kernels::current()).is_some());
            assert_eq!(emptied.recent.as_ref().map(|recent| recent.values), Some(3));
            assert_eq!(emptied, kept);
        }
        assert!(emptied.counts.is_some() && kept.counts.is_none());
        assert_eq!((kept.zeros(), kept.total()), (4, Some(9)));
    }

    /// Bin -4096 wraps to where zeros are counted, and moves when the range grows; zeros do not.
    #[test]
    fn zeros_stay_where_all_bins_are_negative() {
        let mut histogram = Histogram::default();
        for x in [&[-4095.5, -3.0, 0.0, 0.0, 0.0][..], &[-10_000.0, 0.0]] {
            assert!(histogram.count(x, kernels::current()).is_some());
        }
        let mut at_once = Histogram::default();
        assert!(
            at_once
                .count(&[-10_000.0, -4095.5, -3.0, 0.0, 0.0, 0.0, 0.0], kernels::current())
                .is_some()
        );
        assert_eq!(histogram, at_once);
        assert_eq!((histogram.zeros(), histogram.total()), (4, Some(7)));
    }
}
