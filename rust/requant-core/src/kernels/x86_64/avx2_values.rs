//! Eight values at a time on AVX2 and FMA: their parameters, and quantization without dividing.
//!
//! The division would be the slowest instruction of the loop. With `y = 1 / s`, correctly rounded, three others give
//! its quotient:
//!
//! ```text
//! q = x * y        r = x - q * s  (one rounding)        q' = q + r * y  (one rounding)
//! ```
//!
//! *Proof* (after Markstein 1990, whose theorem asks for a `q` within one unit in the last place, which `x * y` is not
//! always). Let `x, s` lie in [1, 2), `u` be the last place of `x / s`, and `f, f + u` the floats around it. Then
//! `q' = round(z)` with `|z - x/s| <= |q - x/s| * |1 - sy|`, and `|1 - sy| <= s * 2^-25`, so `q'` can be wrong only if
//! `x / s` is next to the middle `m` of `f` and `f + u`, closer than 2^-22 u. There `|xy - x/s| <= x * 2^-25` leaves
//! `q` no choice but `f` and `f + u`: hence `|q - x/s|` is about `u/2`, `r` is exact, and `|z - x/s| < s u * 2^-26`.
//! But `x - ms` is a multiple of `u * 2^-24` other than 0 (a quotient is no middle), so `|x/s - m| >= u * 2^-24 / s`,
//! which is more as `s * s < 4`. The inequalities are tight at their ends, so `tests/elementwise/division.rs` also
//! tries every `s` with every `x` whose quotient is that close to a middle. Scaling `x` and `s` by powers of two
//! changes nothing within [`ORDINARY`]; outside it we divide.
//!
//! [`ORDINARY`]: crate::kernels::elementwise::ORDINARY

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use crate::{
    arrays::Integer,
    kernels::{
        elementwise::{Divisors, Slices},
        rounding::Rounding,
    },
};

/// The parameters of 8 values.
///
/// Values are clamped to `min` and `max`, the reals of the outermost integers, before anything else. These are rounded,
/// which moves their quotients by less than 2^-5 of a step: they still become those integers, as all beyond them would.
/// `min` has a sign and `max` has none, zeros too.
#[derive(Clone, Copy)]
pub(super) struct Lanes {
    scale: __m256,
    inverse: __m256,
    min: __m256,
    max: __m256,
    zero_point: __m256i,
}

