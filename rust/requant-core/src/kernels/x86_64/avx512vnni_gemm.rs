//! The integer GEMM on AVX-512 VNNI.
//!
//! `vpdpbusd` adds four products of a uint8 with an int8 to one i32, and does not saturate. A is made unsigned when it
//! is packed. One step of the 12 x 32 tile takes four values of K:
//!
//! ```text
//! A  u8  [K/4][12][4]    each quad broadcast
//! B  i8  [K/4][32][4]    two vectors of 16 quads
//! C  i32 [12][2][16]     24 registers; 2 for B, 1 for A
//! ```
//!
//! A sum waits 5 cycles for the one before it, in which two units start 10: smaller tiles add the steps to several sets
//! of sums by turns.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;
use std::ops::Range;

use super::zmm::{self, COLUMNS, ROWS, Sums, pack_rows, prefetch, store};
use crate::{
    arrays::{Bytes, Matrix},
    kernels::{
        finish::Strip,
        gemm::{GemmKernel, Pieces, Tile},
    },
};

const GROUP: usize = 4;

/// Bytes of a panel that one step takes.
const STEP: usize = COLUMNS * GROUP;

/// Steps to a turn of the loop, so that its own instructions are few; a multiple of the sets of sums.
const UNROLL: usize = 4;

/// Proof that AVX-512 VNNI was detected: only [`probe`] makes one.
struct Avx512VnniGemm(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn GemmKernel> {
    static KERNEL: Avx512VnniGemm = Avx512VnniGemm(());
    super::avx512vnni::detected().then_some(&KERNEL as &dyn GemmKernel)
}

impl GemmKernel for Avx512VnniGemm {
    fn name(&self) -> &'static str {
        "avx512vnni"
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
        // SAFETY: an `Avx512VnniGemm` exists only where AVX-512 VNNI was detected.
        unsafe {
            with_rows!(rows.len(), R in [1 2 3 4 5 6 7 8 9 10 11 12] => pack_rows::<R, GROUP>(a, rows, out));
        }
    }

    fn multiply(&self, rows: usize, a: &[i32], panel: &[i8], sums: &mut [i32]) {
        // SAFETY: an `Avx512VnniGemm` exists only where AVX-512 VNNI was detected.
        unsafe {
            with_rows!(rows, R in [1 2 3 4 5 6 7 8 9 10 11 12] => multiply::<R, { sets(R) }>(a, panel, sums));
        }
    }

    fn copy(&self, pieces: Pieces<'_>) {
        // SAFETY: an `Avx512VnniGemm` exists only where AVX-512 VNNI was detected.
        unsafe { zmm::copy(pieces) }
    }

    fn sum(&self, row: Bytes<'_>) -> i32 {
        // SAFETY: an `Avx512VnniGemm` exists only where AVX-512 VNNI was detected.
        unsafe { zmm::sum(row) }
    }

    fn finish(&self, strip: Strip<'_, '_>) {
        // SAFETY: an `Avx512VnniGemm` exists only where AVX-512 VNNI was detected.
        unsafe { zmm::finish(strip) }
    }
}

/// How many sets of sums a tile has.
const fn sets(rows: usize) -> usize {
    match rows {
        1 | 2 => 4,
        3 | 4 => 2,
        _ => 1,
    }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply<const R: usize, const SETS: usize>(a: &[i32], panel: &[i8], out: &mut [i32]) {
    let mut sets = [[[_mm512_setzero_si512(); 2]; R]; SETS];
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
    let mut sums = [[_mm512_setzero_si512(); 2]; R];
    for set in sets {
        for (sums, set) in sums.as_flattened_mut().iter_mut().zip(set.as_flattened()) {
            *sums = _mm512_add_epi32(*sums, *set);
        }
    }
    store(sums, out);
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn step<const R: usize>(sums: &mut Sums<R>, a: &[i32; R], b: &[i8; STEP]) {
    prefetch(a, b);
    let b = b.as_chunks().0;
    let (left, right) = (load(&b[0]), load(&b[1]));
    for (sums, &a) in sums.iter_mut().zip(a) {
        let a = _mm512_set1_epi32(a);
        sums[0] = _mm512_dpbusd_epi32(sums[0], a, left);
        sums[1] = _mm512_dpbusd_epi32(sums[1], a, right);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[i8; 64]) -> __m512i {
    // SAFETY: `x` is 64 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}
