//! Low-bit weight quantization on AVX-512: ranges and integers; what is done once to a block is left to AVX2.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::{arch::x86_64::*, array, sync::LazyLock};

use super::{
    avx2_low_bit::{self, prefetch},
    zmm_values::{in_order, load, narrow, order_of_pairs, order_of_quads, store, store_bytes},
};
use crate::{
    kernels::low_bit::{Columns, Fit, Grids, LowBitKernel, Split, Weighted},
    weights::{BlockScheme, Grid, RowGrids},
};

/// Proof that AVX-512 with its byte permutations was detected: only [`probe`] makes one. It has AVX2's kernel for the
/// rest.
struct Avx512LowBit(&'static dyn LowBitKernel);

pub(in crate::kernels) fn probe() -> Option<&'static dyn LowBitKernel> {
    static AVX512: LazyLock<Option<Avx512LowBit>> = LazyLock::new(|| {
        let detected = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi");
        avx2_low_bit::probe().filter(|_| detected).map(Avx512LowBit)
    });
    AVX512.as_ref().map(|kernel| kernel as &dyn LowBitKernel)
}

impl LowBitKernel for Avx512LowBit {
    fn name(&self) -> &'static str {
        "avx512"
    }

    fn turn(&self, from: Columns<'_>, pitch: usize, to: &mut [f32]) {
        self.0.turn(from, pitch, to);
    }

    fn ranges(&self, x: &[f32], run: usize, lo: &mut [f32], hi: &mut [f32]) -> bool {
        if !run.is_multiple_of(LANES) {
            return self.0.ranges(x, run, lo, hi);
        }
        let runs = x.len() / run / LANES * LANES; // those that are taken 16 at a time
        let (x, rest) = x.split_at(runs * run);
        let ((lo, more_lo), (hi, more_hi)) = (lo.split_at_mut(runs), hi.split_at_mut(runs));
        // SAFETY: an `Avx512LowBit` exists only where AVX-512 was detected.
        let finite = unsafe {
            match run {
                16 => ranges(x, 16, lo, hi),
                32 => ranges(x, 32, lo, hi),
                _ => ranges(x, run, lo, hi),
            }
        };
        finite & self.0.ranges(rest, run, more_lo, more_hi)
    }

    fn encode(&self, x: &[f32], grids: Grids<'_>, bits: u32, out: &mut [u8]) {
        let whole = x.len() / GROUP * GROUP;
        let even = grids.run.is_multiple_of(GROUP) || GROUP.is_multiple_of(grids.run) && grids.run >= LANES;
        if whole == 0 || !even && x.len() > grids.run {
            return self.0.encode(x, grids, bits, out);
        }
        let (x, rest) = x.split_at(whole);
        let (out, last) = out.split_at_mut(whole * bits as usize / 8);
        // SAFETY: an `Avx512LowBit` exists only where AVX-512 was detected.
        unsafe {
            match bits {
                2 => encode::<2>(x, grids, out),
                4 => encode::<4>(x, grids, out),
                _ => encode::<8>(x, grids, out),
            }
        }
        if !rest.is_empty() {
            // It begins within a run of its own or with one, and does not reach past the last.
            let first = whole / grids.run;
            let rest_of = Grids {
                inverse: &grids.inverse[first..],
                zero_point: &grids.zero_point[first..],
                ..grids
            };
            self.0.encode(rest, rest_of, bits, last);
        }
    }

    fn spread(&self, scheme: BlockScheme, lo: &[f32], hi: &[f32], to: &mut RowGrids) {
        // SAFETY: an `Avx512LowBit` exists only where AVX-512 was detected.
        unsafe { spread(scheme, lo, hi, to) }
    }

    fn errors(&self, block: Weighted<'_>, grids: &[Grid], limits: (f32, f32), out: &mut [f32]) {
        self.0.errors(block, grids, limits, out);
    }

    fn fit(&self, block: Weighted<'_>, grids: &[Grid], limits: (f32, f32), out: &mut [Fit]) {
        self.0.fit(block, grids, limits, out);
    }

    fn split(&self, block: Weighted<'_>, grid: Grid, beta: f32, limits: (f32, f32)) -> Split {
        self.0.split(block, grid, beta, limits)
    }
}

/// Floats in a register.
const LANES: usize = 16;

/// Of whole runs, a multiple of 16 of them, each of whole registers. The lanes of 16 runs are brought together at once.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn ranges(x: &[f32], run: usize, lo: &mut [f32], hi: &mut [f32]) -> bool {
    let mut ordered = [__mmask16::MAX; 4];
    let mut finite = __mmask16::MAX;
    let runs = lo
        .as_chunks_mut::<LANES>()
        .0
        .iter_mut()
        .zip(hi.as_chunks_mut::<LANES>().0);
    for (x, (lo, hi)) in x.chunks_exact(run * LANES).zip(runs) {
        let mut quads = [(_mm512_setzero_ps(), _mm512_setzero_ps()); 4];
        for (quad, x) in quads.iter_mut().zip(x.chunks_exact(run * 4)) {
            let mut ends = [(_mm512_setzero_ps(), _mm512_setzero_ps()); 4];
            for ((ends, x), ordered) in ends.iter_mut().zip(x.chunks_exact(run)).zip(&mut ordered) {
                let (vectors, _) = x.as_chunks();
                let first = load(&vectors[0]);
                *ends = (first, first);
                for v in &vectors[(run / LANES).min(2) - 1..] {
                    let v = load(v);
                    *ends = (_mm512_min_ps(ends.0, v), _mm512_max_ps(ends.1, v));
                    // A minimum can lose a NaN; one comparison finds it in either.
                    *ordered = _mm512_mask_cmp_ps_mask::<_CMP_ORD_Q>(*ordered, first, v);
                }
            }
            *quad = (
                within_quarters(ends.map(|(least, _)| least), |a, b| _mm512_min_ps(a, b)),
                within_quarters(ends.map(|(_, most)| most), |a, b| _mm512_max_ps(a, b)),
            );
        }
        let least = across_quarters(quads.map(|(least, _)| least), |a, b| _mm512_min_ps(a, b));
        let most = across_quarters(quads.map(|(_, most)| most), |a, b| _mm512_max_ps(a, b));
        // An infinity less itself is NaN.
        let (none, other) = (_mm512_sub_ps(least, least), _mm512_sub_ps(most, most));
        finite = _mm512_mask_cmp_ps_mask::<_CMP_ORD_Q>(finite, none, other);
        store(least, lo);
        store(most, hi);
    }
    let [a, b, c, d] = ordered;
    a & b & c & d & finite == __mmask16::MAX
}

