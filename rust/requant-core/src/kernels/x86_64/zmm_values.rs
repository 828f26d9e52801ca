//! 512-bit registers of reals, and 64 integers as bytes.
//!
//! ```text
//! codes   a0 .. a15   b0 .. b15   c0 .. c15   d0 .. d15         dwords of four registers
//! narrow  a0-a3 b0-b3 c0-c3 d0-d3 | a4-a7 b4-b7 c4-c7 d4-d7 | ...    bytes, a quarter of 128 bits after another
//! ```
//!
//! Narrowing goes by quarters; a permutation at the end brings bytes, or what became of neighbours, into order.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

/// Integers of 0..=255 as bytes, by quarters.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn narrow([a, b, c, d]: [__m512i; 4]) -> __m512i {
    _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d))
}

/// What [`narrow`] left by quarters.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn in_order(bytes: __m512i) -> __m512i {
    let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    _mm512_permutexvar_epi32(order, bytes)
}

/// Where the first of each `PER` neighbours lies, by quarters; the first of all in front.
const fn order<const PER: usize>() -> [u8; 64] {
    let mut order = [0; 64];
    let (mut i, mut value) = (0, 0);
    while value < 64 {
        let (register, quarter, within) = (value / 16, value % 16 / 4, value % 4);
        #[expect(clippy::cast_possible_truncation, reason = "below 64")]
        let at = (16 * quarter + 4 * register + within) as u8;
        order[i] = at;
        (i, value) = (i + 1, value + PER);
    }
    order
}

/// Of words that hold two neighbours in their low bytes: the order of these.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn order_of_pairs() -> __m512i {
    const ORDER: [u8; 64] = order::<2>();
    load_bytes(&ORDER)
}

/// Of dwords that hold four.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn order_of_quads() -> __m512i {
    const ORDER: [u8; 64] = order::<4>();
    load_bytes(&ORDER)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_bytes(x: &[u8; 64]) -> __m512i {
    // SAFETY: `x` is 64 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_bytes(v: __m512i, out: &mut [u8; 64]) {
    // SAFETY: `out` is 64 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(x: &[f32; 16]) -> __m512 {
    // SAFETY: `x` is 64 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(v: __m512, out: &mut [f32; 16]) {
    // SAFETY: `out` is 64 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
}
