//! Halves, by their bits, to f32 and back.

use crate::arrays::{Reals, RealsMut};

#[inline(always)]
pub(super) fn widen(x: Reals<'_>, out: &mut [f32]) {
    match x {
        Reals::F32(x) => out.copy_from_slice(x),
        Reals::F16(x) => each(x, out, from_f16),
        Reals::Bf16(x) => each(x, out, from_bf16),
    }
}

#[inline(always)]
pub(super) fn narrow(x: &[f32], out: RealsMut<'_>) {
    match out {
        RealsMut::F32(out) => out.copy_from_slice(x),
        RealsMut::F16(out) => each(x, out, to_f16),
        RealsMut::Bf16(out) => each(x, out, to_bf16),
    }
}

#[inline(always)]
pub(super) fn each<X: Copy, Y>(x: &[X], out: &mut [Y], f: impl Fn(X) -> Y) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f(*x);
    }
}

/// 1 sign bit, 5 of exponent, 10 of mantissa. A NaN becomes quiet, as the CPU's instruction has it.
#[inline(always)]
pub(crate) fn from_f16(half: u16) -> f32 {
    let (exponent, mantissa) = (u32::from(half >> 10 & 0x1f), u32::from(half & 0x3ff));
    let magnitude = match (exponent, mantissa) {
        (0, _) => f32::from(half & 0x3ff) * 5.960_464_5e-8, // 2^-24
        (31, 0) => f32::INFINITY,
        (31, _) => f32::from_bits(0x7fc0_0000 | mantissa << 13),
        _ => f32::from_bits((exponent + 112) << 23 | mantissa << 13),
    };
    f32::from_bits(magnitude.to_bits() | u32::from(half & 0x8000) << 16)
}

/// To nearest even; 65520 and above become infinite.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "at most 16 bits are set, and the product is at most 1024"
)]
pub(crate) fn to_f16(x: f32) -> u16 {
    const INFINITE: u32 = 0x477f_f000; // 65520
    const NORMAL: u32 = 0x3880_0000; // 2^-14
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let half = match magnitude {
        0..NORMAL => (f32::from_bits(magnitude) * 16_777_216.0).round_ties_even() as u32,
        NORMAL..INFINITE => (magnitude - (112 << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13,
        INFINITE..=0x7f80_0000 => 0x7c00,
        _ => 0x7e00 | (magnitude >> 13 & 0x3ff),
    };
    (half | x.to_bits() >> 16 & 0x8000) as u16
}

#[inline(always)]
pub(crate) fn from_bf16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// To nearest even; a NaN stays one.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the upper half is shifted down")]
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    (if x.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}