impl Lanes {
    /// # Safety
    /// `divisors` are those of `first + 8` values at least.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn at<const RUN: usize>(divisors: &Divisors<'_>, first: usize) -> Self {
        // SAFETY: as the caller promised.
        unsafe {
            Self {
                scale: floats_at::<RUN>(divisors.slices.scale, first),
                inverse: floats_at::<RUN>(divisors.inverse, first),
                min: floats_at::<RUN>(divisors.min, first),
                max: floats_at::<RUN>(divisors.max, first),
                zero_point: integers_at::<RUN>(divisors.slices.zero_point, first),
            }
        }
    }

    /// Where zero lies on the axis of [`Self::level`].
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn origin<const FORMULA: u8>(&self) -> __m256i {
        if with_origin(FORMULA) {
            self.zero_point
        } else {
            _mm256_setzero_si256()
        }
    }

    /// What the formula rounds.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn level<const FORMULA: u8>(&self, x: __m256) -> __m256 {
        let q = _mm256_mul_ps(x, self.inverse);
        let origin = _mm256_cvtepi32_ps(self.origin::<FORMULA>());
        match FORMULA {
            PER_TENSOR => _mm256_fmadd_ps(x, self.inverse, origin),
            PER_CHANNEL => _mm256_add_ps(q, origin),
            FAKE_QUANTIZE => q,
            _ => _mm256_fmadd_ps(_mm256_fnmadd_ps(q, self.scale, x), self.inverse, q),
        }
    }

    /// The level, clamped and rounded to nearest even, less the origin; 0 for NaN.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn steps<const FORMULA: u8>(&self, x: __m256) -> __m256i {
        // Where an operand is NaN, both give the second.
        let x = _mm256_min_ps(self.max, _mm256_max_ps(self.min, x));
        let v = self.level::<FORMULA>(x);
        let steps = _mm256_sub_epi32(_mm256_cvtps_epi32(v), self.origin::<FORMULA>());
        _mm256_and_si256(steps, _mm256_castps_si256(_mm256_cmp_ps::<_CMP_ORD_Q>(v, v)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn integers<const FORMULA: u8>(&self, x: __m256) -> __m256i {
        _mm256_add_epi32(self.steps::<FORMULA>(x), self.zero_point)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn reals<const FORMULA: u8>(&self, x: __m256) -> __m256 {
        _mm256_mul_ps(_mm256_cvtepi32_ps(self.steps::<FORMULA>(x)), self.scale)
    }

    /// [`Self::reals`] where `x` is not NaN. Fewer instructions wait for one port: floats compare like integers where
    /// they are positive, and backwards where they are not. Adding 0 takes the sign from -0.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn reals_of_numbers<const FORMULA: u8>(&self, x: __m256) -> __m256 {
        let x = _mm256_min_epi32(_mm256_castps_si256(x), _mm256_castps_si256(self.max));
        let x = _mm256_castsi256_ps(_mm256_min_epu32(x, _mm256_castps_si256(self.min)));
        let v = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.level::<FORMULA>(x));
        let steps = if with_origin(FORMULA) {
            _mm256_sub_ps(v, _mm256_cvtepi32_ps(self.zero_point))
        } else {
            v
        };
        _mm256_fmadd_ps(steps, self.scale, _mm256_setzero_ps())
    }

    /// 1 or 0. Where the quotient overflows it is infinite or NaN, so outside.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn in_range<const FORMULA: u8>(&self, x: __m256, (qmin, qmax): (i32, i32)) -> __m256i {
        let shift = _mm256_sub_epi32(self.origin::<FORMULA>(), self.zero_point);
        let low = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_set1_epi32(qmin), shift));
        let high = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_set1_epi32(qmax), shift));
        let v = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.level::<FORMULA>(x));
        let inside = _mm256_and_ps(
            _mm256_cmp_ps::<_CMP_GE_OQ>(v, low),
            _mm256_cmp_ps::<_CMP_LE_OQ>(v, high),
        );
        _mm256_srli_epi32::<31>(_mm256_castps_si256(inside))
    }
}

pub(super) const PER_TENSOR: u8 = Rounding::TorchPerTensor as u8;
pub(super) const PER_CHANNEL: u8 = Rounding::TorchPerChannel as u8;
pub(super) const FAKE_QUANTIZE: u8 = Rounding::TorchFakeQuantize as u8;

/// Whether the formula adds the zero point before it rounds.
pub(super) const fn with_origin(formula: u8) -> bool {
    matches!(formula, PER_TENSOR | PER_CHANNEL)
}

