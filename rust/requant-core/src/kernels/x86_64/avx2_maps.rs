//! What the AVX2 kernels do to values, vector by vector.

use std::arch::x86_64::{_mm256_setzero_ps, _mm256_setzero_si256};

use super::avx2_values::{Lanes, load, real, store, store_8_integers, store_32, store_32_bytes, store_32_integers};
use crate::{
    affine::{Integer, Rounding},
    kernels::{
        elementwise::{Divisors, ElementwiseKernel, Params, Slices},
        generic_elementwise::Generic,
    },
};

/// What is done to each value, by functions over whole vectors. `first` is the place of a call's first value among those of
/// `params`, of which `RUN` neighbours share a slice.
pub(super) trait Map {
    type X: Copy;
    type Y: Copy;
    type Params<'a>: Params;

    /// # Safety
    /// The CPU has AVX2 and FMA, and `params` are those of `first + 32` values at least.
    unsafe fn block<const RUN: usize>(
        x: &[Self::X; 32],
        params: &Self::Params<'_>,
        first: usize,
        out: &mut [Self::Y; 32],
    );

    /// # Safety
    /// The CPU has AVX2 and FMA, and `params` are those of `first + 8` values at least.
    unsafe fn eight<const RUN: usize>(
        x: &[Self::X; 8],
        params: &Self::Params<'_>,
        first: usize,
        out: &mut [Self::Y; 8],
    );

