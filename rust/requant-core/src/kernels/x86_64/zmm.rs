//! What the GEMM kernels with 512-bit registers share: all but the inner loop.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;
use std::ops::Range;

use super::zmm_lanes::ZmmLanes;
use crate::arrays::{Bytes, Matrix};
use crate::kernels::{finish::Strip, gemm::Pieces};

/// Dwords in a register.
pub(super) const LANES: usize = 16;

/// A tile: 24 of the 32 registers hold its sums.
pub(super) const ROWS: usize = 12;
pub(super) const COLUMNS: usize = 2 * LANES;

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn sum(row: Bytes<'_>) -> i32 {
    row.sum()
}

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn copy(pieces: Pieces<'_>) {
    pieces.copy();
}

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn finish(strip: Strip<'_, '_>) {
    strip.finish_with::<COLUMNS>(ZmmLanes::new());
}

/// Packs `R` rows side by side, `i32 [K / GROUP][R]`: 16 dwords of each are transposed at a time. What a dword holds
/// beyond K does not matter, as panels are 0 there.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn pack_rows<const R: usize, const GROUP: usize>(a: Matrix<'_>, rows: Range<usize>, out: &mut [i32]) {
    let lines: [Bytes<'_>; R] = std::array::from_fn(|i| a.row(rows.start + i));
    let signed = lines.iter().any(|line| matches!(line, Bytes::I8(_)));
    let lines = lines.map(|line| match line {
        Bytes::U8(line) => line.as_ptr().cast(),
        Bytes::I8(line) => line.as_ptr(),
    });
    for (out, first) in out.chunks_mut(LANES * R).zip((0..).step_by(LANES * GROUP)) {
        let left = a.columns().saturating_sub(first).min(LANES * GROUP);
        let mask = if left < 64 { (1 << left) - 1 } else { u64::MAX };
        let mut block = [_mm512_setzero_si512(); LANES];
        for (dwords, line) in block.iter_mut().zip(lines) {
            // SAFETY: `left` bytes of a row are readable from `first` on, the mask leaves out what comes after, and
            // `loadu` needs no alignment.
            let bytes = unsafe { _mm512_maskz_loadu_epi8(mask, line.wrapping_add(first)) };
            *dwords = match (GROUP, signed) {
                // Two values as i16 to a dword.
                (2, false) => _mm512_cvtepu8_epi16(_mm512_castsi512_si256(bytes)),
                (2, true) => _mm512_cvtepi8_epi16(_mm512_castsi512_si256(bytes)),
                // Four values as uint8; int8 with 128 added.
                (_, false) => bytes,
                (_, true) => _mm512_xor_si512(bytes, _mm512_set1_epi8(i8::MIN)),
            };
        }
        store_columns::<R>(transpose(block), out);
    }
}

/// Writes the first `R` dwords of each vector, one after another, as many as fit.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_columns<const R: usize>(block: [__m512i; LANES], out: &mut [i32]) {
    const { assert!(R < LANES) };
    let whole = out.len() == LANES * R;
    for (i, dwords) in block.into_iter().enumerate() {
        if whole || (i + 1) * R <= out.len() {
            // SAFETY: `out` has the `R` dwords of the mask from there on, and `storeu` needs no alignment.
            unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr().add(i * R), (1 << R) - 1, dwords) }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(r: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    // u[j][i]: in quarter q, column 4q + j of rows 4i to 4i + 3.
    let mut u = [[r[0]; 4]; 4];
    for i in 0..4 {
        u[0][i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[1][i] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[2][i] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[3][i] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    // Quarters are transposed by taking the even ones (0x88) and the odd ones (0xdd) of two, twice.
    for (j, [a, b, c, d]) in u.into_iter().enumerate() {
        let (even, also_even) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
        let (odd, also_odd) = (_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d));
        t[j] = _mm512_shuffle_i32x4::<0x88>(even, also_even);
        t[j + 4] = _mm512_shuffle_i32x4::<0x88>(odd, also_odd);
        t[j + 8] = _mm512_shuffle_i32x4::<0xdd>(even, also_even);
        t[j + 12] = _mm512_shuffle_i32x4::<0xdd>(odd, also_odd);
    }
    t
}

/// The sums of a tile of `R` rows.
pub(super) type Sums<const R: usize> = [[__m512i; 2]; R];

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store<const R: usize>(sums: Sums<R>, out: &mut [i32]) {
    for (sums, out) in sums.into_iter().zip(out.as_chunks_mut::<COLUMNS>().0) {
        for (sums, out) in sums.into_iter().zip(out.as_chunks_mut::<LANES>().0) {
            // SAFETY: `out` is 64 writable bytes, and `storeu` needs no alignment.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sums) }
        }
    }
}

/// Fetches what the steps to come will read of B, and of A where a tile of it does not fit the first-level cache. Few
/// rows make a step short, so they look farther ahead.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn prefetch<const R: usize>(a: &[i32; R], b: &[i8]) {
    let ahead = if R > 4 { 4096 } else { 8192 };
    for line in b.chunks(64) {
        prefetch_line(line.as_ptr().wrapping_add(ahead));
    }
    if R > 4 {
        prefetch_line(a.as_ptr().wrapping_byte_add(512).cast());
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch_line(address: *const i8) {
    #[allow(unused_unsafe, reason = "a safe function in later versions of Rust")]
    // SAFETY: any address may be prefetched.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(address);
    }
}