/// The 8-bit integers of 32 values, by saturation: what lies below the words becomes the lowest of them, and so does
/// NaN, which is why that word is a doubtful one. Only the largest reals have to be clamped before.
///
/// # Safety
/// `divisors` are those of `first + 32` values at least.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn bytes<Q: Integer, const FORMULA: u8, const RUN: usize>(
    x: &[f32; 32],
    divisors: &Divisors<'_>,
    first: usize,
    out: &mut [Q; 32],
) -> __m256i {
    let (mut levels, mut zero_points) = ([_mm256_setzero_si256(); 4], [_mm256_setzero_si256(); 4]);
    for (v, x) in x.as_chunks().0.iter().enumerate() {
        // SAFETY: as the caller promised.
        let lanes = unsafe { Lanes::at::<RUN>(divisors, first + 8 * v) };
        // Where `x` is NaN, it is what is given.
        levels[v] = _mm256_cvtps_epi32(lanes.level::<FORMULA>(_mm256_min_ps(lanes.max, load(x))));
        zero_points[v] = lanes.zero_point;
    }
    let mut a = _mm256_packs_epi32(levels[0], levels[1]);
    let mut b = _mm256_packs_epi32(levels[2], levels[3]);
    let lowest = _mm256_min_epi16(a, b);
    if !with_origin(FORMULA) {
        a = _mm256_adds_epi16(a, _mm256_packs_epi32(zero_points[0], zero_points[1]));
        b = _mm256_adds_epi16(b, _mm256_packs_epi32(zero_points[2], zero_points[3]));
    }
    let qmin = _mm256_set1_epi8(i8::narrow(divisors.slices.limits.0));
    let bytes = if Q::TYPE.signed() {
        _mm256_max_epi8(_mm256_packs_epi16(a, b), qmin)
    } else {
        _mm256_max_epu8(_mm256_packus_epi16(a, b), qmin)
    };
    store_32_bytes(bytes, out);
    _mm256_cmpeq_epi16(lowest, _mm256_set1_epi16(i16::MIN))
}

/// A bit in each place where one of 32 values is NaN.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn unordered(x: &[f32; 32]) -> __m256 {
    let mut doubtful = _mm256_setzero_ps();
    for [a, b] in x.as_chunks::<8>().0.as_chunks::<2>().0 {
        // One comparison finds a NaN in either.
        doubtful = _mm256_or_ps(doubtful, _mm256_cmp_ps::<_CMP_UNORD_Q>(load(a), load(b)));
    }
    doubtful
}

/// The reals of the eight integers from `first` on.
///
/// # Safety
/// `slices` are those of `first + 8` values at least.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn real<Q: Integer, const RUN: usize>(q: &[Q; 8], slices: &Slices<'_>, first: usize) -> __m256 {
    // SAFETY: as the caller promised.
    let (scale, zero_point) = unsafe {
        (
            floats_at::<RUN>(slices.scale, first),
            integers_at::<RUN>(slices.zero_point, first),
        )
    };
    let steps = _mm256_sub_epi32(load_integers(q), zero_point);
    _mm256_mul_ps(_mm256_cvtepi32_ps(steps), scale)
}

/// Those of the eight values from `first` on.
///
/// # Safety
/// `of_slices` are those of `first + 8` values at least.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn floats_at<const RUN: usize>(of_slices: &[f32], first: usize) -> __m256 {
    // SAFETY: as the caller promised, and `loadu` needs no alignment.
    unsafe {
        match RUN {
            1 => _mm256_loadu_ps(of_slices.as_ptr().add(first)),
            _ => _mm256_set1_ps(*of_slices.get_unchecked(first / RUN)),
        }
    }
}

/// Those of the eight values from `first` on.
///
/// # Safety
/// `of_slices` are those of `first + 8` values at least.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn integers_at<const RUN: usize>(of_slices: &[i32], first: usize) -> __m256i {
    // SAFETY: as the caller promised, and `loadu` needs no alignment.
    unsafe {
        match RUN {
            1 => _mm256_loadu_si256(of_slices.as_ptr().add(first).cast()),
            _ => _mm256_set1_epi32(*of_slices.get_unchecked(first / RUN)),
        }
    }
}

/// Widens 8 integers.
#[inline]
#[target_feature(enable = "avx2")]
fn load_integers<Q: Integer>(q: &[Q; 8]) -> __m256i {
    let words = q.as_ptr().cast();
    if Q::TYPE.bits() == 16 {
        // SAFETY: `q` is 16 readable bytes, and `loadu` needs no alignment.
        let words = unsafe { _mm_loadu_si128(words) };
        if Q::TYPE.signed() {
            _mm256_cvtepi16_epi32(words)
        } else {
            _mm256_cvtepu16_epi32(words)
        }
    } else {
        // SAFETY: `q` is 8 readable bytes, and `loadl` needs no alignment.
        let bytes = unsafe { _mm_loadl_epi64(words) };
        if Q::TYPE.signed() {
            _mm256_cvtepi8_epi32(bytes)
        } else {
            _mm256_cvtepu8_epi32(bytes)
        }
    }
}

