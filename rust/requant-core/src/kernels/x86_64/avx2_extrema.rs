//! Smallest and largest values, of a slice and column by column, and largest sums of two.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;
use std::slice;

use super::avx2_values::{load, store as store_f32};
use crate::kernels::generic;

/// Vectors in flight: a minimum takes as long as four of them.
const WAYS: usize = 4;

#[target_feature(enable = "avx2")]
pub(super) fn extrema(x: &[f32]) -> Option<(f32, f32)> {
    let (vectors, rest) = x.as_chunks::<8>();
    let (groups, few) = vectors.as_chunks::<WAYS>();
    let (mut lo, mut hi) = (
        [_mm256_set1_ps(f32::INFINITY); WAYS],
        [_mm256_set1_ps(f32::NEG_INFINITY); WAYS],
    );
    let mut unordered = _mm256_setzero_ps();
    for [a, b, c, d] in groups {
        let v = [load(a), load(b), load(c), load(d)];
        for i in 0..WAYS {
            lo[i] = _mm256_min_ps(v[i], lo[i]); // the second operand where v is NaN
            hi[i] = _mm256_max_ps(v[i], hi[i]);
        }
        // One comparison finds a NaN in either.
        unordered = _mm256_or_ps(unordered, _mm256_cmp_ps::<_CMP_UNORD_Q>(v[0], v[1]));
        unordered = _mm256_or_ps(unordered, _mm256_cmp_ps::<_CMP_UNORD_Q>(v[2], v[3]));
    }
    for vector in few {
        let v = load(vector);
        lo[0] = _mm256_min_ps(v, lo[0]);
        hi[0] = _mm256_max_ps(v, hi[0]);
        unordered = _mm256_or_ps(unordered, _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
    }
    if _mm256_movemask_ps(unordered) != 0 {
        return None;
    }
    let least = _mm256_min_ps(_mm256_min_ps(lo[0], lo[1]), _mm256_min_ps(lo[2], lo[3]));
    let most = _mm256_max_ps(_mm256_max_ps(hi[0], hi[1]), _mm256_max_ps(hi[2], hi[3]));
    let (mut lo, mut hi, mut numbers) = (
        halve(least, |a, b| _mm_min_ps(a, b)),
        halve(most, |a, b| _mm_max_ps(a, b)),
        true,
    );
    for v in rest {
        numbers &= generic::widen(&[*v], slice::from_mut(&mut lo), slice::from_mut(&mut hi));
    }
    let (lo, hi) = (lo + 0.0, hi + 0.0); // -0 + 0 is 0
    (numbers && (x.is_empty() || lo.is_finite() && hi.is_finite())).then_some((lo, hi))
}

/// One of eight values.
#[inline]
#[target_feature(enable = "avx2")]
fn halve(v: __m256, pick: impl Fn(__m128, __m128) -> __m128) -> f32 {
    let v = pick(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = pick(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(pick(v, _mm_movehdup_ps(v)))
}

#[target_feature(enable = "avx2")]
pub(super) fn widen(x: &[f32], lo: &mut [f32], hi: &mut [f32]) -> bool {
    let (vectors, rest) = x.as_chunks::<8>();
    let (los, lo_rest) = lo.as_chunks_mut::<8>();
    let (his, hi_rest) = hi.as_chunks_mut::<8>();
    let mut unordered = _mm256_setzero_ps();
    for ((x, lo), hi) in vectors.iter().zip(los).zip(his) {
        let v = load(x);
        store_f32(_mm256_min_ps(v, load(lo)), lo);
        store_f32(_mm256_max_ps(v, load(hi)), hi);
        unordered = _mm256_or_ps(unordered, _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
    }
    generic::widen(rest, lo_rest, hi_rest) && _mm256_movemask_ps(unordered) == 0
}

#[target_feature(enable = "avx2")]
pub(super) fn raise_to_sums(a: &[f32], b: &[f32], peaks: &mut [f64]) {
    generic::raise_to_sums(a, b, peaks);
}

#[target_feature(enable = "avx2")]
pub(super) fn largest_sum(x: &[f32]) -> f64 {
    generic::largest_sum(x)
}
