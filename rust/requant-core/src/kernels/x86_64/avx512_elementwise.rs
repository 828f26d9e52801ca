//! Quantization on AVX-512: 64 values at a time to and from 8 bits, the same arithmetic as on AVX2
//! ([`super::avx2_values`] proves it). What does not fill 64 values, has parameters of its own for each, holds a NaN,
//! or is wider than 8 bits, AVX2 does.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use super::{
    avx2_elementwise,
    avx2_maps::{self, WHOLE},
    avx2_values::{FAKE_QUANTIZE, PER_CHANNEL, PER_TENSOR, with_origin},
    zmm::LANES,
};
use crate::{
    arrays::{Integer, Integers, IntegersMut, Reals, RealsMut},
    kernels::{
        elementwise::{Divisors, ElementwiseKernel, Params, Slices},
        generic_elementwise::Generic,
        rounding::Rounding,
    },
};

/// Values that are written at a time.
const BLOCK: usize = 4 * LANES;

/// Values that are done again where one of them may be wrong; a multiple of all runs that are counted by constants.
const GROUP: usize = 16 * BLOCK;

/// Proof that AVX-512 was detected: only [`probe`] makes one.
struct Avx512Elementwise(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn ElementwiseKernel> {
    static KERNEL: Avx512Elementwise = Avx512Elementwise(());
    (super::avx512::detected() && avx2_elementwise::probe().is_some()).then_some(&KERNEL as &dyn ElementwiseKernel)
}

/// What does the rest.
fn base() -> &'static dyn ElementwiseKernel {
    avx2_elementwise::probe().unwrap_or(&Generic)
}

