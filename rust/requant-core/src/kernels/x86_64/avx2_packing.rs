//! Packing on AVX2.
//!
//! ```text
//! bytes            a  b  c  d          one integer to each
//! maddubs 1, 16    b<<4|a   d<<4|c     words, which packus makes bytes; of 2 bits: by 1, 4, and then of those by 1, 16
//! ```

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use crate::{
    arrays::{Cut, Integer, Integers, IntegersMut},
    kernels::{
        elementwise::ElementwiseKernel,
        generic_elementwise::{self as generic, Generic},
    },
};

#[target_feature(enable = "avx2")]
pub(super) fn pack(q: Integers<'_>, per_byte: usize, out: &mut [u8]) -> bool {
    let done = match q {
        Integers::I8(q) => pack_bytes(q, per_byte, out),
        Integers::U8(q) => pack_bytes(q, per_byte, out),
        Integers::I16(_) | Integers::U16(_) => Some(0),
    };
    done.is_some_and(|done| Generic.pack(q.part(done..q.len()), per_byte, &mut out[done / per_byte..]))
}

/// How many were packed, as many as fill vectors; none where one does not fit.
#[target_feature(enable = "avx2")]
fn pack_bytes<Q: Integer>(q: &[Q], per_byte: usize, out: &mut [u8]) -> Option<usize> {
    let bits = 8 / per_byte;
    let half = if Q::TYPE.signed() { 1 << (bits - 1) } else { 0 };
    let (half, mask) = (_mm256_set1_epi8(half), _mm256_set1_epi8((1 << bits) - 1));
    let mut excess = _mm256_setzero_si256();
    let groups = q.chunks_exact(32 * per_byte);
    let done = q.len() - groups.remainder().len();
    for (q, out) in groups.zip(out.as_chunks_mut().0) {
        let mut v = [_mm256_setzero_si256(); 4];
        for (v, q) in v.iter_mut().zip(q.as_chunks::<32>().0) {
            let q = load_bytes(q);
            excess = _mm256_or_si256(excess, _mm256_andnot_si256(mask, _mm256_add_epi8(q, half)));
            *v = _mm256_and_si256(q, mask);
        }
        let packed = match per_byte {
            4 => pairs::<16>(pairs::<4>(v[0], v[1]), pairs::<4>(v[2], v[3])),
            _ => pairs::<16>(v[0], v[1]),
        };
        store_bytes(packed, out);
    }
    (_mm256_testz_si256(excess, excess) == 1).then_some(done)
}

/// `FACTOR * b + a` of each two neighbouring bytes, in order.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs<const FACTOR: i16>(low: __m256i, high: __m256i) -> __m256i {
    let factors = _mm256_set1_epi16(FACTOR << 8 | 1);
    let words = _mm256_packus_epi16(_mm256_maddubs_epi16(low, factors), _mm256_maddubs_epi16(high, factors));
    // Packing works in halves of 128 bits: quads of bytes lie in the order 0 2 1 3.
    _mm256_permute4x64_epi64::<0b11_01_10_00>(words)
}

#[target_feature(enable = "avx2")]
pub(super) fn unpack(packed: &[u8], per_byte: usize, out: IntegersMut<'_>) {
    generic::unpack(packed, per_byte, out);
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_bytes<Q: Integer>(q: &[Q; 32]) -> __m256i {
    // SAFETY: `q` is 32 readable bytes at least, and `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(q.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_bytes(v: __m256i, out: &mut [u8; 32]) {
    // SAFETY: `out` is 32 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), v) }
}
