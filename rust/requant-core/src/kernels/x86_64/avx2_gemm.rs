//! The integer GEMM on AVX2, exact.
//!
//! `vpmaddubsw` multiplies bytes but saturates its 16-bit sums, so both operands are widened to 16 bits, and `vpmaddwd`
//! adds two products to one i32: at most 2 * 255 * 128, which cannot overflow. A is widened when it is packed, B in the
//! loop, where the two widening loads are shared by six rows. One step of the 6 x 16 tile takes two values of K:
//!
//! ```text
//! A  i32 [K/2][6]        each an (a[2p], a[2p+1]) pair of i16, broadcast
//! B  i8  [K/2][16][2]    32 bytes, widened to two vectors of 16 i16
//! C  i32 [6][2][8]       12 registers; 2 for B, 1 for A, 1 for the products: all 16
//! ```
//!
//! On Zen 3 its inner loop runs at 98 % of one of nothing but `vpmaddwd` and `vpaddd`. Tried: 5x16 97 %, 4x16 86 to 94
//! %, 12x8 92 %, 3x24 90 %, 4x24 and 3x32 63 % (they spill); B stored as i16 98 %, for twice the memory; A as rows of
//! i16, which need no transposition when packed, 84 %.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2_lanes::Avx2Lanes;
use crate::{
    arrays::{Bytes, Matrix},
    kernels::{
        finish::Strip,
        gemm::{GemmKernel, Tile},
    },
};

const ROWS: usize = 6;
const COLUMNS: usize = 16;
const GROUP: usize = 2;

/// How far ahead B is fetched where few rows make a step short: a product with one row waits for memory, and takes 0.8
/// to 0.9 of the time it takes without.
const PREFETCH: usize = 4096;

/// Proof that AVX2 was detected: only [`probe`] makes one.
struct Avx2Gemm(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn GemmKernel> {
    static AVX2: Avx2Gemm = Avx2Gemm(());
    is_x86_feature_detected!("avx2").then_some(&AVX2 as &dyn GemmKernel)
}

impl GemmKernel for Avx2Gemm {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn tile(&self) -> Tile {
        Tile {
            rows: ROWS,
            columns: COLUMNS,
            group: GROUP,
        }
    }

    fn pack_rows(&self, a: Matrix<'_>, rows: Range<usize>, out: &mut [i32]) {
        // SAFETY: an `Avx2Gemm` exists only where AVX2 was detected.
        unsafe {
            with_rows!(rows.len(), R in [1 2 3 4 5 6] => pack_rows::<R>(a, rows, out));
        }
    }

    fn multiply(&self, rows: usize, a: &[i32], panel: &[i8], sums: &mut [i32]) {
        // SAFETY: an `Avx2Gemm` exists only where AVX2 was detected.
        unsafe {
            with_rows!(rows, R in [1 2 3 4 5 6] => multiply::<R>(a, panel, sums));
        }
    }

    fn sum(&self, row: Bytes<'_>) -> i32 {
        // SAFETY: an `Avx2Gemm` exists only where AVX2 was detected.
        unsafe { sum(row) }
    }

    fn finish(&self, strip: Strip<'_, '_>) {
        // SAFETY: an `Avx2Gemm` exists only where AVX2 was detected.
        unsafe { finish(strip) }
    }
}

#[target_feature(enable = "avx2")]
fn sum(row: Bytes<'_>) -> i32 {
    row.sum()
}

#[target_feature(enable = "avx2")]
fn finish(strip: Strip<'_, '_>) {
    strip.finish_with::<COLUMNS>(Avx2Lanes::new());
}

#[target_feature(enable = "avx2")]
fn multiply<const R: usize>(a: &[i32], panel: &[i8], out: &mut [i32]) {
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    let (a, b) = (a.as_chunks::<R>().0, panel.as_chunks::<{ COLUMNS * GROUP }>().0);
    // Two steps a turn: one alone fills the issue slots so tightly that where the linker puts the loop costs a tenth.
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<2>(), b.as_chunks::<2>());
    for (a, b) in a.iter().zip(b) {
        step(&mut sums, &a[0], &b[0]);
        step(&mut sums, &a[1], &b[1]);
    }
    for (a, b) in a_rest.iter().zip(b_rest) {
        step(&mut sums, a, b);
    }
    let (out, _) = out.as_chunks_mut::<COLUMNS>();
    for (i, sums) in sums.into_iter().enumerate() {
        let (halves, _) = out[i].as_chunks_mut();
        store(sums[0], &mut halves[0]);
        store(sums[1], &mut halves[1]);
    }
}

