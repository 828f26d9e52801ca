//! How well integers stand for the reals that they were made of.

use std::sync::{Mutex, PoisonError};

use super::{
    Affine,
    drive::{self, Scratch, for_each_tile},
};
use crate::{
    Range, Result,
    arrays::{Cut, Integers, Reals},
    kernels,
};

/// What rounding does to an array.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundingError {
    /// Its smallest and largest value; those of NaN where one is not finite, infinite ones the wrong way round of an
    /// empty array.
    pub range: Range,
    /// The sum of the squares of its values.
    pub signal: f64,
    /// The sum of the squares of the distances from them to the reals of the integers, as f32 has them.
    pub noise: f64,
}

impl RoundingError {
    const NONE: Self = Self {
        range: Range {
            lo: f32::INFINITY,
            hi: f32::NEG_INFINITY,
        },
        signal: 0.0,
        noise: 0.0,
    };

    fn and(self, other: Self) -> Self {
        // Not f32::min, which would pass over a NaN.
        let pick = |first: bool, a, b| if first { a } else { b };
        let (a, b) = (self.range, other.range);
        let range = Range {
            lo: pick(a.lo < b.lo || a.lo.is_nan(), a.lo, b.lo),
            hi: pick(a.hi > b.hi || a.hi.is_nan(), a.hi, b.hi),
        };
        Self {
            range,
            signal: self.signal + other.signal,
            noise: self.noise + other.noise,
        }
    }
}

impl Affine<'_> {
    /// How well the integers `q` stand for `x`.
    ///
    /// # Errors
    /// Lengths that differ from the shape's, or integers that do not hold the type.
    pub fn rounding_error<'x>(&self, x: impl Into<Reals<'x>>, q: impl Into<Integers<'x>>) -> Result<RoundingError> {
        let (x, q) = (x.into(), q.into());
        self.check_holds(q.container())?;
        self.check_lengths(x.len(), q.len())?;
        let parts = Mutex::new(Vec::new());
        for_each_tile((x, q), self.threads, |first, (x, q), scratch| {
            let part = self.error_of_tile(first, x, q, scratch);
            parts.lock().unwrap_or_else(PoisonError::into_inner).push((first, part));
        });
        let mut parts = parts.into_inner().unwrap_or_else(PoisonError::into_inner);
        parts.sort_unstable_by_key(|(first, _)| *first); // so that sums do not depend on threads
        Ok(parts
            .into_iter()
            .fold(RoundingError::NONE, |sum, (_, part)| sum.and(part)))
    }

    fn error_of_tile(&self, first: usize, x: Reals<'_>, q: Integers<'_>, scratch: &mut Scratch) -> RoundingError {
        let Scratch { reals, results, .. } = scratch;
        let x = self.widened(x, reals);
        let rounded = drive::first(results, q.len());
        self.for_each_segment(first, q.len(), |elements, _, slices| {
            self.kernel
                .dequantize(q.part(elements.clone()), slices, false, &mut rounded[elements]);
        });
        let (signal, noise) = self.kernel.squares(x, rounded);
        let (lo, hi) = kernels::current().extrema(x).unwrap_or((f32::NAN, f32::NAN));
        RoundingError {
            range: Range { lo, hi },
            signal,
            noise,
        }
    }
}
