//! Requantization of 32 sums in 512-bit registers.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use super::zmm::{COLUMNS, LANES};
use crate::{arrays::Integer, kernels::finish::Lanes, requantize::Columns};

/// Proof that AVX-512 was detected.
#[derive(Clone, Copy)]
pub(super) struct ZmmLanes(());

impl ZmmLanes {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Lanes<COLUMNS> for ZmmLanes {
    #[inline(always)]
    fn requantize<Q: Integer>(self, columns: &Columns<f32, COLUMNS>, sums: [i32; COLUMNS]) -> [Q; COLUMNS] {
        // SAFETY: a `ZmmLanes` is made only where AVX-512 is enabled.
        unsafe { requantize(columns, &sums) }
    }
}

/// Clamps before it rounds by conversion, half to even: the limits are integers, so the result is the same.
#[inline]
#[target_feature(enable = "avx512f")]
fn requantize<Q: Integer>(columns: &Columns<f32, COLUMNS>, sums: &[i32; COLUMNS]) -> [Q; COLUMNS] {
    const { assert!(Q::TYPE.bits() == 8) };
    let limit = |limit: i32| _mm512_set1_ps((limit - columns.zero_point) as f32);
    let (min, max) = (limit(columns.limits.0), limit(columns.limits.1));
    let zero_point = _mm512_set1_epi32(columns.zero_point);
    let mut out = [Q::default(); COLUMNS];
    for (i, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let sum = _mm512_add_epi32(load(half(sums, i)), load(half(&columns.bias, i)));
        // SAFETY: the half is 64 readable bytes, and `loadu` needs no alignment.
        let multiplier = unsafe { _mm512_loadu_ps(half(&columns.multipliers, i).as_ptr()) };
        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), multiplier);
        let rounded = _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(scaled, max), min));
        let bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(rounded, zero_point));
        // SAFETY: `out` is 16 writable bytes, as the assertion says, and `storeu` needs no alignment.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) };
    }
    out
}

#[inline(always)]
fn half<T>(lanes: &[T; COLUMNS], i: usize) -> &[T; LANES] {
    &lanes.as_chunks().0[i]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[i32; LANES]) -> __m512i {
    // SAFETY: `x` is 64 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}
