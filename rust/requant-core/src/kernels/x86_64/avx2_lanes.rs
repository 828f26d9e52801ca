//! Requantization of 16 sums on AVX2.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use crate::{arrays::Integer, kernels::finish::Lanes, requantize::Columns};

/// Lanes of every panel and block of the AVX2 kernels.
const WIDTH: usize = 16;

/// Proof that AVX2 was detected.
#[derive(Clone, Copy)]
pub(super) struct Avx2Lanes(());

impl Avx2Lanes {
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Lanes<WIDTH> for Avx2Lanes {
    #[inline(always)]
    fn requantize<Q: Integer>(self, columns: &Columns<f32, WIDTH>, sums: [i32; WIDTH]) -> [Q; WIDTH] {
        // SAFETY: an `Avx2Lanes` is made only where AVX2 is enabled.
        unsafe { requantize(columns, &sums) }
    }
}

/// Rounds by conversion, half to even, and clamps in the integers: those that 16 bits cannot hold lie beyond the limits
/// too.
#[inline]
#[target_feature(enable = "avx2")]
fn requantize<Q: Integer>(columns: &Columns<f32, WIDTH>, sums: &[i32; WIDTH]) -> [Q; WIDTH] {
    const { assert!(Q::TYPE.bits() == 8) };
    // Beyond 2^31 the conversion gives the lowest integer, which is right only for what is negative.
    let most = _mm256_set1_ps(65_536.0);
    let mut rounded = [_mm256_setzero_si256(); 2];
    for (i, rounded) in rounded.iter_mut().enumerate() {
        let sum = _mm256_add_epi32(load(half(sums, i)), load(half(&columns.bias, i)));
        // SAFETY: the half is 32 readable bytes, and `loadu` needs no alignment.
        let multiplier = unsafe { _mm256_loadu_ps(half(&columns.multipliers, i).as_ptr()) };
        let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), multiplier);
        *rounded = _mm256_cvtps_epi32(_mm256_min_ps(scaled, most));
    }
    let words = _mm256_packs_epi32(rounded[0], rounded[1]);
    let words = _mm256_adds_epi16(words, _mm256_set1_epi16(i16::narrow(columns.zero_point)));
    // Columns 0-3, 8-11 lie in the low half, the others in the high one.
    let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
    // Their bits, whichever the type.
    let (min, max) = columns.limits;
    let (min, max) = (_mm_set1_epi8(i8::narrow(min)), _mm_set1_epi8(i8::narrow(max)));
    let bytes = if Q::TYPE.signed() {
        _mm_min_epi8(_mm_max_epi8(_mm_packs_epi16(low, high), min), max)
    } else {
        _mm_min_epu8(_mm_max_epu8(_mm_packus_epi16(low, high), min), max)
    };
    let bytes = _mm_shuffle_epi32::<0b11_01_10_00>(bytes);
    let mut out = [Q::default(); WIDTH];
    // SAFETY: `out` is 16 writable bytes, as the assertion says, and `storeu` needs no alignment.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) };
    out
}

#[inline(always)]
fn half<T>(lanes: &[T; WIDTH], i: usize) -> &[T; 8] {
    &lanes.as_chunks().0[i]
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[i32; 8]) -> __m256i {
    // SAFETY: `x` is 32 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}