/// Of four registers, what is left of each in each quarter of 128 bits, side by side.
#[inline(always)]
fn within_quarters([a, b, c, d]: [__m512; 4], pick: impl Fn(__m512, __m512) -> __m512) -> __m512 {
    // SAFETY: only functions that have AVX-512 call this.
    unsafe {
        let ab = pick(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = pick(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let [ab, cd] = [ab, cd].map(|v| _mm512_castps_pd(v));
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        pick(low, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)))
    }
}

/// The quarters of four registers brought together: those of the first, then those of the second...
#[inline(always)]
fn across_quarters([a, b, c, d]: [__m512; 4], pick: impl Fn(__m512, __m512) -> __m512) -> __m512 {
    // SAFETY: only functions that have AVX-512 call this.
    unsafe {
        let ab = pick(
            _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
        );
        let cd = pick(
            _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d),
            _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d),
        );
        pick(
            _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
        )
    }
}

/// Values that are packed at a time.
const GROUP: usize = 64;

/// Of whole groups, in runs that divide a group, or that a group divides, or in a single one.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn encode<const BITS: usize>(x: &[f32], grids: Grids<'_>, out: &mut [u8]) {
    match grids.run {
        16 => encode_runs::<BITS, 4>(x, grids, out),
        32 => encode_runs::<BITS, 2>(x, grids, out),
        _ => encode_runs::<BITS, 1>(x, grids, out),
    }
}

/// With so many runs to a group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn encode_runs<const BITS: usize, const RUNS: usize>(x: &[f32], grids: Grids<'_>, out: &mut [u8]) {
    const { assert!(matches!(BITS, 2 | 4 | 8)) };
    let limits = (_mm512_set1_ps(grids.limits.0), _mm512_set1_ps(grids.limits.1));
    // Rows lie one behind the other: the next one comes from memory while this one is worked on.
    let next = x.len();
    let many = grids.run.max(GROUP);
    let (inverse, zero_point) = (
        grids.inverse.as_chunks::<RUNS>().0,
        grids.zero_point.as_chunks::<RUNS>().0,
    );
    let runs = x.chunks(many).zip(out.chunks_mut(many * BITS / 8));
    for ((x, out), (inverse, zero_point)) in runs.zip(inverse.iter().zip(zero_point)) {
        let groups = x.as_chunks::<GROUP>().0;
        for (x, out) in groups.iter().zip(out.chunks_exact_mut(GROUP * BITS / 8)) {
            let (vectors, _) = x.as_chunks::<LANES>();
            let codes: [__m512i; 4] = array::from_fn(|i| {
                prefetch(vectors[i].as_ptr().wrapping_add(next));
                let (inverse, zero_point) = (inverse[i * RUNS / 4], zero_point[i * RUNS / 4]);
                codes(&vectors[i], _mm512_set1_ps(inverse), _mm512_set1_ps(zero_point), limits)
            });
            let bytes = narrow(codes);
            match BITS {
                2 => {
                    let pairs = _mm512_maddubs_epi16(bytes, _mm512_set1_epi16(4 << 8 | 1));
                    let quads = _mm512_madd_epi16(pairs, _mm512_set1_epi32(16 << 16 | 1));
                    let packed = _mm512_permutexvar_epi8(order_of_quads(), quads);
                    // SAFETY: `out` is 16 writable bytes, and `storeu` needs no alignment.
                    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm512_castsi512_si128(packed)) };
                }
                4 => {
                    let pairs = _mm512_maddubs_epi16(bytes, _mm512_set1_epi16(16 << 8 | 1));
                    let packed = _mm512_permutexvar_epi8(order_of_pairs(), pairs);
                    // SAFETY: `out` is 32 writable bytes, and `storeu` needs no alignment.
                    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_castsi512_si256(packed)) };
                }
                _ => {
                    if let Some(out) = out.first_chunk_mut() {
                        store_bytes(in_order(bytes), out);
                    }
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn codes(x: &[f32; LANES], inverse: __m512, zero_point: __m512, (least, most): (__m512, __m512)) -> __m512i {
    let level = _mm512_add_ps(_mm512_mul_ps(load(x), inverse), zero_point);
    let level = _mm512_min_ps(_mm512_max_ps(level, least), most);
    _mm512_cvttps_epi32(_mm512_add_ps(level, _mm512_set1_ps(0.499_999_97)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn spread(scheme: BlockScheme, lo: &[f32], hi: &[f32], to: &mut RowGrids) {
    to.spread(scheme, lo, hi);
}