impl ElementwiseKernel for Avx512Elementwise {
    fn name(&self) -> &'static str {
        "avx512"
    }

    fn prepare(&self, slices: Slices<'_>, inverse: &mut [f32], min: &mut [f32], max: &mut [f32]) -> bool {
        base().prepare(slices, inverse, min, max)
    }

    fn quantize(&self, x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: IntegersMut<'_>) {
        match out {
            // SAFETY: an `Avx512Elementwise` exists only where AVX-512 was detected.
            IntegersMut::I8(out) if divisors.ordinary => unsafe { quantize(x, divisors, rounding, out) },
            // SAFETY: as above.
            IntegersMut::U8(out) if divisors.ordinary => unsafe { quantize(x, divisors, rounding, out) },
            out => base().quantize(x, divisors, rounding, out),
        }
    }

    fn dequantize(&self, q: Integers<'_>, slices: Slices<'_>, stream: bool, out: &mut [f32]) {
        match q {
            // SAFETY: an `Avx512Elementwise` exists only where AVX-512 was detected.
            Integers::I8(q) if !stream => unsafe { dequantize(q, slices, out) },
            // SAFETY: as above.
            Integers::U8(q) if !stream => unsafe { dequantize(q, slices, out) },
            q => base().dequantize(q, slices, stream, out),
        }
    }

    fn fake_quantize(&self, x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [f32]) {
        if divisors.ordinary {
            // SAFETY: an `Avx512Elementwise` exists only where AVX-512 was detected.
            unsafe { fake_quantize(x, divisors, rounding, out) }
        } else {
            base().fake_quantize(x, divisors, rounding, out);
        }
    }

    fn in_range(&self, x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [bool]) {
        base().in_range(x, divisors, rounding, out);
    }

    fn squares(&self, x: &[f32], y: &[f32]) -> (f64, f64) {
        base().squares(x, y)
    }

    fn widen(&self, x: Reals<'_>, out: &mut [f32]) {
        base().widen(x, out);
    }

    fn narrow(&self, x: &[f32], out: RealsMut<'_>) {
        base().narrow(x, out);
    }

    fn pack(&self, q: Integers<'_>, per_byte: usize, out: &mut [u8]) -> bool {
        base().pack(q, per_byte, out)
    }

    fn unpack(&self, packed: &[u8], per_byte: usize, out: IntegersMut<'_>) {
        base().unpack(packed, per_byte, out);
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn quantize<Q: Integer>(x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [Q]) {
    with_formula!(rounding, F => map::<Quantize<Q, F>>(x, divisors, out));
}

#[target_feature(enable = "avx512f,avx512bw")]
fn dequantize<Q: Integer>(q: &[Q], slices: Slices<'_>, out: &mut [f32]) {
    map::<Dequantize<Q>>(q, slices, out);
}

#[target_feature(enable = "avx512f,avx512bw")]
fn fake_quantize(x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [f32]) {
    with_formula!(rounding, F => map::<FakeQuantize<F>>(x, divisors, out));
}

/// As [`avx2_maps::Map`], which does what this may do wrong.
trait Map {
    type Exact: avx2_maps::Map;

    /// Not 0 where the result may be wrong.
    ///
    /// # Safety
    /// The CPU has AVX-512, and `params` are those of `first + BLOCK` values at least.
    unsafe fn block<const RUN: usize>(
        x: &[X<Self>; BLOCK],
        params: &P<'_, Self>,
        first: usize,
        out: &mut [Y<Self>; BLOCK],
    ) -> u32;
}

type X<M> = <<M as Map>::Exact as avx2_maps::Map>::X;
type Y<M> = <<M as Map>::Exact as avx2_maps::Map>::Y;
type P<'a, M> = <<M as Map>::Exact as avx2_maps::Map>::Params<'a>;

#[target_feature(enable = "avx512f,avx512bw")]
fn map<M: Map>(x: &[X<M>], params: P<'_, M>, out: &mut [Y<M>]) {
    match params.run() {
        // Parameters of each value's own are loads that cross cache lines: on Zen 5, 16 Mi take 1.5 of their time on
        // AVX2.
        1 => avx2_maps::map::<M::Exact>(x, params, out),
        16 => in_blocks::<M, 16>(x, params, out),
        32 => in_blocks::<M, 32>(x, params, out),
        64 => in_blocks::<M, 64>(x, params, out),
        128 => in_blocks::<M, 128>(x, params, out),
        run => {
            for (i, (x, out)) in x.chunks(run).zip(out.chunks_mut(run)).enumerate() {
                in_blocks::<M, WHOLE>(x, params.part(i, 1), out);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn in_blocks<M: Map, const RUN: usize>(x: &[X<M>], params: P<'_, M>, out: &mut [Y<M>]) {
    // All arrays have as many, or this panics: that is what the unsafe calls rely on.
    let params = params.part(0, x.len().div_ceil(RUN));
    let part = |first: usize, count: usize| params.part(first / RUN, count.div_ceil(RUN));
    for (g, (x, out)) in x.chunks(GROUP).zip(out.chunks_mut(GROUP)).enumerate() {
        let (first, mut doubtful) = (GROUP * g, 0);
        let ((blocks, rest), (outs, out_rest)) = (x.as_chunks::<BLOCK>(), out.as_chunks_mut::<BLOCK>());
        for (b, (x, out)) in blocks.iter().zip(outs.iter_mut()).enumerate() {
            // SAFETY: the features are this function's own, and `params` are those of all of `x`.
            doubtful |= unsafe { M::block::<RUN>(x, &params, first + BLOCK * b, out) };
        }
        let done = BLOCK * blocks.len();
        if doubtful != 0 {
            avx2_maps::map::<M::Exact>(blocks.as_flattened(), part(first, done), outs.as_flattened_mut());
        }
        if !rest.is_empty() {
            avx2_maps::map::<M::Exact>(rest, part(first + done, rest.len()), out_rest);
        }
    }
}

struct Quantize<Q, const FORMULA: u8>(Q);

impl<Q: Integer, const FORMULA: u8> Map for Quantize<Q, FORMULA> {
    type Exact = avx2_maps::Quantize<Q, FORMULA>;

    /// By saturation: what lies below the words becomes the lowest of them, and so does NaN, which is why that word is
    /// a doubtful one. Only the largest reals have to be clamped before.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn block<const RUN: usize>(
        x: &[f32; BLOCK],
        divisors: &Divisors<'_>,
        first: usize,
        out: &mut [Q; BLOCK],
    ) -> u32 {
        let (mut levels, mut zero_points) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
        for (v, x) in x.as_chunks().0.iter().enumerate() {
            // SAFETY: as the caller promised.
            let (lanes, max) = unsafe {
                let first = first + LANES * v;
                (Lanes::at::<RUN>(divisors, first), floats_at::<RUN>(divisors.max, first))
            };
            // Where `x` is NaN, it is what is given.
            levels[v] = _mm512_cvtps_epi32(lanes.level::<FORMULA>(_mm512_min_ps(max, load(x))));
            zero_points[v] = lanes.zero_point;
        }
        let mut a = _mm512_packs_epi32(levels[0], levels[1]);
        let mut b = _mm512_packs_epi32(levels[2], levels[3]);
        let lowest = _mm512_min_epi16(a, b);
        if !with_origin(FORMULA) {
            a = _mm512_adds_epi16(a, _mm512_packs_epi32(zero_points[0], zero_points[1]));
            b = _mm512_adds_epi16(b, _mm512_packs_epi32(zero_points[2], zero_points[3]));
        }
        let qmin = _mm512_set1_epi8(i8::narrow(divisors.slices.limits.0));
        let bytes = if Q::TYPE.signed() {
            _mm512_max_epi8(_mm512_packs_epi16(a, b), qmin)
        } else {
            _mm512_max_epu8(_mm512_packus_epi16(a, b), qmin)
        };
        // Packing works in quarters: each has four bytes of each vector.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let bytes = _mm512_permutexvar_epi32(order, bytes);
        // SAFETY: `out` is 64 integers of at least 1 byte, and `storeu` needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), bytes) };
        _mm512_cmpeq_epi16_mask(lowest, _mm512_set1_epi16(i16::MIN))
    }
}

struct FakeQuantize<const FORMULA: u8>;

impl<const FORMULA: u8> Map for FakeQuantize<FORMULA> {
    type Exact = avx2_maps::FakeQuantize<FORMULA>;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn block<const RUN: usize>(
        x: &[f32; BLOCK],
        divisors: &Divisors<'_>,
        first: usize,
        out: &mut [f32; BLOCK],
    ) -> u32 {
        let mut doubtful = 0;
        for (v, (x, out)) in x.as_chunks().0.iter().zip(out.as_chunks_mut().0).enumerate() {
            // SAFETY: as the caller promised.
            let (lanes, min, max) = unsafe {
                let first = first + LANES * v;
                (
                    Lanes::at::<RUN>(divisors, first),
                    floats_at::<RUN>(divisors.min, first),
                    floats_at::<RUN>(divisors.max, first),
                )
            };
            let x = load(x);
            doubtful |= u32::from(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x));
            let level = lanes.level::<FORMULA>(_mm512_min_ps(max, _mm512_max_ps(min, x)));
            let level = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(level);
            let steps = if with_origin(FORMULA) {
                _mm512_sub_ps(level, _mm512_cvtepi32_ps(lanes.zero_point))
            } else {
                level
            };
            // Adding 0 takes the sign from -0.
            store(_mm512_fmadd_ps(steps, lanes.scale, _mm512_setzero_ps()), out);
        }
        doubtful
    }
}

struct Dequantize<Q>(Q);

impl<Q: Integer> Map for Dequantize<Q> {
    type Exact = avx2_maps::Dequantize<Q, false>;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn block<const RUN: usize>(
        q: &[Q; BLOCK],
        slices: &Slices<'_>,
        first: usize,
        out: &mut [f32; BLOCK],
    ) -> u32 {
        for (v, (q, out)) in q.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut().0).enumerate() {
            let first = first + LANES * v;
            // SAFETY: as the caller promised.
            let (scale, zero_point) = unsafe {
                (
                    floats_at::<RUN>(slices.scale, first),
                    integers_at::<RUN>(slices.zero_point, first),
                )
            };
            // SAFETY: `q` is 16 integers of at least 1 byte, and `loadu` needs no alignment.
            let q = unsafe { _mm_loadu_si128(q.as_ptr().cast()) };
            let q = if Q::TYPE.signed() {
                _mm512_cvtepi8_epi32(q)
            } else {
                _mm512_cvtepu8_epi32(q)
            };
            store(
                _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(q, zero_point)), scale),
                out,
            );
        }
        0
    }
}

