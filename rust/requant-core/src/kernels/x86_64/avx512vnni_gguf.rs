//! GGUF's blocks on AVX-512 with VNNI: the definition, compiled for it, 16 blocks side by side. Types that gain nothing by
//! that are left to AVX2.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::{arch::x86_64::*, sync::LazyLock};

use super::{avx2_gguf, avx2_low_bit::prefetch, zmm::transpose, zmm_values};
use crate::{
    gguf::{
        self, BlockType,
        integers::{Pairs, Rounding, SHIFTS, Sums, Vectors},
        lanes::V,
    },
    kernels::gguf::BlockKernel,
};

/// Blocks side by side.
const LANES: usize = 16;

/// Proof that AVX-512 and VNNI were detected: only [`probe`] makes one. It has AVX2's kernel for the rest.
struct Avx512Vnni(&'static dyn BlockKernel);

pub(in crate::kernels) fn probe() -> Option<&'static dyn BlockKernel> {
    static SET: LazyLock<Option<Avx512Vnni>> = LazyLock::new(|| {
        let detected = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        avx2_gguf::probe().filter(|_| detected).map(Avx512Vnni)
    });
    SET.as_ref().map(|set| set as &dyn BlockKernel)
}

impl BlockKernel for Avx512Vnni {
    fn name(&self) -> &'static str {
        "avx512vnni"
    }

    fn encode(&self, dtype: BlockType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> bool {
        match dtype {
            BlockType::Q2K | BlockType::Q4K | BlockType::Q5K | BlockType::Q6K => {
                // SAFETY: an `Avx512Vnni` exists only where AVX-512 and VNNI were detected.
                unsafe { encode(self, dtype, x, importance, out) }
            }
            _ => self.0.encode(dtype, x, importance, out),
        }
    }

    fn decode(&self, dtype: BlockType, data: &[u8], out: &mut [f32]) {
        self.0.decode(dtype, data, out);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn encode(vectors: &Avx512Vnni, dtype: BlockType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) -> bool {
    gguf::encode(vectors, dtype, x, importance, out)
}

impl Vectors<LANES> for Avx512Vnni {
    #[inline(always)]
    fn turn(&self, square: [&[f32; LANES]; LANES]) -> [V<LANES>; LANES] {
        // SAFETY: an `Avx512Vnni` exists only where AVX-512 was detected.
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
        // SAFETY: an `Avx512Vnni` exists only where AVX-512 and VNNI were detected.
        unsafe { sums(values, rounding) }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn turn(square: [&[f32; LANES]; LANES]) -> [V<LANES>; LANES] {
    let mut turned = [V::all(0.0); LANES];
    let columns = transpose(square.map(|row| _mm512_castps_si512(zmm_values::load(row))));
    for (turned, column) in turned.iter_mut().zip(columns) {
        zmm_values::store(_mm512_castsi512_ps(column), &mut turned.0);
    }
    turned
}

/// A level is half a product's upper bits, rounded, and a sum over pairs is what a product of pairs leaves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn sums(values: &[Pairs<LANES>], rounding: Rounding) -> [Sums<LANES>; SHIFTS] {
    let zero = _mm512_setzero_si512();
    let factor = _mm512_set1_epi16(rounding.factor);
    let shifts = rounding.shifts.map(|shift| _mm512_set1_epi16(shift));
    let mut sums = [[zero; 3]; SHIFTS];
    for pairs in values {
        let a = load(pairs);
        for ([sum_l, sum_ll, sum_la], shift) in sums.iter_mut().zip(shifts) {
            let l = _mm512_mulhrs_epi16(_mm512_sub_epi16(a, shift), factor);
            *sum_l = _mm512_add_epi16(*sum_l, l);
            *sum_ll = _mm512_dpwssd_epi32(*sum_ll, l, l);
            *sum_la = _mm512_dpwssd_epi32(*sum_la, l, a);
        }
    }
    let one = _mm512_set1_epi16(1);
    sums.map(|[l, ll, la]| Sums {
        l: integers(_mm512_madd_epi16(l, one)),
        ll: integers(ll),
        la: integers(la),
    })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(pairs: &Pairs<LANES>) -> __m512i {
    // SAFETY: `pairs` is 64 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(pairs.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn integers(v: __m512i) -> [i32; LANES] {
    let mut integers = [0; LANES];
    // SAFETY: `integers` is 64 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm512_storeu_si512(integers.as_mut_ptr().cast(), v) };
    integers
}
