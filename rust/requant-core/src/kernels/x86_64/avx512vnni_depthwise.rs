//! The depthwise convolution on AVX-512 VNNI.
//!
//! A register holds a pair of rows of 16 channels, and `vpdpwssd` multiplies and adds in one: as on AVX2
//! ([`super::avx2_depthwise`]), with a quarter of the instructions. A sum waits 4 to 5 cycles for the one before it, in
//! which two units start 10: the products of a tap pair with 14 neighbouring pixels share the load of its weights, 14
//! being the width of many an image, or a divisor of it.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use super::avx2_depthwise::check;
use crate::{
    arrays::{Bytes, BytesMut, Integer},
    kernels::{
        depthwise::{DepthwiseKernel, LANES, Pairs, Row},
        finish::Strip,
    },
    requantize::Columns,
};

/// Pixels whose sums are held in registers.
const PIXELS: usize = 14;

/// Brings quarters of a register from the order of channels into [`crate::kernels::depthwise::ORDER`], and back.
const SWAP: i32 = 0b11_01_10_00;

/// Proof that AVX-512 VNNI was detected: only [`probe`] makes one.
struct Avx512VnniDepthwise(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn DepthwiseKernel> {
    static KERNEL: Avx512VnniDepthwise = Avx512VnniDepthwise(());
    super::avx512vnni::detected().then_some(&KERNEL as &dyn DepthwiseKernel)
}

impl DepthwiseKernel for Avx512VnniDepthwise {
    fn name(&self) -> &'static str {
        "avx512vnni"
    }

    fn interleave(&self, lines: [Option<Bytes<'_>>; 2], step: usize, zero_point: i32, out: &mut [Pairs]) {
        let signed = match lines {
            [None, None] => return out.fill([0; LANES]),
            [Some(line), _] | [_, Some(line)] => matches!(line, Bytes::I8(_)),
        };
        let outside = if signed {
            i8::narrow(zero_point).cast_unsigned()
        } else {
            u8::narrow(zero_point)
        };
        let outside = [outside; LANES];
        let lines = lines.map(|line| match line {
            Some(line) => (bits(line), step),
            None => (&outside[..], 0),
        });
        // SAFETY: an `Avx512VnniDepthwise` exists only where AVX-512 VNNI was detected.
        unsafe {
            if signed {
                interleave::<true>(lines, zero_point, out);
            } else {
                interleave::<false>(lines, zero_point, out);
            }
        }
    }

    fn multiply(&self, row: Row<'_>, sums: &mut [[i32; LANES]]) {
        check(row, sums.len());
        for (first, sums) in (0..).step_by(PIXELS).zip(sums.chunks_mut(PIXELS)) {
            // SAFETY: an `Avx512VnniDepthwise` exists only where AVX-512 VNNI was detected, and the taps of all pixels
            // were checked.
            unsafe {
                with_rows!(sums.len(), P in [1 2 3 4 5 6 7 8 9 10 11 12 13 14] => multiply::<P>(row, first, sums));
            }
        }
    }

    fn requantize(&self, row: Row<'_>, columns: &Columns<f32, LANES>, out: BytesMut<'_>, step: usize) {
        // SAFETY: an `Avx512VnniDepthwise` exists only where AVX-512 VNNI was detected.
        unsafe {
            match out {
                BytesMut::U8(out) => requantize_row(row, columns, out, step),
                BytesMut::I8(out) => requantize_row(row, columns, out, step),
            }
        }
    }

    fn finish(&self, strip: Strip<'_, '_>) {
        // SAFETY: an `Avx512VnniDepthwise` exists only where AVX-512 was detected, and with it AVX2.
        unsafe { super::avx2_depthwise::finish(strip) }
    }
}

fn bits(line: Bytes<'_>) -> &[u8] {
    match line {
        Bytes::U8(line) => line,
        // SAFETY: an i8 is a byte of any bits, as a u8 is.
        Bytes::I8(line) => unsafe { std::slice::from_raw_parts(line.as_ptr().cast(), line.len()) },
    }
}

/// # Safety
/// [`check`] of `first + P` pixels.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn multiply<const P: usize>(row: Row<'_>, first: usize, out: &mut [[i32; LANES]]) {
    // SAFETY: the caller's.
    let sums = unsafe { sums::<P>(row, first, _mm512_setzero_si512()) };
    for (out, sums) in out.iter_mut().zip(sums) {
        store(_mm512_shuffle_i32x4::<SWAP>(sums, sums), out);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn requantize_row<Q: Integer>(row: Row<'_>, columns: &Columns<f32, LANES>, out: &mut [Q], step: usize) {
    let scaling = Scaling::new(columns);
    let pixels = out.len().div_ceil(step);
    check(row, pixels);
    assert!((pixels - 1) * step + LANES <= out.len(), "a pixel of fewer lanes");
    for first in (0..pixels).step_by(PIXELS) {
        // SAFETY: the taps of all pixels were checked, and that `out` has all of their lanes.
        unsafe {
            let out = out.as_mut_ptr().add(first * step);
            with_rows!(
                (pixels - first).min(PIXELS),
                P in [1 2 3 4 5 6 7 8 9 10 11 12 13 14] => requantize::<P, Q>(row, first, &scaling, out, step)
            );
        }
    }
}

/// # Safety
/// [`check`] of `first + P` pixels, and as many, `step` apart, can be written from `out` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
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
    for (i, sums) in (0..).step_by(4).zip(sums.chunks(4)) {
        let of = |i: usize| sums[i.min(sums.len() - 1)];
        let upper = scaling.words(of(0), of(1));
        let lower = if sums.len() > 2 {
            scaling.words(of(2), of(3))
        } else {
            upper
        };
        let pixels = scaling.bytes::<Q>(upper, lower);
        let pixels = [
            _mm512_castsi512_si128(pixels),
            _mm512_extracti32x4_epi32::<1>(pixels),
            _mm512_extracti32x4_epi32::<2>(pixels),
            _mm512_extracti32x4_epi32::<3>(pixels),
        ];
        for (j, pixel) in pixels.into_iter().enumerate().take(sums.len()) {
            // SAFETY: the caller's, and `storeu` needs no alignment.
            unsafe { _mm_storeu_si128(out.add((i + j) * step).cast(), pixel) };
        }
    }
}

/// From sums to integers.
struct Scaling {
    bias: __m512i,
    multipliers: __m512,
    zero_point: __m512i,
    min: __m512i,
    max: __m512i,
}

impl Scaling {
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(columns: &Columns<f32, LANES>) -> Self {
        let (min, max) = columns.limits;
        let bias = load(&columns.bias);
        // SAFETY: 64 readable bytes, and `loadu` needs no alignment.
        let multipliers = unsafe { _mm512_loadu_ps(columns.multipliers.as_ptr()) };
        Self {
            bias: _mm512_shuffle_i32x4::<SWAP>(bias, bias),
            multipliers: _mm512_shuffle_f32x4::<SWAP>(multipliers, multipliers),
            zero_point: _mm512_set1_epi16(i16::narrow(columns.zero_point)),
            min: _mm512_set1_epi8(i8::narrow(min)),
            max: _mm512_set1_epi8(i8::narrow(max)),
        }
    }

    /// Two pixels scaled and rounded by conversion, half to even, with the zero point, saturated to i16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn words(&self, upper: __m512i, lower: __m512i) -> __m512i {
        let round = |sums| _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), self.multipliers));
        _mm512_adds_epi16(_mm512_packs_epi32(round(upper), round(lower)), self.zero_point)
    }

    /// Four pixels, clamped, each in a quarter and in the order of channels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn bytes<Q: Integer>(&self, upper: __m512i, lower: __m512i) -> __m512i {
        let bytes = if Q::TYPE.signed() {
            _mm512_min_epi8(_mm512_max_epi8(_mm512_packs_epi16(upper, lower), self.min), self.max)
        } else {
            _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(upper, lower), self.min), self.max)
        };
        // A quarter holds four channels of each pixel.
        let order = _mm512_setr_epi32(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15);
        _mm512_permutexvar_epi32(order, bytes)
    }
}

