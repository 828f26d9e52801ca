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

use super::avx2_lanes::Avx2Lanes;
use crate::{
    affine::Integer,
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
        match lines {
            [None, None] => out.fill([0; LANES]),
            [Some(Bytes::U8(_)), _] | [_, Some(Bytes::U8(_))] => {
                let outside = [u8::narrow(zero_point); LANES];
                let lines = lines.map(|line| match line {
                    Some(Bytes::U8(line)) => Line { data: line, step },
                    _ => Line {
                        data: &outside,
                        step: 0,
                    },
                });
                // SAFETY: an `Avx2Depthwise` exists only where AVX2 was detected.
                unsafe { interleave::<_, false>(lines, zero_point, out) }
            }
            [Some(Bytes::I8(_)), _] | [_, Some(Bytes::I8(_))] => {
                let outside = [i8::narrow(zero_point); LANES];
                let lines = lines.map(|line| match line {
                    Some(Bytes::I8(line)) => Line { data: line, step },
                    _ => Line {
                        data: &outside,
                        step: 0,
                    },
                });
                // SAFETY: an `Avx2Depthwise` exists only where AVX2 was detected.
                unsafe { interleave::<_, true>(lines, zero_point, out) }
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
    strip.finish_with::<LANES>(Avx2Lanes::new());
}

#[target_feature(enable = "avx2")]
fn multiply<const P: usize>(x: &[Pairs], taps: &[usize], weights: &[Pairs], out: &mut [[i32; LANES]]) {
    let (Some((&tap, taps)), Some((first, weights))) = (taps.split_first(), weights.split_first()) else {
        return out.fill([0; LANES]);
    };
    // The first products are the sums so far: no additions.
    let mut sums = products::<P>(&x[tap..], first);
    for (&tap, weights) in taps.iter().zip(weights) {
        for (sums, products) in sums.iter_mut().zip(products::<P>(&x[tap..], weights)) {
            sums[0] = _mm256_add_epi32(sums[0], products[0]);
            sums[1] = _mm256_add_epi32(sums[1], products[1]);
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        store(sums, out);
    }
}

/// The products of `P` neighbouring pixels with a tap's weights.
#[inline]
#[target_feature(enable = "avx2")]
fn products<const P: usize>(x: &[Pairs], weights: &Pairs) -> [[__m256i; 2]; P] {
    let [low, high] = load(weights);
    let mut products = [[low, high]; P];
    for (products, x) in products.iter_mut().zip(&x[..P]) {
        let x = load(x);
        *products = [_mm256_madd_epi16(x[0], low), _mm256_madd_epi16(x[1], high)];
    }
    products
}

/// Pixels of one row, `step` apart; the same one again and again where that is 0.
#[derive(Clone, Copy)]
struct Line<'a, T> {
    data: &'a [T],
    step: usize,
}

#[target_feature(enable = "avx2")]
fn interleave<T: Copy + Default, const SIGNED: bool>(lines: [Line<'_, T>; 2], zero_point: i32, out: &mut [Pairs]) {
    let [upper, lower] = lines;
    let zero_points = _mm256_set1_epi32(pair(zero_point, zero_point));
    // Pixels of which 16 bytes can be read.
    let whole = |line: Line<'_, T>| match line.data.len().checked_sub(LANES) {
        Some(rest) => rest.checked_div(line.step).map_or(usize::MAX, |steps| steps + 1),
        None => 0,
    };
    let done = whole(upper).min(whole(lower)).min(out.len());
    for (i, out) in out[..done].iter_mut().enumerate() {
        // SAFETY: pixel `i` is one of `done`, so 16 bytes follow in either line.
        let (upper, lower) = unsafe {
            (
                &*upper.data.as_ptr().add(i * upper.step).cast(),
                &*lower.data.as_ptr().add(i * lower.step).cast(),
            )
        };
        store(pairs::<T, SIGNED>(upper, lower, zero_points), out);
    }
    // The last pixels of an image, if 16 bytes reach beyond its end.
    for (i, out) in out.iter_mut().enumerate().skip(done) {
        let [upper, lower] = lines.map(|line| {
            let rest = &line.data[i * line.step..];
            std::array::from_fn(|c| rest.get(c).copied().unwrap_or_default())
        });
        store(pairs::<T, SIGNED>(&upper, &lower, zero_points), out);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn pairs<T, const SIGNED: bool>(upper: &[T; LANES], lower: &[T; LANES], zero_points: __m256i) -> [__m256i; 2] {
    const { assert!(size_of::<T>() == 1) };
    // SAFETY: both are 16 readable bytes, and `loadu` needs no alignment.
    let (upper, lower) = unsafe {
        (
            _mm_loadu_si128(upper.as_ptr().cast()),
            _mm_loadu_si128(lower.as_ptr().cast()),
        )
    };
    let (low, high) = (_mm_unpacklo_epi8(upper, lower), _mm_unpackhi_epi8(upper, lower));
    let (low, high) = if SIGNED {
        (_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high))
    } else {
        (_mm256_cvtepu8_epi16(low), _mm256_cvtepu8_epi16(high))
    };
    [_mm256_sub_epi16(low, zero_points), _mm256_sub_epi16(high, zero_points)]
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
