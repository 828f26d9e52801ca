//! Low-bit weight quantization on AVX2.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::{arch::x86_64::*, array, slice};

use super::avx2_values::{load, store};
use crate::{
    kernels::{
        generic_low_bit as generic,
        low_bit::{Columns, Fit, Grids, LowBitKernel, Split, Weighted},
    },
    weights::{BlockScheme, Grid, RowGrids},
};

/// Proof that AVX2 was detected: only [`probe`] makes one.
struct Avx2LowBit(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn LowBitKernel> {
    static AVX2: Avx2LowBit = Avx2LowBit(());
    is_x86_feature_detected!("avx2").then_some(&AVX2 as &dyn LowBitKernel)
}

impl LowBitKernel for Avx2LowBit {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn turn(&self, from: Columns<'_>, pitch: usize, to: &mut [f32]) {
        // SAFETY: an `Avx2LowBit` exists only where AVX2 was detected.
        unsafe { turn(from, pitch, to) }
    }

    fn ranges(&self, x: &[f32], run: usize, lo: &mut [f32], hi: &mut [f32]) -> bool {
        // SAFETY: an `Avx2LowBit` exists only where AVX2 was detected.
        unsafe { ranges(x, run, lo, hi) }
    }

    fn encode(&self, x: &[f32], grids: Grids<'_>, bits: u32, out: &mut [u8]) {
        // SAFETY: an `Avx2LowBit` exists only where AVX2 was detected.
        unsafe {
            match bits {
                2 => encode::<2>(x, grids, out),
                4 => encode::<4>(x, grids, out),
                _ => encode::<8>(x, grids, out),
            }
        }
    }

    fn spread(&self, scheme: BlockScheme, lo: &[f32], hi: &[f32], to: &mut RowGrids) {
        // SAFETY: an `Avx2LowBit` exists only where AVX2 was detected.
        unsafe { spread(scheme, lo, hi, to) }
    }

    fn errors(&self, block: Weighted<'_>, grids: &[Grid], limits: (f32, f32), out: &mut [f32]) {
        // SAFETY: an `Avx2LowBit` exists only where AVX2 was detected.
        unsafe { errors(block, grids, limits, out) }
    }

    fn fit(&self, block: Weighted<'_>, grids: &[Grid], limits: (f32, f32), out: &mut [Fit]) {
        // SAFETY: an `Avx2LowBit` exists only where AVX2 was detected.
        unsafe { fit(block, grids, limits, out) }
    }

    fn split(&self, block: Weighted<'_>, grid: Grid, beta: f32, limits: (f32, f32)) -> Split {
        // SAFETY: an `Avx2LowBit` exists only where AVX2 was detected.
        unsafe { split(block, grid, beta, limits) }
    }
}

/// Side of the squares that are turned in registers.
const SIDE: usize = 8;
/// Rows from which on lines are called for: they lie too far apart for the hardware to foresee.
const AHEAD: usize = 24;

#[target_feature(enable = "avx2")]
fn turn(from: Columns<'_>, pitch: usize, to: &mut [f32]) {
    let (rows, columns) = (from.rows - from.rows % SIDE, from.columns - from.columns % SIDE);
    for row in (0..rows).step_by(SIDE) {
        for i in 0..SIDE {
            let ahead = from.values.as_ptr().wrapping_add((row + AHEAD + i) * from.pitch);
            for line in (0..columns).step_by(generic::LINE) {
                prefetch(ahead.wrapping_add(line));
            }
        }
        for column in (0..columns).step_by(SIDE) {
            let square = array::from_fn(|i| load(vector(from.values, (row + i) * from.pitch + column)));
            for (i, v) in transpose(square).into_iter().enumerate() {
                let at = (column + i) * pitch + row;
                let out = to[at..].first_chunk_mut().expect("a row has `rows` values");
                store(v, out);
            }
        }
    }
    generic::turn(from, 0..rows, columns..from.columns, pitch, to);
    generic::turn(from, rows..from.rows, 0..from.columns, pitch, to);
}

#[inline]
fn vector(x: &[f32], at: usize) -> &[f32; 8] {
    x[at..].first_chunk().expect("a row has `columns` values")
}

/// Pairs of rows, then pairs of these, are interleaved in the halves; the halves are exchanged last.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn transpose(rows: [__m256; SIDE]) -> [__m256; SIDE] {
    let quad = |a: __m256, b: __m256, c: __m256, d: __m256| {
        let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
        let (more_ab, more_cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd),
            _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd),
            _mm256_shuffle_ps::<0b01_00_01_00>(more_ab, more_cd),
            _mm256_shuffle_ps::<0b11_10_11_10>(more_ab, more_cd),
        ]
    };
    let [a, b, c, d, e, f, g, h] = rows;
    let (above, below) = (quad(a, b, c, d), quad(e, f, g, h));
    array::from_fn(|i| {
        let (above, below) = (above[i % 4], below[i % 4]);
        if i < 4 {
            _mm256_permute2f128_ps::<0x20>(above, below)
        } else {
            _mm256_permute2f128_ps::<0x31>(above, below)
        }
    })
}