/// The sums of `P` neighbouring pixels from `first` on, added to a bias.
///
/// # Safety
/// [`check`] of `first + P` pixels.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn sums<const P: usize>(row: Row<'_>, first: usize, bias: __m512i) -> [__m512i; P] {
    let mut sums = [bias; P];
    for (&tap, weights) in row.taps.iter().zip(row.weights) {
        let weights = load(weights);
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's.
            let x = unsafe { row.x.get_unchecked(tap + first + i) };
            *sum = _mm512_dpwssd_epi32(*sum, weights, load(x));
        }
    }
    sums
}

/// Lines, of which each pixel begins a step behind the one before it.
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave<const SIGNED: bool>(lines: [(&[u8], usize); 2], zero_point: i32, out: &mut [Pairs]) {
    let zero_points = _mm512_set1_epi16(i16::narrow(zero_point));
    // Pixels of which 16 bytes can be read: all, usually, which needs no division.
    let whole = |(line, step): (&[u8], usize)| match line.len().checked_sub(LANES) {
        Some(rest) if rest >= out.len().saturating_mul(step) => usize::MAX,
        Some(rest) => rest / step + 1,
        None => 0,
    };
    let done = whole(lines[0]).min(whole(lines[1])).min(out.len());
    for (i, out) in out[..done].iter_mut().enumerate() {
        // SAFETY: pixel `i` is one of `done`, so 16 bytes follow in either line.
        let [upper, lower] = lines.map(|(line, step)| unsafe { &*line.as_ptr().add(i * step).cast() });
        store(pairs::<SIGNED>(upper, lower, zero_points), out);
    }
    // The last pixels of an image, if 16 bytes reach beyond its end.
    for (i, out) in out.iter_mut().enumerate().skip(done) {
        let [upper, lower] = lines.map(|(line, step)| {
            let rest = &line[i * step..];
            std::array::from_fn(|c| rest.get(c).copied().unwrap_or_default())
        });
        store(pairs::<SIGNED>(&upper, &lower, zero_points), out);
    }
}

/// Lays 16 channels of two rows into each other, four to a quarter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn pairs<const SIGNED: bool>(upper: &[u8; LANES], lower: &[u8; LANES], zero_points: __m512i) -> __m512i {
    // SAFETY: both are 16 readable bytes, and `loadu` needs no alignment.
    let (upper, lower) = unsafe {
        (
            _mm512_castsi128_si512(_mm_loadu_si128(upper.as_ptr().cast())),
            _mm512_castsi128_si512(_mm_loadu_si128(lower.as_ptr().cast())),
        )
    };
    let fours = _mm512_setr_epi32(0, 16, 2, 18, 1, 17, 3, 19, 0, 0, 0, 0, 0, 0, 0, 0);
    let fours = _mm512_castsi512_si256(_mm512_permutex2var_epi32(upper, fours, lower));
    let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
    let bytes = _mm256_shuffle_epi8(fours, order);
    let words = if SIGNED {
        _mm512_cvtepi8_epi16(bytes)
    } else {
        _mm512_cvtepu8_epi16(bytes)
    };
    _mm512_sub_epi16(words, zero_points)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[i32; LANES]) -> __m512i {
    // SAFETY: `x` is 64 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(v: __m512i, out: &mut [i32; LANES]) {
    // SAFETY: `out` is 64 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
}