/// Adds the products of one pair of K: `R` rows by 16 columns.
#[inline]
#[target_feature(enable = "avx2")]
fn step<const R: usize>(sums: &mut [[__m256i; 2]; R], a: &[i32; R], b: &[i8; COLUMNS * GROUP]) {
    if R < 4 {
        #[allow(unused_unsafe, reason = "a safe function in later versions of Rust")]
        // SAFETY: any address may be prefetched.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(b.as_ptr().wrapping_add(PREFETCH));
        }
    }
    let (halves, _) = b.as_chunks::<16>();
    let (low, high) = (widen_i8(&halves[0]), widen_i8(&halves[1]));
    for (sums, &a) in sums.iter_mut().zip(a) {
        let a = _mm256_set1_epi32(a);
        sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(a, low));
        sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(a, high));
    }
}

/// Packs `R` rows side by side: 16 values of each become 8 pairs, and 8 x 8 dwords are transposed.
#[target_feature(enable = "avx2")]
fn pack_rows<const R: usize>(a: Matrix<'_>, rows: Range<usize>, out: &mut [i32]) {
    let lines: [Bytes<'_>; R] = std::array::from_fn(|i| a.row(rows.start + i));
    let mut done = 0;
    // A transposed row is 8 dwords of which `R` are kept: the next one is written over the others.
    while a.columns() - done >= 16 && done / GROUP * R + 7 * R + 8 <= out.len() {
        let mut block = [_mm256_setzero_si256(); 8];
        for (vector, line) in block.iter_mut().zip(&lines) {
            *vector = match line {
                Bytes::U8(line) => line[done..].first_chunk().map_or(*vector, |x| widen_u8(x)),
                Bytes::I8(line) => line[done..].first_chunk().map_or(*vector, |x| widen_i8(x)),
            };
        }
        let (pairs, first) = (transpose(block), done / GROUP * R);
        for (p, pairs) in pairs.into_iter().enumerate() {
            if let Some(out) = out[first + p * R..].first_chunk_mut() {
                store(pairs, out);
            }
        }
        done += 16;
    }
    for (p, out) in out.as_chunks_mut::<R>().0.iter_mut().enumerate().skip(done / GROUP) {
        for (out, row) in out.iter_mut().zip(rows.clone()) {
            let next = if 2 * p + 1 < a.columns() {
                a.get(row, 2 * p + 1)
            } else {
                0
            };
            *out = (a.get(row, 2 * p) & 0xffff) | (next << 16);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn transpose(r: [__m256i; 8]) -> [__m256i; 8] {
    let mut t = r;
    for i in 0..4 {
        t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    // u[h][j]: dwords j and j + 4 of rows 4h to 4h + 3.
    let mut u = [[r[0]; 4]; 2];
    for h in 0..2 {
        u[h][0] = _mm256_unpacklo_epi64(t[4 * h], t[4 * h + 2]);
        u[h][1] = _mm256_unpackhi_epi64(t[4 * h], t[4 * h + 2]);
        u[h][2] = _mm256_unpacklo_epi64(t[4 * h + 1], t[4 * h + 3]);
        u[h][3] = _mm256_unpackhi_epi64(t[4 * h + 1], t[4 * h + 3]);
    }
    for j in 0..4 {
        t[j] = _mm256_permute2x128_si256::<0x20>(u[0][j], u[1][j]);
        t[j + 4] = _mm256_permute2x128_si256::<0x31>(u[0][j], u[1][j]);
    }
    t
}

#[inline]
#[target_feature(enable = "avx2")]
fn widen_i8(x: &[i8; 16]) -> __m256i {
    // SAFETY: `x` is 16 readable bytes, and `loadu` needs no alignment.
    _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn widen_u8(x: &[u8; 16]) -> __m256i {
    // SAFETY: `x` is 16 readable bytes, and `loadu` needs no alignment.
    _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store(v: __m256i, out: &mut [i32; 8]) {
    // SAFETY: `out` is 32 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), v) }
}