    /// Fewer than eight, to which `params` belong.
    fn rest(x: &[Self::X], params: Self::Params<'_>, out: &mut [Self::Y]);
}

/// The run of values that all belong to the first slice.
const WHOLE: usize = usize::MAX;

/// `out[i] = M(x[i], slice of i)`. Short runs are counted by constants; a longer one is worth a loop of its own.
#[target_feature(enable = "avx2,fma")]
pub(super) fn map<M: Map>(x: &[M::X], params: M::Params<'_>, out: &mut [M::Y]) {
    match params.run() {
        1 => in_vectors::<M, 1>(x, params, out),
        16 => in_vectors::<M, 16>(x, params, out),
        32 => in_vectors::<M, 32>(x, params, out),
        64 => in_vectors::<M, 64>(x, params, out),
        128 => in_vectors::<M, 128>(x, params, out),
        run => {
            for (i, (x, out)) in x.chunks(run).zip(out.chunks_mut(run)).enumerate() {
                in_vectors::<M, WHOLE>(x, params.part(i, 1), out);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn in_vectors<M: Map, const RUN: usize>(x: &[M::X], params: M::Params<'_>, out: &mut [M::Y]) {
    // All arrays have as many, or this panics: that is what the unsafe calls rely on.
    let params = params.part(0, x.len().div_ceil(RUN));
    let ((blocks, rest), (outs, out_rest)) = (x.as_chunks::<32>(), out.as_chunks_mut::<32>());
    for (b, (x, out)) in blocks.iter().zip(outs).enumerate() {
        // SAFETY: the features are this function's own, and `params` are those of all of `x`.
        unsafe { M::block::<RUN>(x, &params, 32 * b, out) };
    }
    let first = 32 * blocks.len();
    let ((eights, rest), outs) = (rest.as_chunks::<8>(), out_rest.as_chunks_mut::<8>().0);
    for (v, (x, out)) in eights.iter().zip(outs).enumerate() {
        // SAFETY: as above.
        unsafe { M::eight::<RUN>(x, &params, first + 8 * v, out) };
    }
    if rest.is_empty() {
        return;
    }
    match (RUN, x.last_chunk(), out.last_chunk_mut()) {
        // The last eight: some are written once more.
        // SAFETY: as above; in longer runs than 1 they could belong to two slices, unless all have the same.
        (1 | WHOLE, Some(last), Some(out)) => unsafe { M::eight::<RUN>(last, &params, x.len() - 8, out) },
        _ => {
            let first = first + 8 * eights.len();
            M::rest(
                rest,
                params.part(first / RUN, rest.len().div_ceil(RUN)),
                &mut out[first..],
            );
        }
    }
}

/// The formula of `Rounding::ALL[FORMULA]`.
pub(super) struct Quantize<Q, const FORMULA: u8>(Q);

impl<Q: Integer, const FORMULA: u8> Map for Quantize<Q, FORMULA> {
    type X = f32;
    type Y = Q;
    type Params<'a> = Divisors<'a>;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn block<const RUN: usize>(x: &[f32; 32], divisors: &Divisors<'_>, first: usize, out: &mut [Q; 32]) {
        // SAFETY: as the caller promised.
        let lanes = [0, 8, 16, 24].map(|v| unsafe { Lanes::at::<RUN>(divisors, first + v) });
        let mut reals = [_mm256_setzero_ps(); 4];
        for (v, x) in x.as_chunks().0.iter().enumerate() {
            reals[v] = load(x);
        }
        if Q::TYPE.bits() == 8 {
            return store_32_bytes::<Q, FORMULA>(&lanes, reals, divisors.slices.limits, out);
        }
        store_32_integers([0, 1, 2, 3].map(|v| lanes[v].integers::<FORMULA>(reals[v])), out);
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn eight<const RUN: usize>(x: &[f32; 8], divisors: &Divisors<'_>, first: usize, out: &mut [Q; 8]) {
        // SAFETY: as the caller promised.
        store_8_integers(
            unsafe { Lanes::at::<RUN>(divisors, first) }.integers::<FORMULA>(load(x)),
            out,
        );
    }

    fn rest(x: &[f32], divisors: Divisors<'_>, out: &mut [Q]) {
        Generic.quantize(x, divisors, Rounding::ALL[usize::from(FORMULA)], Q::borrowed_mut(out));
    }
}

pub(super) struct FakeQuantize<const FORMULA: u8>;

impl<const FORMULA: u8> Map for FakeQuantize<FORMULA> {
    type X = f32;
    type Y = f32;
    type Params<'a> = Divisors<'a>;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn block<const RUN: usize>(x: &[f32; 32], divisors: &Divisors<'_>, first: usize, out: &mut [f32; 32]) {
        let mut reals = [_mm256_setzero_ps(); 4];
        for (v, x) in x.as_chunks().0.iter().enumerate() {
            // SAFETY: as the caller promised.
            reals[v] = unsafe { Lanes::at::<RUN>(divisors, first + 8 * v) }.reals::<FORMULA>(load(x));
        }
        store_32(reals, out);
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn eight<const RUN: usize>(x: &[f32; 8], divisors: &Divisors<'_>, first: usize, out: &mut [f32; 8]) {
        // SAFETY: as the caller promised.
        store(
            unsafe { Lanes::at::<RUN>(divisors, first) }.reals::<FORMULA>(load(x)),
            out,
        );
    }

    fn rest(x: &[f32], divisors: Divisors<'_>, out: &mut [f32]) {
        Generic.fake_quantize(x, divisors, Rounding::ALL[usize::from(FORMULA)], out);
    }
}

pub(super) struct InRange<const FORMULA: u8>;

impl<const FORMULA: u8> Map for InRange<FORMULA> {
    type X = f32;
    type Y = bool;
    type Params<'a> = Divisors<'a>;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn block<const RUN: usize>(x: &[f32; 32], divisors: &Divisors<'_>, first: usize, out: &mut [bool; 32]) {
        let mut inside = [_mm256_setzero_si256(); 4];
        for (v, x) in x.as_chunks().0.iter().enumerate() {
            // SAFETY: as the caller promised.
            let lanes = unsafe { Lanes::at::<RUN>(divisors, first + 8 * v) };
            inside[v] = lanes.in_range::<FORMULA>(load(x), divisors.slices.limits);
        }
        // SAFETY: a bool is a byte, and only zeros and ones are written to it.
        store_32_integers(inside, unsafe { &mut *out.as_mut_ptr().cast::<[u8; 32]>() });
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn eight<const RUN: usize>(x: &[f32; 8], divisors: &Divisors<'_>, first: usize, out: &mut [bool; 8]) {
        // SAFETY: as the caller promised.
        let inside = unsafe { Lanes::at::<RUN>(divisors, first) }.in_range::<FORMULA>(load(x), divisors.slices.limits);
        // SAFETY: a bool is a byte, and only zeros and ones are written to it.
        store_8_integers(inside, unsafe { &mut *out.as_mut_ptr().cast::<[u8; 8]>() });
    }

    fn rest(x: &[f32], divisors: Divisors<'_>, out: &mut [bool]) {
        Generic.in_range(x, divisors, Rounding::ALL[usize::from(FORMULA)], out);
    }
}

pub(super) struct Dequantize<Q>(Q);

impl<Q: Integer> Map for Dequantize<Q> {
    type X = Q;
    type Y = f32;
    type Params<'a> = Slices<'a>;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn block<const RUN: usize>(q: &[Q; 32], slices: &Slices<'_>, first: usize, out: &mut [f32; 32]) {
        let mut reals = [_mm256_setzero_ps(); 4];
        for (v, q) in q.as_chunks().0.iter().enumerate() {
            // SAFETY: as the caller promised.
            reals[v] = unsafe { real::<Q, RUN>(q, slices, first + 8 * v) };
        }
        store_32(reals, out);
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn eight<const RUN: usize>(q: &[Q; 8], slices: &Slices<'_>, first: usize, out: &mut [f32; 8]) {
        // SAFETY: as the caller promised.
        store(unsafe { real::<Q, RUN>(q, slices, first) }, out);
    }

    fn rest(q: &[Q], slices: Slices<'_>, out: &mut [f32]) {
        Generic.dequantize(Q::borrowed(q), slices, out);
    }
}
