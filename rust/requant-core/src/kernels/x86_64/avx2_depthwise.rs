//! The depthwise convolution on AVX2, exact.
//!
//! `vpmaddwd` adds products of neighbours, so neighbours must be taps of one channel: [`interleave`] lays two rows of
//! the image into each other, once for all the outputs that they meet. Unpacking works within halves of registers, and
//! so does packing: the order of channels that the one leaves behind ([`ORDER`]) is undone by the other. The products
//! of a tap pair with 6 neighbouring pixels share the load of its weights; 12 of the 16 registers hold sums, which
//! begin as the bias and are requantized two pixels at a time without leaving them.
//!
//! Of a 3x3 filter, products take 0.55 of the time, requantization 0.3 and interleaving 0.15, each timed apart in the
//! first-level cache of a Zen 3.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use super::avx2_lanes::Avx2Lanes;
use crate::{
    arrays::{Bytes, BytesMut, Integer},
    kernels::{
        depthwise::{DepthwiseKernel, LANES, ORDER, Pairs, Row},
        finish::Strip,
    },
    requantize::Columns,
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

    fn multiply(&self, row: Row<'_>, sums: &mut [[i32; LANES]]) {
        check(row, sums.len());
        for (first, sums) in (0..).step_by(PIXELS).zip(sums.chunks_mut(PIXELS)) {
            // SAFETY: an `Avx2Depthwise` exists only where AVX2 was detected, and the taps of all pixels were checked.
            unsafe {
                match sums.len() {
                    1 => multiply::<1>(row, first, sums),
                    2 => multiply::<2>(row, first, sums),
                    3 => multiply::<3>(row, first, sums),
                    4 => multiply::<4>(row, first, sums),
                    5 => multiply::<5>(row, first, sums),
                    _ => multiply::<PIXELS>(row, first, sums),
                }
            }
        }
    }

    fn requantize(&self, row: Row<'_>, columns: &Columns<f32, LANES>, out: BytesMut<'_>, step: usize) {
        // SAFETY: an `Avx2Depthwise` exists only where AVX2 was detected.
        unsafe {
            match out {
                BytesMut::U8(out) => requantize_row(row, columns, out, step),
                BytesMut::I8(out) => requantize_row(row, columns, out, step),
            }
        }
    }

    fn finish(&self, strip: Strip<'_, '_>) {
        // SAFETY: an `Avx2Depthwise` exists only where AVX2 was detected.
        unsafe { finish(strip) }
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn finish(strip: Strip<'_, '_>) {
    strip.finish_with::<LANES>(Avx2Lanes::new());
}

/// Fails unless all taps of so many pixels lie in the pair rows.
pub(super) fn check(Row { x, taps, .. }: Row<'_>, pixels: usize) {
    let last = taps.iter().max().map_or(0, |tap| tap + pixels);
    assert!(last <= x.len(), "taps beyond the pair rows");
}

/// # Safety
/// [`check`] of `first + P` pixels.
#[target_feature(enable = "avx2")]
unsafe fn multiply<const P: usize>(row: Row<'_>, first: usize, out: &mut [[i32; LANES]]) {
    // SAFETY: the caller's.
    let sums = unsafe { sums::<P>(row, first, [_mm256_setzero_si256(); 2]) };
    for (out, sums) in out.iter_mut().zip(sums) {
        let low = _mm256_permute2x128_si256::<0x20>(sums[0], sums[1]);
        let high = _mm256_permute2x128_si256::<0x31>(sums[0], sums[1]);
        store([low, high], out);
    }
}

#[target_feature(enable = "avx2")]
fn requantize_row<Q: Integer>(row: Row<'_>, columns: &Columns<f32, LANES>, out: &mut [Q], step: usize) {
    let scaling = Scaling::new(columns);
    let pixels = out.len().div_ceil(step);
    check(row, pixels);
    assert!((pixels - 1) * step + LANES <= out.len(), "a pixel of fewer lanes");
    for first in (0..pixels).step_by(PIXELS) {
        // SAFETY: the taps of all pixels were checked, and that `out` has all of their lanes.
        unsafe {
            let out = out.as_mut_ptr().add(first * step);
            match pixels - first {
                1 => requantize::<1, Q>(row, first, &scaling, out, step),
                2 => requantize::<2, Q>(row, first, &scaling, out, step),
                3 => requantize::<3, Q>(row, first, &scaling, out, step),
                4 => requantize::<4, Q>(row, first, &scaling, out, step),
                5 => requantize::<5, Q>(row, first, &scaling, out, step),
                _ => requantize::<PIXELS, Q>(row, first, &scaling, out, step),
            }
        }
    }
}

/// # Safety
/// [`check`] of `first + P` pixels, and as many, `step` apart, can be written from `out` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn requantize<const P: usize, Q: Integer>(
    row: Row<'_>,
    first: usize,
    scaling: &Scaling,
    out: *mut Q,
    step: usize,
) {
    const { assert!(size_of::<Q>() == 1) };
    // SAFETY: the caller's.
    let sums = unsafe { sums::<P>(row, first, scaling.bias) };
    for (i, sums) in (0..).step_by(2).zip(sums.chunks(2)) {
        let upper = scaling.words(sums[0]);
        let lower = sums.get(1).map_or(upper, |sums| scaling.words(*sums));
        let pixels = scaling.bytes::<Q>(upper, lower);
        // SAFETY: the caller's, and `storeu` needs no alignment.
        unsafe {
            _mm_storeu_si128(out.add(i * step).cast(), _mm256_castsi256_si128(pixels));
            if sums.len() == 2 {
                _mm_storeu_si128(out.add((i + 1) * step).cast(), _mm256_extracti128_si256::<1>(pixels));
            }
        }
    }
}

/// From sums to integers, in the order of [`ORDER`].
struct Scaling {
    bias: [__m256i; 2],
    multipliers: [__m256; 2],
    zero_point: __m256i,
    min: __m256i,
    max: __m256i,
}

impl Scaling {
    #[target_feature(enable = "avx2")]
    fn new(columns: &Columns<f32, LANES>) -> Self {
        let (min, max) = columns.limits;
        Self {
            bias: load(&ORDER.map(|c| columns.bias[c])),
            multipliers: load(&ORDER.map(|c| columns.multipliers[c].to_bits().cast_signed()))
                .map(|m| _mm256_castsi256_ps(m)),
            zero_point: _mm256_set1_epi16(i16::narrow(columns.zero_point)),
            min: _mm256_set1_epi8(i8::narrow(min)),
            max: _mm256_set1_epi8(i8::narrow(max)),
        }
    }

    /// Scaled and rounded by conversion, half to even, with the zero point, saturated to i16; in the usual order again.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn words(&self, sums: [__m256i; 2]) -> __m256i {
        let low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[0]), self.multipliers[0]));
        let high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[1]), self.multipliers[1]));
        _mm256_adds_epi16(_mm256_packs_epi32(low, high), self.zero_point)
    }

    /// Two pixels, clamped as [`Avx2Lanes`] does.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn bytes<Q: Integer>(&self, upper: __m256i, lower: __m256i) -> __m256i {
        let bytes = if Q::TYPE.signed() {
            _mm256_min_epi8(_mm256_max_epi8(_mm256_packs_epi16(upper, lower), self.min), self.max)
        } else {
            _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(upper, lower), self.min), self.max)
        };
        _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes)
    }
}

