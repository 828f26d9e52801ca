//! What was seen of a tensor, in constant memory: one statistic serves every calibration method.

mod exact;
mod histogram;
mod serial;

use std::sync::{Mutex, PoisonError};

use exact::ExactSum;
pub use histogram::Histogram;

use crate::{
    kernels::{self, Kernels, Summary},
    threads,
};

/// Something that accumulates over values, and whose parts merge.
pub trait Statistic {
    /// Takes in values.
    fn observe(&mut self, x: &[f32]);
    /// Takes in all that `other` has seen.
    fn merge(&mut self, other: &Self);
}

/// Values that are summed in f64 before they join an exact sum, and counted in one go; they fit the second-level cache.
const CHUNK: usize = 65536;

/// Range, moments, NaN and Inf counts and histogram of a tensor.
///
/// NaN and infinities are counted and otherwise left out. Merging is exact: the same bits, in any order and on any
/// number of threads. The same values cut into other batches give the same histogram, counts and range, while mean and
/// std may differ in their last bits, because each 65,536 values of a batch are summed in f64.
///
/// ```
/// use requant_core::stats::{Statistic, TensorStatistics};
/// let mut seen = TensorStatistics::default();
/// seen.observe(&[-1.0, 0.0, 3.0, f32::NAN]);
/// assert_eq!((seen.min(), seen.max(), seen.count(), seen.nan_count()), (-1.0, 3.0, 3, 1));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TensorStatistics {
    count: u64,
    nan_count: u64,
    inf_count: u64,
    min: f32,
    max: f32,
    sum: ExactSum,
    sum_sq: ExactSum,
    histogram: Histogram,
}

impl Default for TensorStatistics {
    fn default() -> Self {
        Self {
            count: 0,
            nan_count: 0,
            inf_count: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            sum: ExactSum::default(),
            sum_sq: ExactSum::default(),
            histogram: Histogram::default(),
        }
    }
}

impl TensorStatistics {
    /// Finite values seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Values that were 0 or -0.
    pub fn zeros(&self) -> u64 {
        self.histogram.zeros()
    }

    /// NaN seen.
    pub fn nan_count(&self) -> u64 {
        self.nan_count
    }

    /// Infinities seen.
    pub fn inf_count(&self) -> u64 {
        self.inf_count
    }

    /// Smallest finite value; NaN if there was none.
    pub fn min(&self) -> f32 {
        if self.count == 0 { f32::NAN } else { self.min }
    }

    /// Largest finite value; NaN if there was none.
    pub fn max(&self) -> f32 {
        if self.count == 0 { f32::NAN } else { self.max }
    }

    /// Mean of the finite values; NaN if there was none.
    pub fn mean(&self) -> f64 {
        if self.count == 0 {
            return f64::NAN;
        }
        (self.sum.value() / to_f64(self.count)).clamp(self.min.into(), self.max.into())
    }

    /// Standard deviation of the finite values (divided by their count); NaN if there was none.
    ///
    /// The difference of two sums loses digits where the mean is large: the error is about `1e-8 * |mean|`, less than the
    /// spacing of the f32 values themselves.
    pub fn std(&self) -> f64 {
        let mean = self.mean();
        let variance = self.sum_sq.value() / to_f64(self.count) - mean * mean;
        // Bhatia and Davis (2000): no distribution on [min, max] varies more. It makes a constant's deviation 0.
        let limit = (f64::from(self.max) - mean) * (mean - f64::from(self.min));
        if mean.is_nan() {
            mean
        } else {
            variance.clamp(0.0, limit).sqrt()
        }
    }

    /// How the finite values are distributed.
    pub fn histogram(&self) -> &Histogram {
        &self.histogram
    }

    /// [`Statistic::observe`] with the kernels given, which decide nothing but the time it takes.
    pub fn observe_with(&mut self, x: &[f32], kernels: &dyn Kernels) {
        for chunk in x.chunks(CHUNK) {
            match self.histogram.count(chunk, kernels) {
                Some(found) => self.accept(chunk.len(), &found),
                None => {
                    let finite = self.finite(chunk);
                    self.observe_with(&finite, kernels);
                }
            }
        }
    }

    /// Takes in what a kernel found in `len` finite values that the histogram has counted.
    fn accept(&mut self, len: usize, found: &Summary) {
        self.count += to_u64(len);
        self.min = self.min.min(found.min);
        self.max = self.max.max(found.max);
        self.sum.add(found.sum);
        self.sum_sq.add(found.sum_sq);
    }

    /// Counts the values that are not finite, and returns the others.
    #[cold]
    fn finite(&mut self, x: &[f32]) -> Vec<f32> {
        self.nan_count += to_u64(x.iter().filter(|v| v.is_nan()).count());
        self.inf_count += to_u64(x.iter().filter(|v| v.is_infinite()).count());
        x.iter().copied().filter(|v| v.is_finite()).collect()
    }
}

impl Statistic for TensorStatistics {
    fn observe(&mut self, x: &[f32]) {
        self.observe_with(x, kernels::current());
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.nan_count += other.nan_count;
        self.inf_count += other.inf_count;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum.merge(&other.sum);
        self.sum_sq.merge(&other.sum_sq);
        self.histogram.merge(&other.histogram);
    }
}

/// `statistics.observe(values)` for each pair, on `threads` threads (0: all cores).
///
/// Large tensors are cut, and their parts merged. The result has the same bits for any number of threads.
pub fn observe_many(pairs: &[(&Mutex<TensorStatistics>, &[f32])], threads: usize) {
    /// Values in a part: enough that merging costs nothing. A multiple of [`CHUNK`], so that the sums stay the same.
    const PART: usize = 16 * CHUNK;
    let parts = pairs
        .iter()
        .flat_map(|(stats, x)| x.chunks(PART).map(move |part| (*stats, part, part.len() < x.len())));
    threads::for_each(threads, parts.collect(), |(stats, part, is_cut)| {
        if is_cut && threads != 1 {
            let mut seen = TensorStatistics::default();
            seen.observe(part);
            lock(stats).merge(&seen);
        } else {
            lock(stats).observe(part);
        }
    });
}

fn lock(stats: &Mutex<TensorStatistics>) -> std::sync::MutexGuard<'_, TensorStatistics> {
    stats.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 values")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

fn to_u64(len: usize) -> u64 {
    len as u64
}