/// Writes 32 integers that lie in `Q`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_32_integers<Q: Integer>(v: [__m256i; 4], out: &mut [Q; 32]) {
    let signed = Q::TYPE.signed();
    let (low, high) = match (Q::TYPE.bits(), signed) {
        (16, false) => (_mm256_packus_epi32(v[0], v[1]), _mm256_packus_epi32(v[2], v[3])),
        _ => (_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3])),
    };
    if Q::TYPE.bits() == 16 {
        let words = out.as_mut_ptr().cast::<__m256i>();
        // Packing works in halves of 128 bits: quads of words lie in the order 0 2 1 3.
        let (low, high) = (
            _mm256_permute4x64_epi64::<0b11_01_10_00>(low),
            _mm256_permute4x64_epi64::<0b11_01_10_00>(high),
        );
        // SAFETY: `out` is 32 integers of 2 bytes, so 64 writable bytes, and `storeu` needs no alignment.
        unsafe {
            _mm256_storeu_si256(words, low);
            _mm256_storeu_si256(words.add(1), high);
        }
    } else {
        let bytes = if signed {
            _mm256_packs_epi16(low, high)
        } else {
            _mm256_packus_epi16(low, high)
        };
        store_32_bytes(bytes, out);
    }
}

/// Writes 32 bytes that were packed twice.
#[inline]
#[target_feature(enable = "avx2")]
fn store_32_bytes<Q: Integer>(bytes: __m256i, out: &mut [Q; 32]) {
    // Groups of 4 bytes lie in the order 0 4 1 5 2 6 3 7 of these.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let bytes = _mm256_permutevar8x32_epi32(bytes, order);
    // SAFETY: `out` is 32 integers of at least 1 byte, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), bytes) };
}

/// Writes 8 integers that lie in `Q`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_8_integers<Q: Integer>(v: __m256i, out: &mut [Q; 8]) {
    let (low, high) = (_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let out = out.as_mut_ptr().cast();
    let words = match (Q::TYPE.bits(), Q::TYPE.signed()) {
        (16, false) => _mm_packus_epi32(low, high),
        _ => _mm_packs_epi32(low, high),
    };
    if Q::TYPE.bits() == 16 {
        // SAFETY: `out` is 8 integers of 2 bytes, so 16 writable bytes, and `storeu` needs no alignment.
        return unsafe { _mm_storeu_si128(out, words) };
    }
    let bytes = if Q::TYPE.signed() {
        _mm_packs_epi16(words, words)
    } else {
        _mm_packus_epi16(words, words)
    };
    // SAFETY: `out` is 8 writable bytes, and `storel` needs no alignment.
    unsafe { _mm_storel_epi64(out, bytes) };
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_32(v: [__m256; 4], out: &mut [f32; 32]) {
    for (v, out) in v.into_iter().zip(out.as_chunks_mut().0) {
        store(v, out);
    }
}

/// [`store_32`] past the caches, where memory is aligned as numpy's is.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn stream_32(v: [__m256; 4], out: &mut [f32; 32]) {
    if !out.as_ptr().addr().is_multiple_of(16) {
        return store_32(v, out);
    }
    for (v, out) in v.into_iter().zip(out.as_chunks_mut::<8>().0) {
        let out = out.as_mut_ptr();
        // SAFETY: 8 writable floats, at a multiple of 16 bytes as all multiples of 8 floats from there are.
        unsafe {
            _mm_stream_ps(out, _mm256_castps256_ps128(v));
            _mm_stream_ps(out.add(4), _mm256_extractf128_ps::<1>(v));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(x: &[f32; 8]) -> __m256 {
    // SAFETY: `x` is 8 readable floats, and `loadu` needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store(v: __m256, out: &mut [f32; 8]) {
    // SAFETY: `out` is 8 writable floats, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) }
}
