//! The smallest and largest value of each slice of an array.

use super::tiling::Tiling;
use crate::{Error, Granularity, Range, Result, error::check_length, kernels};

/// One range for each slice of `x`, in the order of the scales; an empty slice has the range `[0, 0]`.
///
/// # Errors
/// An axis outside the shape, a block size of 0, a length other than the shape's, a NaN or infinity (its index is
/// told).
pub fn slice_ranges(x: &[f32], shape: &[usize], granularity: Granularity) -> Result<Vec<Range>> {
    let tiling = Tiling::new(shape, granularity)?;
    check_length("input", tiling.elements(), x.len())?;
    let slices = tiling.slices();
    if x.is_empty() {
        return Ok(vec![Range { lo: 0.0, hi: 0.0 }; slices]);
    }
    let kernels = kernels::current();
    let (mut lo, mut hi) = (vec![f32::INFINITY; slices], vec![f32::NEG_INFINITY; slices]);
    let mut finite = true;
    tiling.for_each_run(|run, slices| match (&mut lo[slices.clone()], &mut hi[slices]) {
        ([lo], [hi]) => match kernels.extrema(&x[run]) {
            Some((least, most)) => (*lo, *hi) = (lo.min(least), hi.max(most)),
            None => finite = false,
        },
        (lo, hi) => finite &= kernels.widen(&x[run], lo, hi),
    });
    // An infinity is one of the extremes.
    if !finite || lo.iter().chain(&hi).any(|v| !v.is_finite()) {
        return Err(not_finite(x, shape));
    }
    let ranges = lo.into_iter().zip(hi);
    Ok(ranges
        .map(|(lo, hi)| Range {
            lo: lo + 0.0,
            hi: hi + 0.0,
        })
        .collect()) // -0 + 0 is 0
}

/// The largest magnitude in each row (`axis` 1) or column (`axis` 0) of a `[rows, columns]` matrix; with `pairs`, or
/// the largest magnitude of a sum of two neighbours, `2i` and `2i + 1`, where that is larger.
///
/// A kernel that adds two products in 16 bits saturates by that: of unlike signs the sum is smaller than a term.
///
/// # Errors
/// A length other than the shape's, a NaN or infinity (its index is told).
pub fn largest_terms(x: &[f32], shape: [usize; 2], axis: usize, pairs: bool) -> Result<Vec<f64>> {
    let along = Granularity::PerChannel { axis: 1 - axis.min(1) };
    let ranges = slice_ranges(x, &shape, along)?;
    let mut peaks: Vec<f64> = ranges.iter().map(|range| f64::from(range.hi.max(-range.lo))).collect();
    let [_, columns] = shape;
    if !pairs || columns == 0 {
        return Ok(peaks);
    }
    let kernels = kernels::current();
    if axis == 0 {
        for rows in x.chunks_exact(2 * columns) {
            let (even, odd) = rows.split_at(columns);
            kernels.raise_to_sums(even, odd, &mut peaks);
        }
    } else {
        for (row, peak) in x.chunks_exact(columns).zip(&mut peaks) {
            *peak = peak.max(kernels.largest_sum(row));
        }
    }
    Ok(peaks)
}

/// The error that tells where the first NaN or infinity is.
#[cold]
fn not_finite(x: &[f32], shape: &[usize]) -> Error {
    let index = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
    Error::NonFinite {
        value: x[index],
        index: unravel(index, shape),
    }
}

/// The index of the `flat`-th element of a row-major array.
fn unravel(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&length| {
            let i = flat % length;
            flat /= length;
            i
        })
        .collect();
    index.reverse();
    index
}
