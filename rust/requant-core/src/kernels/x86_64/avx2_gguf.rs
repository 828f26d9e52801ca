//! GGUF's blocks on AVX2: the definition, compiled for it, and the sums of a search by products of 16-bit integers.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use super::{
    avx2_low_bit::{prefetch, transpose},
    avx2_values,
};
use crate::{
    gguf::{
        self, BlockType,
        integers::{Pairs, Rounding, SHIFTS, Sums, Vectors},
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

impl Vectors<LANES> for Avx2 {
    #[inline(always)]
    fn turn(&self, square: [&[f32; LANES]; LANES]) -> [V<LANES>; LANES] {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { turn(square) }
    }

    #[inline(always)]
    fn fetch(&self, from: *const f32, bytes: usize) {
        for line in (0..bytes).step_by(64) {
            prefetch(from.wrapping_byte_add(line));
        }
    }

    #[inline(always)]
    fn sums(&self, values: &[Pairs<LANES>], rounding: Rounding) -> [Sums<LANES>; SHIFTS] {
        // SAFETY: an `Avx2` exists only where AVX2 was detected.
        unsafe { sums(values, rounding) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn turn(square: [&[f32; LANES]; LANES]) -> [V<LANES>; LANES] {
    let mut turned = [V::all(0.0); LANES];
    for (turned, column) in turned
        .iter_mut()
        .zip(transpose(square.map(|row| avx2_values::load(row))))
    {
        avx2_values::store(column, &mut turned.0);
    }
    turned
}

/// A level is half a product's upper bits, rounded, and a sum over pairs is what a product of pairs leaves.
#[inline]
#[target_feature(enable = "avx2")]
fn sums(values: &[Pairs<LANES>], rounding: Rounding) -> [Sums<LANES>; SHIFTS] {
    let zero = _mm256_setzero_si256();
    let factor = _mm256_set1_epi16(rounding.factor);
    let shifts = rounding.shifts.map(|shift| _mm256_set1_epi16(shift));
    let mut sums = [[zero; 3]; SHIFTS];
    for pairs in values {
        let a = load(pairs);
        for ([sum_l, sum_ll, sum_la], shift) in sums.iter_mut().zip(shifts) {
            let l = _mm256_mulhrs_epi16(_mm256_sub_epi16(a, shift), factor);
            *sum_l = _mm256_add_epi16(*sum_l, l);
            *sum_ll = _mm256_add_epi32(*sum_ll, _mm256_madd_epi16(l, l));
            *sum_la = _mm256_add_epi32(*sum_la, _mm256_madd_epi16(l, a));
        }
    }
    let one = _mm256_set1_epi16(1);
    sums.map(|[l, ll, la]| Sums {
        l: integers(_mm256_madd_epi16(l, one)),
        ll: integers(ll),
        la: integers(la),
    })
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(pairs: &Pairs<LANES>) -> __m256i {
    // SAFETY: `pairs` is 32 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(pairs.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn integers(v: __m256i) -> [i32; LANES] {
    let mut integers = [0; LANES];
    // SAFETY: `integers` is 32 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(integers.as_mut_ptr().cast(), v) };
    integers
}

#[target_feature(enable = "avx2")]
fn decode(dtype: BlockType, data: &[u8], out: &mut [f32]) {
    gguf::decode(dtype, data, out);
}