/// The sums of `P` neighbouring pixels from `first` on, added to a bias.
///
/// # Safety
/// [`check`] of `first + P` pixels.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn sums<const P: usize>(row: Row<'_>, first: usize, bias: [__m256i; 2]) -> [[__m256i; 2]; P] {
    let mut taps = row.taps.iter().zip(row.weights);
    // SAFETY: the caller's.
    let products = |(&tap, weights): (&usize, &Pairs)| unsafe { products::<P>(row.x, tap + first, weights) };
    // Taken out of the loop, so that no register is filled with the bias first.
    let Some(tap) = taps.next() else {
        return [bias; P];
    };
    let mut sums = products(tap).map(|product| add(bias, product));
    for tap in taps {
        for (sum, product) in sums.iter_mut().zip(products(tap)) {
            *sum = add(*sum, product);
        }
    }
    sums
}

/// The products of a tap with `P` neighbouring pixels from `at` on.
///
/// # Safety
/// `x` has them.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn products<const P: usize>(x: &[Pairs], at: usize, weights: &Pairs) -> [[__m256i; 2]; P] {
    let [low, high] = load(weights);
    std::array::from_fn(|i| {
        // SAFETY: the caller's.
        let x = load(unsafe { x.get_unchecked(at + i) });
        [_mm256_madd_epi16(x[0], low), _mm256_madd_epi16(x[1], high)]
    })
}

#[inline]
#[target_feature(enable = "avx2")]
fn add(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
    [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
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
    let zero_points = _mm256_set1_epi16(i16::narrow(zero_point));
    // Pixels of which 16 bytes can be read: all, usually, which needs no division.
    let whole = |line: Line<'_, T>| match line.data.len().checked_sub(LANES) {
        Some(rest) if rest >= out.len().saturating_mul(line.step) => usize::MAX,
        Some(rest) => rest / line.step + 1,
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
    let (upper, lower) = if SIGNED {
        (_mm256_cvtepi8_epi16(upper), _mm256_cvtepi8_epi16(lower))
    } else {
        (_mm256_cvtepu8_epi16(upper), _mm256_cvtepu8_epi16(lower))
    };
    let (upper, lower) = (
        _mm256_sub_epi16(upper, zero_points),
        _mm256_sub_epi16(lower, zero_points),
    );
    [_mm256_unpacklo_epi16(upper, lower), _mm256_unpackhi_epi16(upper, lower)]
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
