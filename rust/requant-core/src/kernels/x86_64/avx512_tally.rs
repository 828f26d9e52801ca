//! Counting values into bins, and their range and moments, in one pass of 512-bit vectors.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use super::tally::{self, GROUP, LAST, Slots};
use crate::kernels::{
    Counters, LANES, Summary,
    generic::{self, Lanes},
};

#[target_feature(enable = "avx512f,popcnt")]
pub(super) fn tally(x: &[f32], inv_width: f32, step: u32, counters: &mut Counters) -> Option<Summary> {
    let (groups, rest) = x.as_chunks::<GROUP>();
    let mut sums = Sums::new();
    let pack = |group: &[f32; GROUP], slots: &mut Slots, at: usize| {
        let (vectors, _) = group.as_chunks();
        let [first, second] = [load(&vectors[0]), load(&vectors[1])];
        let mut len = 0;
        for v in [first, second] {
            len += put(v, inv_width, slots, at + len);
            sums.absorb(v);
        }
        len
    };
    // SAFETY: `put` masks what it puts.
    let zeros = unsafe { tally::tally(groups, step, counters, pack) };
    generic::count(rest, inv_width, step, counters);
    sums.finish(zeros, rest)
}

/// Puts the slots of the values that are not 0, and returns how many they are.
#[inline]
#[target_feature(enable = "avx512f,popcnt")]
fn put(v: __m512, inv_width: f32, slots: &mut Slots, at: usize) -> usize {
    let is_counted = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(v, _mm512_setzero_ps());
    let bins = _mm512_maskz_compress_epi32(is_counted, bins_of(v, inv_width));
    let out: &mut [u8; 2 * LANES] = slots.room(at);
    let words = _mm256_and_si256(_mm512_cvtepi32_epi16(bins), _mm256_set1_epi16(LAST));
    // SAFETY: `out` is 32 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), words) }
    is_counted.count_ones() as usize
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bins_of(v: __m512, inv_width: f32) -> __m512i {
    let bins = _mm512_cvttps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(inv_width)));
    let is_negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(v, _mm512_setzero_ps());
    _mm512_mask_sub_epi32(bins, is_negative, bins, _mm512_set1_epi32(1))
}

/// A [`Lanes`] in registers, but for the zeros.
struct Sums {
    min: __m512,
    max: __m512,
    sum: [__m512d; 2],
    sum_sq: [__m512d; 2],
}

impl Sums {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new() -> Self {
        Self {
            min: _mm512_set1_ps(f32::INFINITY),
            max: _mm512_set1_ps(f32::NEG_INFINITY),
            sum: [_mm512_setzero_pd(); 2],
            sum_sq: [_mm512_setzero_pd(); 2],
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn absorb(&mut self, v: __m512) {
        // Where one is NaN, the second is the result, as in the definition.
        self.min = _mm512_min_ps(v, self.min);
        self.max = _mm512_max_ps(v, self.max);
        let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v));
        let halves = [_mm512_castps512_ps256(v), _mm256_castpd_ps(high)].map(|half| _mm512_cvtps_pd(half));
        for (i, half) in halves.into_iter().enumerate() {
            self.sum[i] = _mm512_add_pd(self.sum[i], half);
            // The square of an f32 is exact in f64, so that one rounding is as good as two.
            self.sum_sq[i] = _mm512_fmadd_pd(half, half, self.sum_sq[i]);
        }
    }

    /// With the values that do not fill a group.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn finish(self, zeros: u32, rest: &[f32]) -> Option<Summary> {
        let mut lanes = Lanes::default();
        store(self.min, &mut lanes.min);
        store(self.max, &mut lanes.max);
        for i in 0..2 {
            store_f64(self.sum[i], &mut lanes.sum.as_chunks_mut().0[i]);
            store_f64(self.sum_sq[i], &mut lanes.sum_sq.as_chunks_mut().0[i]);
        }
        lanes.zeros[0] = zeros;
        lanes.absorb(rest);
        lanes.finish()
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: `x` is 64 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(v: __m512, out: &mut [f32; LANES]) {
    // SAFETY: `out` is 64 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_f64(v: __m512d, out: &mut [f64; 8]) {
    // SAFETY: `out` is 64 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm512_storeu_pd(out.as_mut_ptr(), v) }
}
