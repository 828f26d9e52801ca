//! Elementwise kernels on AVX2 with FMA and F16C: which code serves a call. What it does to the values is in
//! [`super::avx2_maps`] and [`super::avx2_packing`].

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use super::{
    avx2_maps::{Dequantize, FakeQuantize, InRange, Quantize, map},
    avx2_packing,
    avx2_values::{load, store},
};
use crate::{
    arrays::{Integers, IntegersMut, Reals, RealsMut},
    kernels::{
        elementwise::{Divisors, ElementwiseKernel, Slices},
        generic_elementwise::{self as generic, Generic},
        halves,
        rounding::Rounding,
    },
};

/// Proof that AVX2, FMA and F16C were detected: only [`probe`] makes one.
struct Avx2Elementwise(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn ElementwiseKernel> {
    static AVX2: Avx2Elementwise = Avx2Elementwise(());
    (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"))
        .then_some(&AVX2 as &dyn ElementwiseKernel)
}

impl ElementwiseKernel for Avx2Elementwise {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn prepare(&self, slices: Slices<'_>, inverse: &mut [f32], min: &mut [f32], max: &mut [f32]) -> bool {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { prepare(slices, inverse, min, max) }
    }

    fn quantize(&self, x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: IntegersMut<'_>) {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { quantize(x, divisors, rounding, out) }
    }

    fn dequantize(&self, q: Integers<'_>, slices: Slices<'_>, stream: bool, out: &mut [f32]) {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe {
            // Miri knows neither such stores nor their fence.
            if stream && !cfg!(miri) {
                dequantize::<true>(q, slices, out);
                // So that whoever is told that this call has returned sees what it wrote.
                _mm_sfence();
            } else {
                dequantize::<false>(q, slices, out);
            }
        }
    }

    fn fake_quantize(&self, x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [f32]) {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { fake_quantize(x, divisors, rounding, out) }
    }

    fn in_range(&self, x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [bool]) {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { in_range(x, divisors, rounding, out) }
    }

    fn squares(&self, x: &[f32], y: &[f32]) -> (f64, f64) {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { squares(x, y) }
    }

    fn widen(&self, x: Reals<'_>, out: &mut [f32]) {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { widen(x, out) }
    }

    fn narrow(&self, x: &[f32], out: RealsMut<'_>) {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { narrow(x, out) }
    }

    fn pack(&self, q: Integers<'_>, per_byte: usize, out: &mut [u8]) -> bool {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { avx2_packing::pack(q, per_byte, out) }
    }

    fn unpack(&self, packed: &[u8], per_byte: usize, out: IntegersMut<'_>) {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { avx2_packing::unpack(packed, per_byte, out) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn prepare(slices: Slices<'_>, inverse: &mut [f32], min: &mut [f32], max: &mut [f32]) -> bool {
    generic::prepare(slices, inverse, min, max)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn quantize(x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: IntegersMut<'_>) {
    if !divisors.ordinary {
        return Generic.quantize(x, divisors, rounding, out);
    }
    with_formula!(rounding, F => match out {
        IntegersMut::I8(out) => map::<Quantize<i8, F>>(x, divisors, out),
        IntegersMut::U8(out) => map::<Quantize<u8, F>>(x, divisors, out),
        IntegersMut::I16(out) => map::<Quantize<i16, F>>(x, divisors, out),
        IntegersMut::U16(out) => map::<Quantize<u16, F>>(x, divisors, out),
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dequantize<const STREAM: bool>(q: Integers<'_>, slices: Slices<'_>, out: &mut [f32]) {
    match q {
        Integers::I8(q) => map::<Dequantize<i8, STREAM>>(q, slices, out),
        Integers::U8(q) => map::<Dequantize<u8, STREAM>>(q, slices, out),
        Integers::I16(q) => map::<Dequantize<i16, STREAM>>(q, slices, out),
        Integers::U16(q) => map::<Dequantize<u16, STREAM>>(q, slices, out),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn fake_quantize(x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [f32]) {
    if !divisors.ordinary {
        return Generic.fake_quantize(x, divisors, rounding, out);
    }
    with_formula!(rounding, F => map::<FakeQuantize<F>>(x, divisors, out));
}

#[target_feature(enable = "avx2,fma,f16c")]
fn in_range(x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [bool]) {
    if !divisors.ordinary {
        return Generic.in_range(x, divisors, rounding, out);
    }
    with_formula!(rounding, F => map::<InRange<F>>(x, divisors, out));
}

#[target_feature(enable = "avx2,fma,f16c")]
fn squares(x: &[f32], y: &[f32]) -> (f64, f64) {
    generic::squares(x, y)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn widen(x: Reals<'_>, out: &mut [f32]) {
    let Reals::F16(x) = x else {
        return halves::widen(x, out);
    };
    let ((eights, rest), (outs, out_rest)) = (x.as_chunks::<8>(), out.as_chunks_mut::<8>());
    for (x, out) in eights.iter().zip(outs) {
        // SAFETY: `x` is 16 readable bytes, and `loadu` needs no alignment.
        let x = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
        store(_mm256_cvtph_ps(x), out);
    }
    halves::each(rest, out_rest, halves::from_f16);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn narrow(x: &[f32], out: RealsMut<'_>) {
    let RealsMut::F16(out) = out else {
        return halves::narrow(x, out);
    };
    let ((eights, rest), (outs, out_rest)) = (x.as_chunks::<8>(), out.as_chunks_mut::<8>());
    for (x, out) in eights.iter().zip(outs) {
        let x = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(load(x));
        // SAFETY: `out` is 16 writable bytes, and `storeu` needs no alignment.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), x) };
    }
    halves::each(rest, out_rest, halves::to_f16);
}
