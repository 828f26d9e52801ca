//! GGUF's blocks on AVX-512 with VNNI: the definition, compiled for it, 16 blocks side by side. Types that gain nothing
//! by that are left to AVX2.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::{
    arch::x86_64::*,
    ops::{Add, Div, Mul, Sub},
    sync::LazyLock,
};

use super::{avx2_gguf, avx2_low_bit::prefetch, zmm::transpose, zmm_values};
use crate::{
    gguf::{
        self, BlockType, SUPER,
        integers::{Reals, Rounding, SHIFTS, Sums, Vectors},
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

/// A number of each block. Only functions of [`Avx512Vnni`] make the first of them.
#[derive(Clone, Copy)]
struct Zmm(__m512);

/// A function of two of them.
macro_rules! operators {
    ($($trait:ident $name:ident $intrinsic:ident),*) => {
        $(impl $trait for Zmm {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                // SAFETY: a `Zmm` exists only where AVX-512 was detected.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        })*
    };
}
operators!(Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);

impl Reals<LANES> for Zmm {
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: a `Zmm` exists only where AVX-512 was detected. Of equal operands, the instruction gives the second.
        Self(unsafe { _mm512_min_ps(other.0, self.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(unsafe { _mm512_max_ps(other.0, self.0) })
    }

    #[inline(always)]
    fn if_greater(self, other: Self, yes: Self, no: Self) -> Self {
        // SAFETY: a `Zmm` exists only where AVX-512 was detected.
        Self(unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0), no.0, yes.0) })
    }

    #[inline(always)]
    fn any_greater(self, other: Self) -> bool {
        // SAFETY: as above.
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0) != 0 }
    }

    #[inline(always)]
    fn lanes(self) -> V<LANES> {
        let mut lanes = V::all(0.0);
        // SAFETY: as above.
        unsafe { zmm_values::store(self.0, &mut lanes.0) };
        lanes
    }
}

impl Vectors<LANES> for Avx512Vnni {
    type Reals = Zmm;
    type Pairs = __m512i;

    #[inline(always)]
    fn all(&self, value: f32) -> Zmm {
        // SAFETY: an `Avx512Vnni` exists only where AVX-512 was detected.
        Zmm(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    fn turn(&self, square: [&[f32; LANES]; LANES]) -> [Zmm; LANES] {
        // SAFETY: as above.
        unsafe { turn(square) }
    }

    #[inline(always)]
    fn pairs(&self, first: Zmm, second: Zmm) -> __m512i {
        // SAFETY: as above.
        unsafe { pairs(first.0, second.0) }
    }

    #[inline(always)]
    fn total(&self, values: &[__m512i]) -> Zmm {
        // SAFETY: an `Avx512Vnni` exists only where AVX-512 and VNNI were detected.
        unsafe { total(values) }
    }

    #[inline(always)]
    fn sums(&self, values: &[__m512i], rounding: Rounding) -> [Sums<Zmm>; SHIFTS] {
        // SAFETY: as above.
        unsafe { sums(values, rounding) }
    }

    #[inline(always)]
    fn levels<const BLOCKS: usize>(
        &self,
        x: &[f32; SUPER],
        mins: &[f32; BLOCKS],
        inverses: &[f32; BLOCKS],
        most: f32,
        out: &mut [u8; SUPER],
    ) {
        // SAFETY: an `Avx512Vnni` exists only where AVX-512 was detected.
        unsafe { levels(x, mins, inverses, most, out) }
    }

    #[inline(always)]
    fn fetch(&self, from: *const f32, bytes: usize) {
        for line in (0..bytes).step_by(64) {
            prefetch(from.wrapping_byte_add(line));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn turn(square: [&[f32; LANES]; LANES]) -> [Zmm; LANES] {
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (rows, square) in rows.iter_mut().zip(square) {
        *rows = _mm512_castps_si512(zmm_values::load(square));
    }
    let mut columns = [Zmm(_mm512_setzero_ps()); LANES];
    for (column, turned) in columns.iter_mut().zip(transpose(rows)) {
        *column = Zmm(_mm512_castsi512_ps(turned));
    }
    columns
}

#[inline]
#[target_feature(enable = "avx512f")]
fn pairs(first: __m512, second: __m512) -> __m512i {
    let (first, second) = (_mm512_cvtps_epi32(first), _mm512_cvtps_epi32(second));
    _mm512_or_si512(first, _mm512_slli_epi32::<16>(second))
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn total(values: &[__m512i]) -> Zmm {
    let (one, mut total) = (_mm512_set1_epi16(1), _mm512_setzero_si512());
    for &a in values {
        total = _mm512_dpwssd_epi32(total, a, one);
    }
    Zmm(_mm512_cvtepi32_ps(total))
}

/// A level is half a product's upper bits, rounded, and a sum over pairs is what a product of pairs leaves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn sums(values: &[__m512i], rounding: Rounding) -> [Sums<Zmm>; SHIFTS] {
    let zero = _mm512_setzero_si512();
    let (factor, one) = (_mm512_set1_epi16(rounding.factor), _mm512_set1_epi16(1));
    let mut sums = [[zero; 3]; SHIFTS];
    for &a in values {
        for ([sum_l, sum_ll, sum_la], shift) in sums.iter_mut().zip(rounding.shifts) {
            let l = _mm512_mulhrs_epi16(_mm512_sub_epi16(a, _mm512_set1_epi16(shift)), factor);
            *sum_l = _mm512_add_epi16(*sum_l, l);
            *sum_ll = _mm512_dpwssd_epi32(*sum_ll, l, l);
            *sum_la = _mm512_dpwssd_epi32(*sum_la, l, a);
        }
    }
    let mut reals = [Zmm(_mm512_setzero_ps()); 3].map(|l| Sums { l, ll: l, la: l });
    for (reals, [l, ll, la]) in reals.iter_mut().zip(sums) {
        reals.l = Zmm(_mm512_cvtepi32_ps(_mm512_madd_epi16(l, one)));
        reals.ll = Zmm(_mm512_cvtepi32_ps(ll));
        reals.la = Zmm(_mm512_cvtepi32_ps(la));
    }
    reals
}

/// Of NaN, the largest is 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn levels<const BLOCKS: usize>(
    x: &[f32; SUPER],
    mins: &[f32; BLOCKS],
    inverses: &[f32; BLOCKS],
    most: f32,
    out: &mut [u8; SUPER],
) {
    let (zero, most) = (_mm512_setzero_ps(), _mm512_set1_ps(most));
    let rows = x.as_chunks::<64>().0.iter().zip(out.as_chunks_mut().0);
    for (i, (x, out)) in rows.enumerate() {
        let mut levels = [_mm512_setzero_si512(); 4];
        for (v, (level, x)) in levels.iter_mut().zip(x.as_chunks().0).enumerate() {
            let block = (4 * i + v) * LANES * BLOCKS / SUPER;
            let above = _mm512_add_ps(zmm_values::load(x), _mm512_set1_ps(mins[block]));
            let above = _mm512_mul_ps(above, _mm512_set1_ps(inverses[block]));
            *level = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(above, zero), most));
        }
        zmm_values::store_bytes(zmm_values::in_order(zmm_values::narrow(levels)), out);
    }
}
