//! Elementwise maps of 8-bit integers on AVX2.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use crate::{
    arrays::Integer,
    kernels::{Terms, generic},
};

/// 16 sums at a time, rounded by conversion and clamped in the integers: those that 16 bits cannot hold lie beyond the
/// limits too.
#[target_feature(enable = "avx2,fma")]
pub(super) fn add(a: &[u8], b: &[u8], terms: &Terms, out: &mut [u8]) {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let (outs, out_rest) = out.as_chunks_mut::<16>();
    let (weight_a, weight_b) = (_mm256_set1_ps(terms.a), _mm256_set1_ps(terms.b));
    let constant = _mm256_set1_ps(terms.constant);
    // Beyond 2^31 the conversion gives the lowest integer, which is right only for what is negative.
    let most = _mm256_set1_ps(65_536.0);
    let (min, max) = (
        _mm_set1_epi8(i8::narrow(terms.min)),
        _mm_set1_epi8(i8::narrow(terms.max)),
    );
    for ((a, b), out) in a.iter().zip(b).zip(outs) {
        let mut rounded = [_mm256_setzero_si256(); 2];
        for (i, rounded) in rounded.iter_mut().enumerate() {
            let [a, b] = [a, b].map(|x| reals(&x.as_chunks().0[i], terms.signed));
            let sum = _mm256_fmadd_ps(a, weight_a, _mm256_fmadd_ps(b, weight_b, constant));
            *rounded = _mm256_cvtps_epi32(_mm256_min_ps(sum, most));
        }
        let words = _mm256_packs_epi32(rounded[0], rounded[1]);
        let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        let bytes = if terms.signed {
            _mm_min_epi8(_mm_max_epi8(_mm_packs_epi16(low, high), min), max)
        } else {
            _mm_min_epu8(_mm_max_epu8(_mm_packus_epi16(low, high), min), max)
        };
        let bytes = _mm_shuffle_epi32::<0b11_01_10_00>(bytes);
        // SAFETY: `out` is 16 writable bytes, and `storeu` needs no alignment.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) };
    }
    generic::add(a_rest, b_rest, terms, out_rest);
}

#[inline]
#[target_feature(enable = "avx2")]
fn reals(x: &[u8; 8], signed: bool) -> __m256 {
    // SAFETY: `x` is 8 readable bytes, and `loadl` needs no alignment.
    let bytes = unsafe { _mm_loadl_epi64(x.as_ptr().cast()) };
    _mm256_cvtepi32_ps(if signed {
        _mm256_cvtepi8_epi32(bytes)
    } else {
        _mm256_cvtepu8_epi32(bytes)
    })
}

/// 32 look-ups at a time: each of the 16 rows of the table answers for the low four bits, and the high four choose
/// among the answers, one bit after another.
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
