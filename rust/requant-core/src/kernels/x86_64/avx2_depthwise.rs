//! The depthwise convolution on AVX2, exact.
//!
//! `vpmaddwd` adds products of neighbours, so neighbours must be taps of one channel: [`interleave`] lays two rows of the
//! image into each other, once for all the outputs that they meet. The products of a tap pair with 6 neighbouring pixels
//! share the load of its weights; 12 of the 16 registers hold sums.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use crate::{
    gemm::{Bytes, Strip},
    kernels::depthwise::{DepthwiseKernel, LANES, Pairs, pair},
};

/// Pixels whose sums are held in registers.
const PIXELS: usize = 6;

/// Proof that AVX2 was detected: only [`probe`] makes one.
struct Avx2Depthwise(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn DepthwiseKernel> {
    static AVX2: Avx2Depthwise = Avx2Depthwise(());
    is_x86_feature_detected!("avx2").then_some(&AVX2 as &dyn DepthwiseKernel)
}

impl DepthwiseKernel for Avx2Depthwise {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn interleave(&self, lines: [Option<Bytes<'_>>; 2], step: usize, zero_point: i32, out: &mut [Pairs]) {
        // Where one line is missing, zero points stand for it.
        // SAFETY: an `Avx2Depthwise` exists only where AVX2 was detected.
        unsafe {
            match lines {
                [None, None] => out.fill([0; LANES]),
                [Some(Bytes::I8(upper)), Some(Bytes::I8(lower))] => {
                    interleave::<_, true>([Some(upper), Some(lower)], step, zero_point, out);
                }
                [Some(Bytes::I8(upper)), _] => interleave::<_, true>([Some(upper), None], step, zero_point, out),
                [_, Some(Bytes::I8(lower))] => interleave::<_, true>([None, Some(lower)], step, zero_point, out),
                [Some(Bytes::U8(upper)), Some(Bytes::U8(lower))] => {
                    interleave::<_, false>([Some(upper), Some(lower)], step, zero_point, out);
                }
                [Some(Bytes::U8(upper)), None] => interleave::<_, false>([Some(upper), None], step, zero_point, out),
                [None, Some(Bytes::U8(lower))] => interleave::<_, false>([None, Some(lower)], step, zero_point, out),
            }
        }
    }

    fn multiply(&self, x: &[Pairs], taps: &[usize], weights: &[Pairs], sums: &mut [[i32; LANES]]) {
        for (first, sums) in (0..).step_by(PIXELS).zip(sums.chunks_mut(PIXELS)) {
            let x = &x[first..];
            // SAFETY: an `Avx2Depthwise` exists only where AVX2 was detected.
            unsafe {
                match sums.len() {
                    1 => multiply::<1>(x, taps, weights, sums),
                    2 => multiply::<2>(x, taps, weights, sums),
                    3 => multiply::<3>(x, taps, weights, sums),
                    4 => multiply::<4>(x, taps, weights, sums),
                    5 => multiply::<5>(x, taps, weights, sums),
                    _ => multiply::<PIXELS>(x, taps, weights, sums),
                }
            }
        }
    }

    fn finish(&self, strip: Strip<'_, '_>) {
        // SAFETY: an `Avx2Depthwise` exists only where AVX2 was detected.
        unsafe { finish(strip) }
    }
}

#[target_feature(enable = "avx2")]
fn finish(strip: Strip<'_, '_>) {
    strip.finish::<LANES>();
}

#[target_feature(enable = "avx2")]
fn multiply<const P: usize>(x: &[Pairs], taps: &[usize], weights: &[Pairs], out: &mut [[i32; LANES]]) {
    let mut sums = [[_mm256_setzero_si256(); 2]; P];
    for (&tap, weights) in taps.iter().zip(weights) {
        let [low, high] = load(weights);
        let Some(x) = x[tap..].first_chunk::<P>() else { return };
        for (sums, x) in sums.iter_mut().zip(x) {
            let x = load(x);
            sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(x[0], low));
            sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(x[1], high));
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        store(sums, out);
    }
}

#[target_feature(enable = "avx2")]
fn interleave<T: Copy + Default, const SIGNED: bool>(
    lines: [Option<&[T]>; 2],
    step: usize,
    zero_point: i32,
    out: &mut [Pairs],
) {
    let outside = _mm_set1_epi8(zero_point as i8);
    let zero_points = _mm256_set1_epi32(pair(zero_point, zero_point));
    for (i, out) in out.iter_mut().enumerate() {
        let upper = match lines[0] {
            Some(line) => bytes(&line[i * step..]),
            None => outside,
        };
        let lower = match lines[1] {
            Some(line) => bytes(&line[i * step..]),
            None => outside,
        };
        let halves = [_mm_unpacklo_epi8(upper, lower), _mm_unpackhi_epi8(upper, lower)];
        let mut pairs = [zero_points; 2];
        for (pairs, half) in pairs.iter_mut().zip(halves) {
            let wide = if SIGNED {
                _mm256_cvtepi8_epi16(half)
            } else {
                _mm256_cvtepu8_epi16(half)
            };
            *pairs = _mm256_sub_epi16(wide, zero_points);
        }
        store(pairs, out);
    }
}

/// The first 16 bytes; defaults beyond the end.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes<T: Copy + Default>(line: &[T]) -> __m128i {
    const { assert!(size_of::<T>() == 1) };
    let mut tail = [T::default(); LANES];
    let chunk = match line.first_chunk::<LANES>() {
        Some(chunk) => chunk,
        None => {
            tail[..line.len()].copy_from_slice(line);
            &tail
        }
    };
    // SAFETY: `chunk` is 16 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm_loadu_si128(chunk.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[i32; LANES]) -> [__m256i; 2] {
    let (halves, _) = x.as_chunks::<8>();
    // SAFETY: each half is 32 readable bytes, and `loadu` needs no alignment.
    unsafe {
        [
            _mm256_loadu_si256(halves[0].as_ptr().cast()),
            _mm256_loadu_si256(halves[1].as_ptr().cast()),
        ]
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(v: [__m256i; 2], out: &mut [i32; LANES]) {
    let (halves, _) = out.as_chunks_mut::<8>();
    // SAFETY: each half is 32 writable bytes, and `storeu` needs no alignment.
    unsafe {
        _mm256_storeu_si256(halves[0].as_mut_ptr().cast(), v[0]);
        _mm256_storeu_si256(halves[1].as_mut_ptr().cast(), v[1]);
    }
}
