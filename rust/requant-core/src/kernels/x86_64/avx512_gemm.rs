//! The integer GEMM on AVX-512 without VNNI, exact.
//!
//! As on AVX2 ([`super::avx2_gemm`]), both operands are widened to 16 bits for `vpmaddwd`: A when it is packed, B in
//! the loop. One step of the 12 x 32 tile takes two values of K:
//!
//! ```text
//! A  i16 [K/2][12][2]    each pair broadcast
//! B  i8  [K/2][32][2]    64 bytes, widened to two vectors of 16 pairs of i16
//! C  i32 [12][2][16]     24 registers; 2 for B, 1 for A, 1 for the products
//! ```

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

const GROUP: usize = 2;

/// Bytes of a panel that one step takes.
const STEP: usize = COLUMNS * GROUP;

/// Proof that AVX-512 was detected: only [`probe`] makes one.
struct Avx512Gemm(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn GemmKernel> {
    static KERNEL: Avx512Gemm = Avx512Gemm(());
    super::avx512::detected().then_some(&KERNEL as &dyn GemmKernel)
}

impl GemmKernel for Avx512Gemm {
    fn name(&self) -> &'static str {
        "avx512"
    }

    fn tile(&self) -> Tile {
        Tile {
            rows: ROWS,
            columns: COLUMNS,
            group: GROUP,
        }
    }

    fn pack_rows(&self, a: Matrix<'_>, rows: Range<usize>, out: &mut [i32]) {
        // SAFETY: an `Avx512Gemm` exists only where AVX-512 was detected.
        unsafe {
            with_rows!(rows.len(), R in [1 2 3 4 5 6 7 8 9 10 11 12] => pack_rows::<R, GROUP>(a, rows, out));
        }
    }

    fn multiply(&self, rows: usize, a: &[i32], panel: &[i8], sums: &mut [i32]) {
        // SAFETY: an `Avx512Gemm` exists only where AVX-512 was detected.
        unsafe {
            with_rows!(rows, R in [1 2 3 4 5 6 7 8 9 10 11 12] => multiply::<R>(a, panel, sums));
        }
    }

    fn copy(&self, pieces: Pieces<'_>) {
        // SAFETY: an `Avx512Gemm` exists only where AVX-512 was detected.
        unsafe { zmm::copy(pieces) }
    }

    fn sum(&self, row: Bytes<'_>) -> i32 {
        // SAFETY: an `Avx512Gemm` exists only where AVX-512 was detected.
        unsafe { zmm::sum(row) }
    }

    fn finish(&self, strip: Strip<'_, '_>) {
        // SAFETY: an `Avx512Gemm` exists only where AVX-512 was detected.
        unsafe { zmm::finish(strip) }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn multiply<const R: usize>(a: &[i32], panel: &[i8], out: &mut [i32]) {
    let mut sums: Sums<R> = [[_mm512_setzero_si512(); 2]; R];
    for (a, b) in a.as_chunks::<R>().0.iter().zip(panel.as_chunks::<STEP>().0) {
        prefetch(a, b);
        let b = b.as_chunks().0;
        let (left, right) = (widen(&b[0]), widen(&b[1]));
        for (sums, &a) in sums.iter_mut().zip(a) {
            let a = _mm512_set1_epi32(a);
            sums[0] = _mm512_add_epi32(sums[0], _mm512_madd_epi16(a, left));
            sums[1] = _mm512_add_epi32(sums[1], _mm512_madd_epi16(a, right));
        }
    }
    store(sums, out);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn widen(x: &[i8; 32]) -> __m512i {
    // SAFETY: `x` is 32 readable bytes, and `loadu` needs no alignment.
    _mm512_cvtepi8_epi16(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) })
}
