//! Counting values into bins, and their range and moments, in one pass of 256-bit vectors.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use super::{
    avx2_values::{load, store as store_f32},
    tally::{self, GROUP, LAST, Slots},
};
use crate::kernels::{
    Counters, LANES, Summary,
    generic::{self, Lanes},
};

#[target_feature(enable = "avx2,fma,popcnt")]
pub(super) fn tally(x: &[f32], inv_width: f32, step: u32, counters: &mut Counters) -> Option<Summary> {
    let (groups, rest) = x.as_chunks::<GROUP>();
    let mut sums = Sums::new();
    let pack = |group: &[f32; GROUP], slots: &mut Slots, at: usize| {
        let mut end = at;
        for half in group.as_chunks::<LANES>().0 {
            let (vectors, _) = half.as_chunks();
            let [first, second] = [load(&vectors[0]), load(&vectors[1])];
            end += put([first, second], inv_width, slots, end);
            sums.absorb(first, 0);
            sums.absorb(second, 1);
        }
        end - at
    };
    // SAFETY: `slots_of` makes numbers that are less than `BINS`.
    let zeros = unsafe { tally::tally(groups, step, counters, pack) };
    generic::count(rest, inv_width, step, counters);
    sums.finish(zeros, rest)
}

/// Puts the slots of the values that are not 0, and returns how many they are.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
fn put(v: [__m256; 2], inv_width: f32, slots: &mut Slots, at: usize) -> usize {
    let counted = v.map(|v| nonzeros(v));
    let bins = v.map(|v| bins_of(v, inv_width));
    if counted == [u8::MAX; 2] {
        put_all(bins, slots, at);
        return LANES;
    }
    let mut len = 0;
    for (counted, bins) in counted.into_iter().zip(bins) {
        let order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(PACKED[usize::from(counted)]));
        let packed = slots_of(_mm256_permutevar8x32_epi32(bins, order));
        let words = _mm_packus_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed));
        let out: &mut [u8; 16] = slots.room(at + len);
        // SAFETY: `out` is 16 writable bytes, and `storeu` needs no alignment.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), words) }
        len += counted.count_ones() as usize;
    }
    len
}

#[inline]
#[target_feature(enable = "avx2")]
fn put_all([first, second]: [__m256i; 2], slots: &mut Slots, at: usize) {
    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(slots_of(first), slots_of(second)));
    let out: &mut [u8; 32] = slots.room(at);
    // SAFETY: `out` is 32 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), words) }
}

/// The lanes that are not 0 or -0, a bit for each.
#[inline]
#[target_feature(enable = "avx2")]
fn nonzeros(v: __m256) -> u8 {
    _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NEQ_UQ>(v, _mm256_setzero_ps())).to_le_bytes()[0]
}

/// For each set of lanes their indices, a byte for each, the first lowest.
const PACKED: [i64; 256] = {
    let mut table = [0; 256];
    let mut set = 0;
    while set < table.len() {
        let (mut lane, mut at) = (0, 0);
        while lane < 8 {
            if set >> lane & 1 == 1 {
                table[set] |= lane << at;
                at += 8;
            }
            lane += 1;
        }
        set += 1;
    }
    table
};

#[inline]
#[target_feature(enable = "avx2")]
fn bins_of(v: __m256, inv_width: f32) -> __m256i {
    let bins = _mm256_cvttps_epi32(_mm256_mul_ps(v, _mm256_set1_ps(inv_width)));
    let negative = _mm256_cmp_ps::<_CMP_LT_OQ>(v, _mm256_setzero_ps()); // -1 where v < 0
    _mm256_add_epi32(bins, _mm256_castps_si256(negative))
}

#[inline]
#[target_feature(enable = "avx2")]
fn slots_of(bins: __m256i) -> __m256i {
    _mm256_and_si256(bins, _mm256_set1_epi32(LAST.into()))
}

/// A [`Lanes`] in registers, but for the zeros.
struct Sums {
    min: __m256,
    max: __m256,
    sum: [__m256d; LANES / 4],
    sum_sq: [__m256d; LANES / 4],
}

impl Sums {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new() -> Self {
        Self {
            min: _mm256_set1_ps(f32::INFINITY),
            max: _mm256_set1_ps(f32::NEG_INFINITY),
            sum: [_mm256_setzero_pd(); LANES / 4],
            sum_sq: [_mm256_setzero_pd(); LANES / 4],
        }
    }

    /// Takes in the first or second half of the lanes, all but the zeros.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn absorb(&mut self, v: __m256, half: usize) {
        self.min = _mm256_min_ps(v, self.min); // the second operand where v is NaN
        self.max = _mm256_max_ps(v, self.max);
        // The square of an f32 is exact in f64, so FMA rounds as multiplying and adding would.
        let low = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
        let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v));
        let (sum, sum_sq) = (&mut self.sum[2 * half..][..2], &mut self.sum_sq[2 * half..][..2]);
        sum[0] = _mm256_add_pd(sum[0], low);
        sum[1] = _mm256_add_pd(sum[1], high);
        sum_sq[0] = _mm256_fmadd_pd(low, low, sum_sq[0]);
        sum_sq[1] = _mm256_fmadd_pd(high, high, sum_sq[1]);
    }

    /// With the values that do not fill a group.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn finish(self, zeros: u32, rest: &[f32]) -> Option<Summary> {
        let mut lanes = Lanes::default();
        store_f32(self.min, &mut lanes.min.as_chunks_mut().0[0]);
        store_f32(self.max, &mut lanes.max.as_chunks_mut().0[0]);
        for i in 0..LANES / 4 {
            store_f64(self.sum[i], &mut lanes.sum.as_chunks_mut().0[i]);
            store_f64(self.sum_sq[i], &mut lanes.sum_sq.as_chunks_mut().0[i]);
        }
        lanes.zeros[0] = zeros;
        lanes.absorb(rest);
        lanes.finish()
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_f64(v: __m256d, out: &mut [f64; 4]) {
    // SAFETY: `out` is 4 writable doubles, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_pd(out.as_mut_ptr(), v) }
}