#[target_feature(enable = "avx2")]
fn ranges(x: &[f32], run: usize, lo: &mut [f32], hi: &mut [f32]) -> bool {
    let mut unordered = _mm256_setzero_ps();
    let mut finite = true;
    for ((run, lo), hi) in x.chunks(run).zip(lo).zip(hi) {
        let (vectors, rest) = run.as_chunks::<8>();
        let (pairs, single) = vectors.as_chunks::<2>();
        let (mut least, mut most) = (_mm256_set1_ps(f32::INFINITY), _mm256_set1_ps(f32::NEG_INFINITY));
        for [a, b] in pairs {
            let (a, b) = (load(a), load(b));
            least = _mm256_min_ps(_mm256_min_ps(a, b), least);
            most = _mm256_max_ps(_mm256_max_ps(a, b), most);
            // A minimum can lose a NaN; one comparison finds it in either.
            unordered = _mm256_or_ps(unordered, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, b));
        }
        for v in single {
            let v = load(v);
            least = _mm256_min_ps(v, least);
            most = _mm256_max_ps(v, most);
            unordered = _mm256_or_ps(unordered, _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        }
        (*lo, *hi) = (
            halve(least, |a, b| _mm_min_ps(a, b)),
            halve(most, |a, b| _mm_max_ps(a, b)),
        );
        for v in rest {
            finite &= v.is_finite();
            *lo = lo.min(*v);
            *hi = hi.max(*v);
        }
        finite &= lo.is_finite() & hi.is_finite();
    }
    finite && _mm256_movemask_ps(unordered) == 0
}

/// Eight values brought together by halves.
#[inline]
#[target_feature(enable = "avx2")]
fn halve(v: __m256, pick: impl Fn(__m128, __m128) -> __m128) -> f32 {
    let v = pick(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = pick(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(pick(v, _mm_movehdup_ps(v)))
}

/// Values that are packed at a time.
const GROUP: usize = 16;

/// ```text
/// i32    a0 a1 a2 a3 | a4 a5 a6 a7        b0 b1 b2 b3 | b4 b5 b6 b7     the halves of two vectors
/// packs  a0 a1 a2 a3  b0 b1 b2 b3 | a4 a5 a6 a7  b4 b5 b6 b7            words
/// madd   a1<<4|a0  a3<<4|a2  b1<<4|b0  b3<<4|b2 | ...                   neighbours, for 4 bits; for 2 it is done twice
/// ```
///
/// As bytes, what belongs to a lies in the order of the halves: unpacking these interleaves them.
#[target_feature(enable = "avx2")]
fn encode<const BITS: usize>(x: &[f32], grids: Grids<'_>, out: &mut [u8]) {
    const { assert!(matches!(BITS, 2 | 4 | 8)) };
    if x.len() > grids.run && !grids.run.is_multiple_of(GROUP) {
        return generic::encode(x, grids, BITS, out); // runs that may end within a byte
    }
    let limits = (_mm256_set1_ps(grids.limits.0), _mm256_set1_ps(grids.limits.1));
    // Rows lie one behind the other: the next one comes from memory while this one is worked on.
    let next = x.len();
    let runs = x.chunks(grids.run).zip(out.chunks_mut((grids.run * BITS).div_ceil(8)));
    for ((x, out), (inverse, zero_point)) in runs.zip(grids.inverse.iter().zip(grids.zero_point)) {
        let one = Grids {
            inverse: slice::from_ref(inverse),
            zero_point: slice::from_ref(zero_point),
            ..grids
        };
        let (inverse, zero_point) = (_mm256_set1_ps(*inverse), _mm256_set1_ps(*zero_point));
        let (groups, rest) = x.as_chunks::<GROUP>();
        let (full, last) = out.split_at_mut(groups.len() * GROUP * BITS / 8);
        for (x, out) in groups.iter().zip(full.chunks_exact_mut(GROUP * BITS / 8)) {
            prefetch(x.as_ptr().wrapping_add(next));
            let (halves, _) = x.as_chunks();
            let a = codes(&halves[0], inverse, zero_point, limits);
            let b = codes(&halves[1], inverse, zero_point, limits);
            let words = _mm256_packs_epi32(a, b);
            let bytes = match BITS {
                2 => {
                    let pairs = neighbours::<4>(words);
                    let quads = neighbours::<16>(_mm256_packs_epi32(pairs, pairs));
                    let (low, high) = halves_as_bytes(_mm256_packs_epi32(quads, quads));
                    _mm_unpacklo_epi8(low, high)
                }
                4 => {
                    let pairs = neighbours::<16>(words);
                    let (low, high) = halves_as_bytes(_mm256_packs_epi32(pairs, pairs));
                    _mm_unpacklo_epi16(low, high)
                }
                _ => {
                    let (low, high) = halves_as_bytes(words);
                    _mm_unpacklo_epi32(low, high)
                }
            };
            let mut packed = [0; 16];
            // SAFETY: `packed` is 16 writable bytes, and `storeu` needs no alignment.
            unsafe { _mm_storeu_si128(packed.as_mut_ptr().cast(), bytes) };
            out.copy_from_slice(&packed[..GROUP * BITS / 8]);
        }
        if !last.is_empty() {
            generic::encode(rest, one, BITS, last);
        }
    }
}

#[inline(always)]
pub(super) fn prefetch(from: *const f32) {
    #[allow(unused_unsafe, reason = "a safe function in later versions of Rust")]
    // SAFETY: any address may be prefetched.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(from.cast());
    }
}

/// `FACTOR * b + a` of each two neighbouring words.
#[inline]
#[target_feature(enable = "avx2")]
fn neighbours<const FACTOR: i32>(words: __m256i) -> __m256i {
    _mm256_madd_epi16(words, _mm256_set1_epi32(FACTOR << 16 | 1))
}

/// The words of each half, within 0..=255, as bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn halves_as_bytes(words: __m256i) -> (__m128i, __m128i) {
    let bytes = _mm256_packus_epi16(words, words);
    (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes))
}

