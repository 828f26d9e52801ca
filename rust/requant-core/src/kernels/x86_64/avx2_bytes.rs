//! Elementwise maps of 8-bit integers on AVX2.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use crate::kernels::{Terms, generic};

/// The definition, in instructions that fuse multiplication and addition.
#[target_feature(enable = "avx2,fma")]
pub(super) fn add(a: &[u8], b: &[u8], terms: &Terms, out: &mut [u8]) {
    generic::add(a, b, terms, out);
}

/// 32 look-ups at a time: each of the 16 rows of the table answers for the low four bits, and the high four choose among the
/// answers, one bit after another.
#[target_feature(enable = "avx2")]
pub(super) fn look_up(table: &[u8; 256], x: &[u8], out: &mut [u8]) {
    let (blocks, rest) = x.as_chunks::<32>();
    let (outs, out_rest) = out.as_chunks_mut::<32>();
    let (rows, _) = table.as_chunks::<16>();
    for (x, out) in blocks.iter().zip(outs) {
        // SAFETY: `x` is 32 readable bytes, and `loadu` needs no alignment.
        let x = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
        let low = _mm256_and_si256(x, _mm256_set1_epi8(0x0f));
        let mut answers = [x; 16];
        for (answer, row) in answers.iter_mut().zip(rows) {
            // SAFETY: `row` is 16 readable bytes, and `loadu` needs no alignment.
            let row = unsafe { _mm_loadu_si128(row.as_ptr().cast()) };
            *answer = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(row), low);
        }
        // A blend looks at the highest bit of each byte; shifts bring bits 4, 5 and 6 there.
        let bits = [
            _mm256_slli_epi16::<3>(x),
            _mm256_slli_epi16::<2>(x),
            _mm256_slli_epi16::<1>(x),
            x,
        ];
        for (level, bit) in bits.into_iter().enumerate() {
            for i in 0..8 >> level {
                answers[i] = _mm256_blendv_epi8(answers[2 * i], answers[2 * i + 1], bit);
            }
        }
        // SAFETY: `out` is 32 writable bytes, and `storeu` needs no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), answers[0]) };
    }
    generic::look_up(table, rest, out_rest);
}
