//! The integer GEMM on AVX-VNNI.
//!
//! As on AVX-512 VNNI ([`super::avx512vnni_gemm`]), with half as many registers of half the width. One step of the 6 x
//! 16 tile takes four values of K:
//!
//! ```text
//! A  u8  [K/4][6][4]     each quad broadcast
//! B  i8  [K/4][16][4]    two vectors of 8 quads
//! C  i32 [6][2][8]       12 registers; 2 for B, 1 for A: 15 of 16
//! ```

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;
use std::ops::Range;

use super::{
    avx2_gemm::{store, transpose},
    avx2_lanes::Avx2Lanes,
};
use crate::{
    arrays::{Bytes, Matrix},
    kernels::{
        finish::Strip,
        gemm::{GemmKernel, Tile},
    },
};

const ROWS: usize = 6;
const COLUMNS: usize = 2 * LANES;
const GROUP: usize = 4;

/// Dwords in a register.
const LANES: usize = 8;

/// Bytes of a panel that one step takes.
const STEP: usize = COLUMNS * GROUP;

/// Steps to a turn of the loop, so that its own instructions are few; a multiple of the sets of sums.
const UNROLL: usize = 4;

/// How far ahead B is fetched; few rows make a step short.
const fn ahead(rows: usize) -> usize {
    if rows < 4 { 4096 } else { 1024 }
}

/// Proof that AVX2 and AVX-VNNI were detected: only [`probe`] makes one.
struct AvxVnniGemm(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn GemmKernel> {
    static KERNEL: AvxVnniGemm = AvxVnniGemm(());
    super::avxvnni::detected().then_some(&KERNEL as &dyn GemmKernel)
}

impl GemmKernel for AvxVnniGemm {
    fn name(&self) -> &'static str {
        "avxvnni"
    }

    fn tile(&self) -> Tile {
        Tile {
            rows: ROWS,
            columns: COLUMNS,
            group: GROUP,
        }
    }

    fn offset(&self, signed: bool) -> i32 {
        if signed { 128 } else { 0 }
    }

    fn pack_rows(&self, a: Matrix<'_>, rows: Range<usize>, out: &mut [i32]) {
        // SAFETY: an `AvxVnniGemm` exists only where AVX2 was detected.
        unsafe {
            with_rows!(rows.len(), R in [1 2 3 4 5 6] => pack_rows::<R>(a, rows, out));
        }
    }

    fn multiply(&self, rows: usize, a: &[i32], panel: &[i8], sums: &mut [i32]) {
        // SAFETY: an `AvxVnniGemm` exists only where AVX2 and AVX-VNNI were detected.
        unsafe {
            with_rows!(rows, R in [1 2 3 4 5 6] => multiply::<R, { sets(R) }>(a, panel, sums));
        }
    }

    fn sum(&self, row: Bytes<'_>) -> i32 {
        // SAFETY: an `AvxVnniGemm` exists only where AVX2 was detected.
        unsafe { sum(row) }
    }

    fn finish(&self, strip: Strip<'_, '_>) {
        // SAFETY: an `AvxVnniGemm` exists only where AVX2 was detected.
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

/// How many sets of sums a tile has.
const fn sets(rows: usize) -> usize {
    match rows {
        1 => 4,
        2 | 3 => 2,
        _ => 1,
    }
}

#[target_feature(enable = "avx2,avxvnni")]
fn multiply<const R: usize, const SETS: usize>(a: &[i32], panel: &[i8], out: &mut [i32]) {
    let mut sets = [[[_mm256_setzero_si256(); 2]; R]; SETS];
    let (a, last_a) = a.as_chunks::<R>().0.as_chunks::<UNROLL>();
    let (b, last_b) = panel.as_chunks::<STEP>().0.as_chunks::<UNROLL>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..UNROLL {
            step(&mut sets[i % SETS], &a[i], &b[i]);
        }
    }
    for (a, b) in last_a.iter().zip(last_b) {
        step(&mut sets[0], a, b);
    }
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for set in sets {
        for (sums, set) in sums.as_flattened_mut().iter_mut().zip(set.as_flattened()) {
            *sums = _mm256_add_epi32(*sums, *set);
        }
    }
    for (sums, out) in sums.as_flattened().iter().zip(out.as_chunks_mut().0) {
        store(*sums, out);
    }
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn step<const R: usize>(sums: &mut [[__m256i; 2]; R], a: &[i32; R], b: &[i8; STEP]) {
    #[allow(unused_unsafe, reason = "a safe function in later versions of Rust")]
    // SAFETY: any address may be prefetched.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(b.as_ptr().wrapping_add(ahead(R)));
    }
    let b = b.as_chunks().0;
    let (left, right) = (load(&b[0]), load(&b[1]));
    for (sums, &a) in sums.iter_mut().zip(a) {
        let a = _mm256_set1_epi32(a);
        sums[0] = _mm256_dpbusd_avx_epi32(sums[0], a, left);
        sums[1] = _mm256_dpbusd_avx_epi32(sums[1], a, right);
    }
}

/// Packs `R` rows side by side: 8 quads of each are transposed at a time; int8 becomes uint8 by adding 128. What a quad
/// holds beyond K does not matter, as panels are 0 there.
#[target_feature(enable = "avx2")]
fn pack_rows<const R: usize>(a: Matrix<'_>, rows: Range<usize>, out: &mut [i32]) {
    let lines: [Bytes<'_>; R] = std::array::from_fn(|i| a.row(rows.start + i));
    for (out, first) in out.chunks_mut(LANES * R).zip((0..).step_by(LANES * GROUP)) {
        let mut block = [_mm256_setzero_si256(); LANES];
        for (quads, line) in block.iter_mut().zip(lines) {
            *quads = match line {
                Bytes::U8(line) => load(&first_of(&line[first..]).map(u8::cast_signed)),
                Bytes::I8(line) => _mm256_xor_si256(load(&first_of(&line[first..])), _mm256_set1_epi8(i8::MIN)),
            };
        }
        for (quads, out) in transpose(block).into_iter().zip(out.as_chunks_mut::<R>().0) {
            let mut all = [0; LANES];
            store(quads, &mut all);
            out.copy_from_slice(&all[..R]);
        }
    }
}

/// The first bytes, and zeros for those that are not there.
#[inline(always)]
fn first_of<T: Copy + Default>(x: &[T]) -> [T; 32] {
    x.first_chunk().copied().unwrap_or_else(|| {
        let mut some = [T::default(); 32];
        some[..x.len()].copy_from_slice(x);
        some
    })
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[i8; 32]) -> __m256i {
    // SAFETY: `x` is 32 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}
