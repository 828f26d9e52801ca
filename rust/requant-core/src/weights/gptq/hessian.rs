//! What a layer's inputs say about the errors of its weights.

use super::factor::Factor;
use crate::{Error, Result, kernels::feedback};

/// The most that is added to the diagonal, in shares of its mean.
const MOST_DAMPING: f64 = 1e4;

/// The least that is added where nothing was enough.
const LEAST_DAMPING: f64 = 1e-4;

/// A symmetric matrix `[k, k]`, of which the lower triangle is read.
pub(super) struct Hessian<'a> {
    values: &'a [f64],
    k: usize,
    /// Mean of the diagonal.
    mean: f64,
}

impl<'a> Hessian<'a> {
    pub(super) fn new(values: &'a [f64], k: usize) -> Result<Self> {
        let (what, expected, got) = ("hessian", k.saturating_mul(k), values.len());
        if got != expected {
            return Err(Error::Length { what, expected, got });
        }
        for i in 0..k {
            let row = &values[i * k..][..=i];
            let wrong = row.iter().position(|v| !v.is_finite());
            if let Some(j) = wrong.or((row[i] < 0.0).then_some(i)) {
                let (value, index) = (row[j], [i, j]);
                return Err(Error::SecondMoment {
                    what: "hessian",
                    value,
                    index: index.to_vec(),
                });
            }
        }
        let sum: f64 = (0..k).map(|i| values[i * k + i]).sum();
        let mean = sum / k.max(1) as f64;
        Ok(Self { values, k, mean })
    }

    fn diagonal(&self) -> impl Iterator<Item = f64> {
        (0..self.k).map(|i| self.values[i * self.k + i])
    }

    /// The diagonal as weights of errors.
    pub(super) fn importance(&self) -> Vec<f32> {
        // As shares of the mean, which f32 holds whatever the unit was.
        let unit = if self.mean > 0.0 { self.mean } else { 1.0 };
        #[expect(clippy::cast_possible_truncation, reason = "rounded to f32")]
        self.diagonal().map(|v| (v / unit) as f32).collect()
    }

    /// The columns in the order in which they are quantized; ties as they lie.
    pub(super) fn order(&self, by_diagonal: bool) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.k).collect();
        if by_diagonal {
            let diagonal: Vec<f64> = self.diagonal().collect();
            order.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]));
        }
        order
    }

    /// The factor of the matrix in reverse order, and what was added to its diagonal, as a share of the mean.
    pub(super) fn factor(&self, order: &[usize], damping: f64, threads: usize) -> Result<(Factor, f64)> {
        let (kernel, k) = (feedback::current(), self.k);
        let mut share = damping;
        loop {
            let element = |i: usize, j: usize| {
                let (row, column) = (order[k - 1 - i], order[k - 1 - j]);
                let value = self.values[row.max(column) * k + row.min(column)];
                match () {
                    () if i != j => value,
                    // Nothing is known of a column that was never seen: it is left to itself.
                    () if value == 0.0 => {
                        if self.mean > 0.0 {
                            self.mean
                        } else {
                            1.0
                        }
                    }
                    () => value + share * self.mean,
                }
            };
            if let Some(factor) = Factor::new(kernel, k, element, threads) {
                return Ok((factor, share));
            }
            share = (share * 10.0).max(LEAST_DAMPING);
            if share > MOST_DAMPING {
                return Err(Error::NotPositive { damping: share / 10.0 });
            }
        }
    }
}