#[inline]
#[target_feature(enable = "avx2")]
fn codes(x: &[f32; 8], inverse: __m256, zero_point: __m256, (least, most): (__m256, __m256)) -> __m256i {
    let level = _mm256_add_ps(_mm256_mul_ps(load(x), inverse), zero_point);
    let level = _mm256_min_ps(_mm256_max_ps(level, least), most);
    _mm256_cvttps_epi32(_mm256_add_ps(level, _mm256_set1_ps(0.499_999_97)))
}

#[target_feature(enable = "avx2")]
fn spread(scheme: BlockScheme, lo: &[f32], hi: &[f32], to: &mut RowGrids) {
    to.spread(scheme, lo, hi);
}

/// A grid, and the integers in use, in each lane.
#[derive(Clone, Copy)]
struct Lanes {
    scale: __m256,
    inverse: __m256,
    zero_point: __m256,
    limits: (__m256, __m256),
}

impl Lanes {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(grid: &Grid, (least, most): (f32, f32)) -> Self {
        Self {
            scale: _mm256_set1_ps(grid.scale),
            inverse: _mm256_set1_ps(grid.inverse),
            zero_point: _mm256_set1_ps(grid.zero_point),
            limits: (_mm256_set1_ps(least), _mm256_set1_ps(most)),
        }
    }

    /// Distances of integers from the zero point, and of values from what these stand for.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn steps(&self, x: __m256) -> (__m256, __m256) {
        let level = _mm256_add_ps(_mm256_mul_ps(x, self.inverse), self.zero_point);
        let level = _mm256_min_ps(_mm256_max_ps(level, self.limits.0), self.limits.1);
        let near = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(level);
        let steps = _mm256_sub_ps(near, self.zero_point);
        (steps, _mm256_sub_ps(x, _mm256_mul_ps(steps, self.scale)))
    }
}

#[target_feature(enable = "avx2")]
fn errors(block: Weighted<'_>, grids: &[Grid], limits: (f32, f32), out: &mut [f32]) {
    for (grid, out) in grids.iter().zip(out) {
        let lanes = Lanes::new(grid, limits);
        let mut error = _mm256_setzero_ps();
        for (x, weights) in block.x.iter().zip(block.weights) {
            let (_, off) = lanes.steps(load(x));
            error = _mm256_add_ps(error, _mm256_mul_ps(load(weights), _mm256_mul_ps(off, off)));
        }
        *out = sum(error);
    }
}

#[target_feature(enable = "avx2")]
fn fit(block: Weighted<'_>, grids: &[Grid], limits: (f32, f32), out: &mut [Fit]) {
    for (grid, out) in grids.iter().zip(out) {
        let lanes = Lanes::new(grid, limits);
        let [mut l, mut ll, mut lx, mut error] = [_mm256_setzero_ps(); 4];
        for (x, weights) in block.x.iter().zip(block.weights) {
            let (x, weights) = (load(x), load(weights));
            let (steps, off) = lanes.steps(x);
            let weighted = _mm256_mul_ps(weights, steps);
            l = _mm256_add_ps(l, weighted);
            ll = _mm256_add_ps(ll, _mm256_mul_ps(weighted, steps));
            lx = _mm256_add_ps(lx, _mm256_mul_ps(weighted, x));
            error = _mm256_add_ps(error, _mm256_mul_ps(weights, _mm256_mul_ps(off, off)));
        }
        *out = Fit {
            l: sum(l),
            ll: sum(ll),
            lx: sum(lx),
            error: sum(error),
        };
    }
}

/// By halves.
#[inline]
#[target_feature(enable = "avx2")]
fn sum(v: __m256) -> f32 {
    halve(v, |a, b| _mm_add_ps(a, b))
}

#[target_feature(enable = "avx2")]
fn split(block: Weighted<'_>, grid: Grid, beta: f32, limits: (f32, f32)) -> Split {
    generic::split(block, grid, beta, limits)
}
