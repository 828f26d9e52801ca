//! What the AVX2 kernels do to values, vector by vector.

use std::arch::x86_64::{
    __m256i, _mm256_castps_si256, _mm256_or_si256, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_testz_si256,
};

use super::avx2_values::{
    Lanes, bytes, load, real, store, store_8_integers, store_32, store_32_integers, stream_32, unordered,
};
use crate::{
    arrays::Integer,
    kernels::{
        elementwise::{Divisors, ElementwiseKernel, Params, Slices},
        generic_elementwise::Generic,
        rounding::Rounding,
    },
};

/// What is done to each value, by functions over whole vectors. `first` is the place of a call's first value among
/// those of `params`, of which `RUN` neighbours share a slice.
pub(super) trait Map {
    type X: Copy;
    type Y: Copy;
    type Params<'a>: Params;

    /// May be wrong where the result has a bit set: [`Self::eight`] never is.
    ///
    /// # Safety
    /// The CPU has AVX2 and FMA, and `params` are those of `first + 32` values at least.
    unsafe fn block<const RUN: usize>(
        x: &[Self::X; 32],
        params: &Self::Params<'_>,
        first: usize,
        out: &mut [Self::Y; 32],
    ) -> __m256i;

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

/// Blocks that are done again, eight by eight, where one of them may be wrong: a test for each would be noticed.
const GROUP: usize = 16;

/// The run of values that all belong to the first slice.
pub(super) const WHOLE: usize = usize::MAX;

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
    for (g, (blocks, outs)) in blocks.chunks(GROUP).zip(outs.chunks_mut(GROUP)).enumerate() {
        let (first, mut doubtful) = (32 * GROUP * g, _mm256_setzero_si256());
        for (b, (x, out)) in blocks.iter().zip(outs.iter_mut()).enumerate() {
            // SAFETY: the features are this function's own, and `params` are those of all of `x`.
            doubtful = _mm256_or_si256(doubtful, unsafe { M::block::<RUN>(x, &params, first + 32 * b, out) });
        }
        if _mm256_testz_si256(doubtful, doubtful) == 0 {
            let (eights, outs) = (
                blocks.as_flattened().as_chunks().0,
                outs.as_flattened_mut().as_chunks_mut().0,
            );
            for (v, (x, out)) in eights.iter().zip(outs).enumerate() {
                // SAFETY: as above.
                unsafe { M::eight::<RUN>(x, &params, first + 8 * v, out) };
            }
        }
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
    unsafe fn block<const RUN: usize>(
        x: &[f32; 32],
        divisors: &Divisors<'_>,
        first: usize,
        out: &mut [Q; 32],
    ) -> __m256i {
        if Q::TYPE.bits() == 8 {
            // SAFETY: as the caller promised.
            return unsafe { bytes::<Q, FORMULA, RUN>(x, divisors, first, out) };
        }
        let mut q = [_mm256_setzero_si256(); 4];
        for (v, x) in x.as_chunks().0.iter().enumerate() {
            // SAFETY: as the caller promised.
            q[v] = unsafe { Lanes::at::<RUN>(divisors, first + 8 * v) }.integers::<FORMULA>(load(x));
        }
        store_32_integers(q, out);
        _mm256_setzero_si256()
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
    unsafe fn block<const RUN: usize>(
        x: &[f32; 32],
        divisors: &Divisors<'_>,
        first: usize,
        out: &mut [f32; 32],
    ) -> __m256i {
        let mut reals = [_mm256_setzero_ps(); 4];
        for (v, x) in x.as_chunks().0.iter().enumerate() {
            // SAFETY: as the caller promised.
            reals[v] = unsafe { Lanes::at::<RUN>(divisors, first + 8 * v) }.reals_of_numbers::<FORMULA>(load(x));
        }
        store_32(reals, out);
        _mm256_castps_si256(unordered(x))
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
    unsafe fn block<const RUN: usize>(
        x: &[f32; 32],
        divisors: &Divisors<'_>,
        first: usize,
        out: &mut [bool; 32],
    ) -> __m256i {
        let mut inside = [_mm256_setzero_si256(); 4];
        for (v, x) in x.as_chunks().0.iter().enumerate() {
            // SAFETY: as the caller promised.
            let lanes = unsafe { Lanes::at::<RUN>(divisors, first + 8 * v) };
            inside[v] = lanes.in_range::<FORMULA>(load(x), divisors.slices.limits);
        }
        // SAFETY: a bool is a byte, and only zeros and ones are written to it.
        store_32_integers(inside, unsafe { &mut *out.as_mut_ptr().cast::<[u8; 32]>() });
        _mm256_setzero_si256()
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

/// Written past the caches where `STREAM`; other memory accesses wait for that only behind a store fence.
pub(super) struct Dequantize<Q, const STREAM: bool>(Q);

impl<Q: Integer, const STREAM: bool> Map for Dequantize<Q, STREAM> {
    type X = Q;
    type Y = f32;
    type Params<'a> = Slices<'a>;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn block<const RUN: usize>(q: &[Q; 32], slices: &Slices<'_>, first: usize, out: &mut [f32; 32]) -> __m256i {
        let mut reals = [_mm256_setzero_ps(); 4];
        for (v, q) in q.as_chunks().0.iter().enumerate() {
            // SAFETY: as the caller promised.
            reals[v] = unsafe { real::<Q, RUN>(q, slices, first + 8 * v) };
        }
        if STREAM {
            stream_32(reals, out);
        } else {
            store_32(reals, out);
        }
        _mm256_setzero_si256()
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn eight<const RUN: usize>(q: &[Q; 8], slices: &Slices<'_>, first: usize, out: &mut [f32; 8]) {
        // SAFETY: as the caller promised.
        store(unsafe { real::<Q, RUN>(q, slices, first) }, out);
    }

    fn rest(q: &[Q], slices: Slices<'_>, out: &mut [f32]) {
        Generic.dequantize(Q::borrowed(q), slices, STREAM, out);
    }
}
