//! Counting values into bins, and their range and moments, in one pass.
//!
//! The additions in memory are what takes the time: 0.24 ns each on Zen 5, which stores once a cycle. So zeros, which are half
//! of the values after ReLU, are left out of them: the bins of the other values are packed side by side. While those of
//! one piece are packed, those of the piece before are counted, a few a vector, so that neither waits for the other.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use crate::kernels::{
    BINS, Counters, LANES, Summary, WAYS,
    generic::{self, Lanes},
};

/// Values that are looked at together to see whether they are all the same.
const BLOCK: usize = 128;

/// Values that are packed before any of them is counted: what was just stored whole cannot be loaded in parts at once.
const PIECE: usize = 4 * BLOCK;

/// Bytes by which reading is ahead: the CPU by itself is not far enough, as additions come between two vectors.
const AHEAD: usize = 8192;

#[target_feature(enable = "avx512f,popcnt")]
pub(super) fn tally(x: &[f32], inv_width: f32, step: u32, counters: &mut Counters) -> Option<Summary> {
    let (blocks, rest) = x.as_chunks::<BLOCK>();
    let (mut sums, mut counted) = (Sums::new(), 0);
    let (mut packed, mut packing) = (&mut Slots::new(), &mut Slots::new());
    for piece in blocks.chunks(PIECE / BLOCK) {
        // The same for all vectors of a piece, so that the loop that counts them is foreseen.
        let pairs = packed.len / (piece.len() * BLOCK / LANES * WAYS);
        let mut waiting = packed.slots[..packed.len].as_chunks().0;
        packing.len = 0;
        for block in piece {
            let start = packing.len;
            for v in block.as_chunks().0 {
                _mm_prefetch::<_MM_HINT_T0>(v.as_ptr().wrapping_byte_add(AHEAD).cast());
                let v = load(v);
                packing.pack(v, inv_width);
                sums.absorb(v);
                let now;
                (now, waiting) = waiting.split_at(pairs);
                count(now, step, counters);
            }
            let nonzero = packing.len - start;
            counted += nonzero;
            if nonzero == BLOCK && is_constant(block) {
                // Each addition would wait for the one before it.
                let counter = &mut counters[0][packing.slots[start] as usize];
                *counter = counter.wrapping_add(step.wrapping_mul(to_u32(BLOCK)));
                packing.len = start;
            }
        }
        count(waiting, step, counters);
        packed.count_odd(step, counters);
        (packed, packing) = (packing, packed);
    }
    count(packed.slots[..packed.len].as_chunks().0, step, counters);
    packed.count_odd(step, counters);
    let zeros = to_u32(blocks.len() * BLOCK - counted);
    counters[0][0] = counters[0][0].wrapping_add(step.wrapping_mul(zeros));
    generic::count(rest, inv_width, step, counters);
    sums.finish(zeros, rest)
}

/// Adds one for each of `slots`, all of which are less than [`BINS`], as [`Slots::pack`] makes them.
#[inline]
#[target_feature(enable = "avx512f")]
fn count(slots: &[[u32; WAYS]], step: u32, counters: &mut Counters) {
    for pair in slots {
        for (slot, counters) in pair.iter().zip(counters.iter_mut()) {
            // SAFETY: all slots are less than `BINS`.
            let counter = unsafe { counters.get_unchecked_mut(*slot as usize) };
            *counter = counter.wrapping_add(step);
        }
    }
}

/// Where values that are not 0 count, side by side.
struct Slots {
    /// All are less than [`BINS`].
    slots: [u32; PIECE + LANES],
    len: usize,
}

impl Slots {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "a few thousand"
    )]
    const LAST: i32 = BINS as i32 - 1;

    fn new() -> Self {
        Self {
            slots: [0; PIECE + LANES],
            len: 0,
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,popcnt")]
    fn pack(&mut self, v: __m512, inv_width: f32) {
        let is_counted = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(v, _mm512_setzero_ps());
        let slots = _mm512_and_si512(bins_of(v, inv_width), _mm512_set1_epi32(Self::LAST));
        let out: &mut [u32; LANES] = self.slots[self.len..].first_chunk_mut().expect("a vector");
        // SAFETY: `out` is 64 writable bytes, and `storeu` needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(is_counted, slots)) }
        self.len += is_counted.count_ones() as usize;
    }

    /// Counts the last one, where it is no second of a pair.
    fn count_odd(&self, step: u32, counters: &mut Counters) {
        for slot in self.slots[..self.len].as_chunks::<WAYS>().1 {
            let counter = &mut counters[0][*slot as usize];
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
fn is_constant(block: &[f32; BLOCK]) -> bool {
    let first = _mm512_set1_ps(block[0]);
    let equal = |v| _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(load(v), first) == u16::MAX;
    block[0] == block[BLOCK - 1] && block.as_chunks().0.iter().all(equal)
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
