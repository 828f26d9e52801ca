//! GGUF's blocks on AVX2: the definition, compiled for it, and the sums of a search by products of 16-bit integers.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::{
    arch::x86_64::*,
    ops::{Add, Div, Mul, Sub},
};

use super::{
    avx2_low_bit::{prefetch, transpose},
    avx2_values,
};
use crate::{
    gguf::{
        self, BlockType,
        integers::{Reals, Rounding, SHIFTS, Sums, Vectors},
        lanes::V,
    },
    kernels::gguf::BlockKernel,
};

/// Blocks side by side.
const LANES: usize = 8;

/// Proof that AVX2 was detected: only [`probe`] makes one.
struct Avx2(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn BlockKernel> {
    static AVX2: Avx2 = Avx2(());
    is_x86_feature_detected!("avx2").then_some(&AVX2 as &dyn BlockKernel)
}

impl BlockKernel for Avx2 {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn encode(&self, dtype: BlockType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> bool {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { encode(self, dtype, x, importance, out) }
    }

    fn decode(&self, dtype: BlockType, data: &[u8], out: &mut [f32]) {
        // SAFETY: as above.
        unsafe { decode(dtype, data, out) }
    }
}

#[target_feature(enable = "avx2")]
fn encode(vectors: &Avx2, dtype: BlockType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> bool {
    gguf::encode(vectors, dtype, x, importance, out)
}

/// A number of each block. Only functions of [`Avx2`] make the first of them.
#[derive(Clone, Copy)]
struct Ymm(__m256);

/// A function of two of them.
macro_rules! operators {
    ($($trait:ident $name:ident $intrinsic:ident),*) => {
        $(impl $trait for Ymm {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                // SAFETY: a `Ymm` exists only where AVX2 was detected.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        })*
    };
}
operators!(Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);

impl Reals<LANES> for Ymm {
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: a `Ymm` exists only where AVX2 was detected. Of equal operands, the instruction gives the second.
        Self(unsafe { _mm256_min_ps(other.0, self.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm256_max_ps(other.0, self.0) })
    }

    #[inline(always)]
    fn if_greater(self, other: Self, yes: Self, no: Self) -> Self {
        // SAFETY: a `Ymm` exists only where AVX2 was detected.
        Self(unsafe { _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0)) })
    }

    #[inline(always)]
    fn any_greater(self, other: Self) -> bool {
        // SAFETY: as above.
        unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0)) != 0 }
    }

    #[inline(always)]
    fn lanes(self) -> V<LANES> {
        let mut lanes = V::all(0.0);
        // SAFETY: as above.
        unsafe { avx2_values::store(self.0, &mut lanes.0) };
        lanes
    }
}

impl Vectors<LANES> for Avx2 {
    type Reals = Ymm;
    type Pairs = __m256i;

    #[inline(always)]
    fn all(&self, value: f32) -> Ymm {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        Ymm(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    fn turn(&self, square: [&[f32; LANES]; LANES]) -> [Ymm; LANES] {
        // SAFETY: as above.
        unsafe { turn(square) }
    }

    #[inline(always)]
    fn pairs(&self, first: Ymm, second: Ymm) -> __m256i {
        // SAFETY: as above.
        unsafe { pairs(first.0, second.0) }
    }

    #[inline(always)]
    fn total(&self, values: &[__m256i]) -> Ymm {
        // SAFETY: as above.
        unsafe { total(values) }
    }

    #[inline(always)]
    fn sums(&self, values: &[__m256i], rounding: Rounding) -> [Sums<Ymm>; SHIFTS] {
        // SAFETY: as above.
        unsafe { sums(values, rounding) }
    }

    #[inline(always)]
    fn fetch(&self, from: *const f32, bytes: usize) {
        for line in (0..bytes).step_by(64) {
            prefetch(from.wrapping_byte_add(line));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn turn(square: [&[f32; LANES]; LANES]) -> [Ymm; LANES] {
    let mut rows = [_mm256_setzero_ps(); LANES];
    for (rows, square) in rows.iter_mut().zip(square) {
        *rows = avx2_values::load(square);
    }
    let mut columns = [Ymm(_mm256_setzero_ps()); LANES];
    for (column, turned) in columns.iter_mut().zip(transpose(rows)) {
        *column = Ymm(turned);
    }
    columns
}

#[inline]
#[target_feature(enable = "avx2")]
fn pairs(first: __m256, second: __m256) -> __m256i {
    let (first, second) = (_mm256_cvtps_epi32(first), _mm256_cvtps_epi32(second));
    _mm256_or_si256(first, _mm256_slli_epi32::<16>(second))
}

#[inline]
#[target_feature(enable = "avx2")]
fn total(values: &[__m256i]) -> Ymm {
    let (one, mut total) = (_mm256_set1_epi16(1), _mm256_setzero_si256());
    for &a in values {
        total = _mm256_add_epi32(total, _mm256_madd_epi16(a, one));
    }
    Ymm(_mm256_cvtepi32_ps(total))
}

/// A level is half a product's upper bits, rounded, and a sum over pairs is what a product of pairs leaves.
#[inline]
#[target_feature(enable = "avx2")]
fn sums(values: &[__m256i], rounding: Rounding) -> [Sums<Ymm>; SHIFTS] {
    let zero = _mm256_setzero_si256();
    let (factor, one) = (_mm256_set1_epi16(rounding.factor), _mm256_set1_epi16(1));
    let mut sums = [[zero; 3]; SHIFTS];
    for &a in values {
        for ([sum_l, sum_ll, sum_la], shift) in sums.iter_mut().zip(rounding.shifts) {
            let l = _mm256_mulhrs_epi16(_mm256_sub_epi16(a, _mm256_set1_epi16(shift)), factor);
            *sum_l = _mm256_add_epi16(*sum_l, l);
            *sum_ll = _mm256_add_epi32(*sum_ll, _mm256_madd_epi16(l, l));
            *sum_la = _mm256_add_epi32(*sum_la, _mm256_madd_epi16(l, a));
        }
    }
    let mut reals = [Ymm(_mm256_setzero_ps()); 3].map(|l| Sums { l, ll: l, la: l });
    for (reals, [l, ll, la]) in reals.iter_mut().zip(sums) {
        reals.l = Ymm(_mm256_cvtepi32_ps(_mm256_madd_epi16(l, one)));
        reals.ll = Ymm(_mm256_cvtepi32_ps(ll));
        reals.la = Ymm(_mm256_cvtepi32_ps(la));
    }
    reals
}

#[target_feature(enable = "avx2")]
fn decode(dtype: BlockType, data: &[u8], out: &mut [f32]) {
    gguf::decode(dtype, data, out);
}
