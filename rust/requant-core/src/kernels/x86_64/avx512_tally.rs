//! Counting values into bins, and their range and moments, in one pass.
//!
//! The additions in memory are what takes the time: 0.24 ns each on Zen 5, which stores once a cycle. So zeros, which are half
//! of the values after ReLU, are left out of them: the bins of the other values are packed side by side. While those of
//! one piece are packed, those of the piece before are counted, a few a vector, so that neither waits for the other. They
//! take 16 bits and are read four at once: what is stored across two lines of the cache, and what is loaded, takes time
//! from the additions.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use crate::kernels::{
    BINS, Counters, LANES, Summary, WAYS,
    generic::{self, Lanes},
};

/// Values that are packed before any of them is counted: what was just stored whole cannot be loaded in parts at once.
const PIECE: usize = 512;

/// Values of two vectors.
const PAIR: usize = 2 * LANES;

/// Slots that are read at once.
const FOUR: usize = 4;

/// Bytes by which reading is ahead: the CPU by itself is not far enough, as additions come between two vectors.
const AHEAD: usize = 8192;

#[target_feature(enable = "avx512f,popcnt")]
pub(super) fn tally(x: &[f32], inv_width: f32, step: u32, counters: &mut Counters) -> Option<Summary> {
    if x.len() >= BINS * WAYS {
        // Where other tensors were counted since, they lie beyond the first cache, and are fetched faster in order.
        for line in counters.as_flattened().as_chunks::<LANES>().0 {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
    let (whole, rest) = x.split_at(x.len() / PAIR * PAIR);
    let (mut sums, mut nonzero) = (Sums::new(), 0);
    let (mut packed, mut packing) = (&mut Slots::new(), &mut Slots::new());
    for piece in whole.chunks(PIECE) {
        // The same for all pairs of vectors of a piece, so that the loop that counts them is foreseen.
        let fours = packed.len / (PIECE / PAIR * FOUR);
        let mut waiting = packed.fours();
        let mut len = 0;
        for pair in piece.as_chunks::<PAIR>().0 {
            let ahead = pair.as_ptr().wrapping_byte_add(AHEAD);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(LANES).cast());
            let vectors: &[[f32; LANES]] = pair.as_chunks().0;
            for v in [load(&vectors[0]), load(&vectors[1])] {
                len += packing.pack(v, inv_width, len);
                sums.absorb(v);
            }
            let now;
            (now, waiting) = waiting.split_at(fours);
            count(now, step, counters);
        }
        count(waiting, step, counters);
        packed.count_odd(step, counters);
        nonzero += len;
        packing.len = len;
        if len == piece.len() && is_constant(piece) {
            // Each addition would wait for the one before it.
            let counter = &mut counters[0][packing.slot(0)];
            *counter = counter.wrapping_add(step.wrapping_mul(to_u32(piece.len())));
            packing.len = 0;
        }
        (packed, packing) = (packing, packed);
    }
    count(packed.fours(), step, counters);
    packed.count_odd(step, counters);
    let zeros = to_u32(whole.len() - nonzero);
    counters[0][0] = counters[0][0].wrapping_add(step.wrapping_mul(zeros));
    generic::count(rest, inv_width, step, counters);
    sums.finish(zeros, rest)
}

/// Adds one for each of `fours`, all of which are less than [`BINS`], as [`Slots::pack`] makes them.
#[inline]
#[target_feature(enable = "avx512f")]
#[expect(clippy::cast_possible_truncation, reason = "16 bits at a time")]
fn count(fours: &[[u8; 2 * FOUR]], step: u32, counters: &mut Counters) {
    for four in fours {
        let four = u64::from_le_bytes(*four);
        for i in 0..FOUR {
            let slot = (four >> (16 * i)) as u16 as usize;
            // SAFETY: all slots are less than `BINS`.
            let counter = unsafe { counters[i % WAYS].get_unchecked_mut(slot) };
            *counter = counter.wrapping_add(step);
        }
    }
}

/// Where values that are not 0 count, side by side.
#[repr(align(64))]
struct Slots {
    /// 16 bits each, all of them less than [`BINS`].
    bytes: [u8; 2 * (PIECE + LANES)],
    len: usize,
}

impl Slots {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "a few thousand"
    )]
    const LAST: i16 = BINS as i16 - 1;

    fn new() -> Self {
        Self {
            bytes: [0; 2 * (PIECE + LANES)],
            len: 0,
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,popcnt")]
    fn pack(&mut self, v: __m512, inv_width: f32, at: usize) -> usize {
        let is_counted = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(v, _mm512_setzero_ps());
        let bins = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(is_counted, bins_of(v, inv_width)));
        let slots = _mm256_and_si256(bins, _mm256_set1_epi16(Self::LAST));
        let out: &mut [u8; 2 * LANES] = self.bytes[2 * at..].first_chunk_mut().expect("a vector");
        // SAFETY: `out` is 32 writable bytes, and `storeu` needs no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), slots) }
        is_counted.count_ones() as usize
    }

    fn fours(&self) -> &[[u8; 2 * FOUR]] {
        self.bytes[..2 * self.len].as_chunks().0
    }

    fn slot(&self, i: usize) -> usize {
        usize::from(u16::from_le_bytes([self.bytes[2 * i], self.bytes[2 * i + 1]]))
    }

    /// Counts the last ones, of which there are no four.
    fn count_odd(&self, step: u32, counters: &mut Counters) {
        for i in self.len / FOUR * FOUR..self.len {
            let counter = &mut counters[0][self.slot(i)];
            *counter = counter.wrapping_add(step);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bins_of(v: __m512, inv_width: f32) -> __m512i {
    let bins = _mm512_cvttps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(inv_width)));
    let is_negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(v, _mm512_setzero_ps());
    _mm512_mask_sub_epi32(bins, is_negative, bins, _mm512_set1_epi32(1))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn is_constant(piece: &[f32]) -> bool {
    let first = _mm512_set1_ps(piece[0]);
    let equal = |v| _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(load(v), first) == u16::MAX;
    piece.as_chunks().0.iter().all(equal)
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

    /// With the values that do not fill a block.
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

#[expect(
    clippy::cast_possible_truncation,
    reason = "at most the length of a slice that is counted in u32"
)]
const fn to_u32(len: usize) -> u32 {
    len as u32
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
