//! Smallest and largest values, of a slice and column by column.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use super::avx2::{load, store_f32};
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
    let [mut least, mut most] = [[0.0; 8]; 2];
    store_f32(
        _mm256_min_ps(_mm256_min_ps(lo[0], lo[1]), _mm256_min_ps(lo[2], lo[3])),
        &mut least,
    );
    store_f32(
        _mm256_max_ps(_mm256_max_ps(hi[0], hi[1]), _mm256_max_ps(hi[2], hi[3])),
        &mut most,
    );
    let (rest_lo, rest_hi) = generic::extrema(rest)?;
    let lo = least.into_iter().fold(rest_lo, f32::min) + 0.0; // -0 + 0 is 0
    let hi = most.into_iter().fold(rest_hi, f32::max) + 0.0;
    (x.is_empty() || lo.is_finite() && hi.is_finite()).then_some((lo, hi))
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