/// What dividing 16 values takes.
struct Lanes {
    scale: __m512,
    inverse: __m512,
    zero_point: __m512i,
}

impl Lanes {
    /// # Safety
    /// `divisors` are those of `first + 16` values at least.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn at<const RUN: usize>(divisors: &Divisors<'_>, first: usize) -> Self {
        // SAFETY: as the caller promised.
        unsafe {
            Self {
                scale: floats_at::<RUN>(divisors.slices.scale, first),
                inverse: floats_at::<RUN>(divisors.inverse, first),
                zero_point: integers_at::<RUN>(divisors.slices.zero_point, first),
            }
        }
    }

    /// What the formula rounds.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn level<const FORMULA: u8>(&self, x: __m512) -> __m512 {
        let q = _mm512_mul_ps(x, self.inverse);
        match FORMULA {
            PER_TENSOR => _mm512_fmadd_ps(x, self.inverse, _mm512_cvtepi32_ps(self.zero_point)),
            PER_CHANNEL => _mm512_add_ps(q, _mm512_cvtepi32_ps(self.zero_point)),
            FAKE_QUANTIZE => q,
            _ => _mm512_fmadd_ps(_mm512_fnmadd_ps(q, self.scale, x), self.inverse, q),
        }
    }
}

/// That of the 16 values from `first` on.
///
/// # Safety
/// `of_slices` are those of `first + 16` values at least.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn floats_at<const RUN: usize>(of_slices: &[f32], first: usize) -> __m512 {
    // SAFETY: as the caller promised.
    _mm512_set1_ps(*unsafe { of_slices.get_unchecked(first / RUN) })
}

/// That of the 16 values from `first` on.
///
/// # Safety
/// `of_slices` are those of `first + 16` values at least.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn integers_at<const RUN: usize>(of_slices: &[i32], first: usize) -> __m512i {
    // SAFETY: as the caller promised.
    _mm512_set1_epi32(*unsafe { of_slices.get_unchecked(first / RUN) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: `x` is 64 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(v: __m512, out: &mut [f32; LANES]) {
    // SAFETY: `out` is 64 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
}
