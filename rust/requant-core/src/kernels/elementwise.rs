//! The inner loops of quantization, once for each instruction set that has its own.
//!
//! One call works on many runs: `run` neighbours share a scale and zero point, so that blocks of 16 values cost no call
//! each, and `run == 1` gives each value its own (channels along the last axis). Which slice belongs to which value is
//! [`crate::affine`]'s business, as are tiles, threads and the order of passes. A new set is a file and a line in
//! the registry, under the name of the set in [`crate::kernels`] that it belongs to.

use std::ops::RangeInclusive;

use crate::{
    arrays::{Integers, IntegersMut, Reals, RealsMut},
    kernels::{self, rounding::Rounding},
};

/// Parameters of neighbouring slices, a struct of arrays of equal length.
#[derive(Debug, Clone, Copy)]
pub struct Slices<'a> {
    /// How many neighbours share a slice; the last run of a call may be shorter.
    pub run: usize,
    /// Finite and positive.
    pub scale: &'a [f32],
    /// The integer that stands for 0.0.
    pub zero_point: &'a [i32],
    /// Smallest and largest integer in use.
    pub limits: (i32, i32),
}

/// [`Slices`], and what dividing by their scales takes.
#[derive(Debug, Clone, Copy)]
pub struct Divisors<'a> {
    /// Whose.
    pub slices: Slices<'a>,
    /// `1 / scale`, infinite where the scale is subnormal enough.
    pub inverse: &'a [f32],
    /// The real of the smallest integer, in f32; infinite where the scale is huge. -0 where it is zero.
    pub min: &'a [f32],
    /// The real of the largest integer. +0 where it is zero.
    pub max: &'a [f32],
    /// Whether all scales lie within [`ORDINARY`].
    pub ordinary: bool,
}

/// Scales whose quotients need no care: neither their inverse nor any product with a quotient in range leaves the
/// normal numbers, and where a remainder does, the quotient is below 1/4.
pub const ORDINARY: RangeInclusive<f32> = 7.888_609e-31..=1.267_650_6e30; // 2^-100 to 2^100

/// [`Slices`] or [`Divisors`].
pub(super) trait Params: Copy {
    /// What belongs to one of them.
    type One: Copy;

    fn run(&self) -> usize;

    /// `count` of them; one check that all arrays have them, instead of one at each access.
    fn part(&self, first: usize, count: usize) -> Self;

    fn get(&self, i: usize) -> Self::One;
}

impl Params for Slices<'_> {
    /// Scale and zero point.
    type One = (f32, i32);

    #[inline(always)]
    fn run(&self) -> usize {
        self.run
    }

    #[inline(always)]
    fn part(&self, first: usize, count: usize) -> Self {
        Self {
            scale: &self.scale[first..][..count],
            zero_point: &self.zero_point[first..][..count],
            ..*self
        }
    }

    #[inline(always)]
    fn get(&self, i: usize) -> (f32, i32) {
        (self.scale[i], self.zero_point[i])
    }
}

/// One of [`Divisors`].
#[derive(Clone, Copy)]
pub(super) struct Divisor {
    pub(super) scale: f32,
    pub(super) inverse: f32,
    pub(super) zero_point: i32,
    pub(super) limits: (i32, i32),
}

impl Params for Divisors<'_> {
    type One = Divisor;

    #[inline(always)]
    fn run(&self) -> usize {
        self.slices.run
    }

    #[inline(always)]
    fn part(&self, first: usize, count: usize) -> Self {
        Self {
            slices: self.slices.part(first, count),
            inverse: &self.inverse[first..][..count],
            min: &self.min[first..][..count],
            max: &self.max[first..][..count],
            ..*self
        }
    }

    #[inline(always)]
    fn get(&self, i: usize) -> Divisor {
        let (scale, zero_point) = self.slices.get(i);
        Divisor {
            scale,
            inverse: self.inverse[i],
            zero_point,
            limits: self.slices.limits,
        }
    }
}

/// The part of quantization that depends on the instruction set. Inputs and outputs of a call are of equal length.
pub trait ElementwiseKernel: Send + Sync {
    /// The name of the set that it belongs to, as `REQUANT_ISA` takes it.
    fn name(&self) -> &'static str;

    /// Fills [`Divisors::inverse`], [`Divisors::min`] and [`Divisors::max`]; gives [`Divisors::ordinary`].
    fn prepare(&self, slices: Slices<'_>, inverse: &mut [f32], min: &mut [f32], max: &mut [f32]) -> bool;

    /// The integer of each real. `out` holds the type.
    fn quantize(&self, x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: IntegersMut<'_>);

    /// The real of each integer. `stream` says that `out` is part of more than caches keep.
    fn dequantize(&self, q: Integers<'_>, slices: Slices<'_>, stream: bool, out: &mut [f32]);

    /// The real of the integer of each real.
    fn fake_quantize(&self, x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [f32]);

    /// Whether the integer of each real lies within the type before it is clamped; false for NaN.
    fn in_range(&self, x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [bool]);

    /// The sums of the squares of `x`, and of its distances from `y` as f32 has them; both slices are of one length.
    /// Value `i` is added to sum `i % 16`, and the sums then one after another.
    fn squares(&self, x: &[f32], y: &[f32]) -> (f64, f64);

    /// Each real as f32, exactly.
    fn widen(&self, x: Reals<'_>, out: &mut [f32]);

    /// Each f32 in another format, rounded to nearest even.
    fn narrow(&self, x: &[f32], out: RealsMut<'_>);

    /// Integers of `8 / per_byte` bits, 2 or 4 to a byte, the first in the low bits, and the last byte padded with
    /// zeros. False, and `out` is of no use, where one does not fit.
    fn pack(&self, q: Integers<'_>, per_byte: usize, out: &mut [u8]) -> bool;

    /// The inverse of [`Self::pack`]; signed integers are sign-extended.
    fn unpack(&self, packed: &[u8], per_byte: usize, out: IntegersMut<'_>);
}

registry_of_inner_loops! { ElementwiseKernel,
    #[cfg(target_arch = "x86_64")]
    kernels::x86_64::avx512_elementwise::probe,
    #[cfg(target_arch = "x86_64")]
    kernels::x86_64::avx2_elementwise::probe,
    kernels::generic_elementwise::probe,
}
