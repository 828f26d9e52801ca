//! Counting values into bins, and their range and moments, in one pass.
//!
//! The additions in memory are what takes the time: 0.22 ns each on Zen 5. So zeros, which are half of the values after ReLU, are
//! left out of them: the bins of the other values are packed side by side, and what does not fill a vector waits for a later
//! block.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use crate::kernels::{
    BINS, Counters, LANES, Summary, WAYS,
    generic::{self, Lanes},
};

/// Values whose bins are computed before any is counted: few enough that the CPU works on two blocks at once.
const BLOCK: usize = 128;

#[target_feature(enable = "avx512f,popcnt")]
pub(super) fn tally(x: &[f32], inv_width: f32, step: u32, counters: &mut Counters) -> Option<Summary> {
    let (blocks, rest) = x.as_chunks::<BLOCK>();
    let (mut sums, mut counted) = (Sums::new(), 0);
    // One block is counted while the next is packed: what was just stored whole cannot be loaded in parts at once.
    let (mut packed, mut packing) = (&mut Slots::new(), &mut Slots::new());
    for block in blocks {
        let waiting = packing.len;
        packing.pack(block, inv_width, &mut sums);
        let count = packing.len - waiting;
        counted += count;
        if count == BLOCK && is_constant(block) {
            // Each addition would wait for the one before it.
            let counter = &mut counters[0][packing.slots[waiting] as usize];
            *counter = counter.wrapping_add(step.wrapping_mul(to_u32(BLOCK)));
            packing.len = waiting;
        }
        packed.count(step, counters);
        (packed, packing) = (packing, packed);
    }
    for slots in [packed, packing] {
        slots.count(step, counters);
        slots.count_rest(step, counters);
    }
    let zeros = to_u32(blocks.len() * BLOCK - counted);
    counters[0][0] = counters[0][0].wrapping_add(step.wrapping_mul(zeros));
    generic::count(rest, inv_width, step, counters);
    sums.finish(zeros, rest)
}

/// Where values that are not 0 count, side by side.
struct Slots {
    /// All are less than [`BINS`].
    slots: [u32; BLOCK + 2 * LANES],
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
            slots: [0; BLOCK + 2 * LANES],
            len: 0,
        }
    }

    /// Takes in a block, where less than a vector is waiting.
    #[inline]
    #[target_feature(enable = "avx512f,popcnt")]
    fn pack(&mut self, block: &[f32; BLOCK], inv_width: f32, sums: &mut Sums) {
        let within = _mm512_set1_epi32(Self::LAST);
        for v in block.as_chunks().0 {
            let v = load(v);
            let is_counted = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(v, _mm512_setzero_ps());
            let slots = _mm512_and_si512(bins_of(v, inv_width), within);
            self.store(_mm512_maskz_compress_epi32(is_counted, slots), self.len);
            self.len += is_counted.count_ones() as usize;
            sums.absorb(v);
        }
    }

    /// Counts whole vectors of them; the others wait.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn count(&mut self, step: u32, counters: &mut Counters) {
        let (vectors, _) = self.slots[..self.len].as_chunks::<LANES>();
        for slots in vectors {
            for pair in slots.as_chunks::<WAYS>().0 {
                for (slot, counters) in pair.iter().zip(counters.iter_mut()) {
                    // SAFETY: all slots are less than `BINS`, as they were when they were stored.
                    let counter = unsafe { counters.get_unchecked_mut(*slot as usize) };
                    *counter = counter.wrapping_add(step);
                }
            }
        }
        let whole = vectors.len() * LANES;
        self.store(load_slots(self.slots[whole..].first_chunk().expect("a vector")), 0);
        self.len -= whole;
    }

    fn count_rest(&mut self, step: u32, counters: &mut Counters) {
        for slot in &self.slots[..self.len] {
            let counter = &mut counters[0][*slot as usize];
            *counter = counter.wrapping_add(step);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(&mut self, slots: __m512i, at: usize) {
        let out: &mut [u32; LANES] = self.slots[at..].first_chunk_mut().expect("a vector");
        // SAFETY: `out` is 64 writable bytes, and `storeu` needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), slots) }
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
fn load_slots(slots: &[u32; LANES]) -> __m512i {
    // SAFETY: `slots` is 64 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(slots.as_ptr().cast()) }
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
