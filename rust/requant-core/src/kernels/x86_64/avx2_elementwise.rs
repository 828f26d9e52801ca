//! Quantization on AVX2 with FMA and F16C, without dividing.
//!
//! The division would be the slowest instruction of the loop. With `y = 1 / s`, correctly rounded, three others give
//! its quotient:
//!
//! ```text
//! q = x * y        r = x - q * s  (one rounding)        q' = q + r * y  (one rounding)
//! ```
//!
//! *Proof* (after Markstein 1990, whose theorem asks for a `q` within one unit in the last place, which `x * y` is not always).
//! Let `x, s` lie in [1, 2), `u` be the last place of `x / s`, and `f, f + u` the floats around it. Then `q' = round(z)` with
//! `|z - x/s| <= |q - x/s| * |1 - sy|`, and `|1 - sy| <= s * 2^-25`, so `q'` can be wrong only if `x / s` is next to
//! the middle `m` of `f` and `f + u`, closer than 2^-22 u. There `|xy - x/s| <= x * 2^-25` leaves `q` no choice but `f` and
//! `f + u`: hence `|q - x/s|` is about `u/2`, `r` is exact, and `|z - x/s| < s u * 2^-26`. But `x - ms` is a multiple of
//! `u * 2^-24` other than 0 (a quotient is no middle), so `|x/s - m| >= u * 2^-24 / s`, which is more as `s * s < 4`. The
//! inequalities are tight at their ends, so `tests/elementwise/division.rs` also tries every `s` with every `x` whose quotient is
//! that close to a middle. Scaling `x` and `s` by powers of two changes nothing within [`ORDINARY`]; outside it we divide.
//!
//! [`ORDINARY`]: crate::kernels::elementwise::ORDINARY

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use crate::{
    affine::{Integer, Integers, IntegersMut, Reals, RealsMut, Rounding},
    kernels::{
        elementwise::{ElementwiseKernel, Slice, Slices},
        generic_elementwise as generic, halves,
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

    fn quantize(&self, x: &[f32], slices: Slices<'_>, rounding: Rounding, out: IntegersMut<'_>) {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { quantize(x, slices, rounding, out) }
    }

    fn dequantize(&self, q: Integers<'_>, slices: Slices<'_>, out: &mut [f32]) {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { dequantize(q, slices, out) }
    }

    fn fake_quantize(&self, x: &[f32], slices: Slices<'_>, rounding: Rounding, out: &mut [f32]) {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { fake_quantize(x, slices, rounding, out) }
    }

    fn in_range(&self, x: &[f32], slices: Slices<'_>, rounding: Rounding, out: &mut [bool]) {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { in_range(x, slices, rounding, out) }
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
        unsafe { pack(q, per_byte, out) }
    }

    fn unpack(&self, packed: &[u8], per_byte: usize, out: IntegersMut<'_>) {
        // SAFETY: an `Avx2Elementwise` exists only where its features were detected.
        unsafe { unpack(packed, per_byte, out) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn in_range(x: &[f32], slices: Slices<'_>, rounding: Rounding, out: &mut [bool]) {
    generic::in_range(x, slices, rounding, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dequantize(q: Integers<'_>, slices: Slices<'_>, out: &mut [f32]) {
    generic::dequantize(q, slices, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn pack(q: Integers<'_>, per_byte: usize, out: &mut [u8]) -> bool {
    generic::pack(q, per_byte, out)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn unpack(packed: &[u8], per_byte: usize, out: IntegersMut<'_>) {
    generic::unpack(packed, per_byte, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn quantize(x: &[f32], slices: Slices<'_>, rounding: Rounding, out: IntegersMut<'_>) {
    if rounding != Rounding::Onnx || !slices.ordinary {
        return generic::quantize(x, slices, rounding, out);
    }
    match out {
        IntegersMut::I8(out) => quantize_to(x, slices, out),
        IntegersMut::U8(out) => quantize_to(x, slices, out),
        IntegersMut::I16(out) => quantize_to(x, slices, out),
        IntegersMut::U16(out) => quantize_to(x, slices, out),
    }
}

/// Calls `$of_run(x, out, lanes, slice)`, where `lanes(b, v)` are the parameters of the `v`-th vector of the `b`-th block of
/// 32, and `slice(i)` those of the `i`-th value.
macro_rules! in_runs {
    ($x:expr, $slices:expr, $out:expr, $of_run:ident) => {{
        let (x, out, slices) = ($x, $out, $slices.part(0, $x.len().div_ceil($slices.run)));
        match slices.run {
            1 => $of_run(x, out, |b, v| Lanes::load(slices, 4 * b + v), |i| slices.get(i)),
            16 => $of_run(
                x,
                out,
                |b, v| Lanes::splat(slices.get(2 * b + v / 2)),
                |i| slices.get(i / 16),
            ),
            32 => $of_run(x, out, |b, _| Lanes::splat(slices.get(b)), |i| slices.get(i / 32)),
            64 => $of_run(x, out, |b, _| Lanes::splat(slices.get(b / 2)), |i| slices.get(i / 64)),
            128 => $of_run(x, out, |b, _| Lanes::splat(slices.get(b / 4)), |i| slices.get(i / 128)),
            run => {
                for (i, (x, out)) in x.chunks(run).zip(out.chunks_mut(run)).enumerate() {
                    let slice = slices.get(i);
                    let lanes = Lanes::splat(slice);
                    $of_run(x, out, |_, _| lanes, |_| slice);
                }
            }
        }
    }};
}

#[target_feature(enable = "avx2,fma,f16c")]
fn quantize_to<Q: Integer>(x: &[f32], slices: Slices<'_>, out: &mut [Q]) {
    in_runs!(x, slices, out, quantize_run);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn quantize_run<Q: Integer>(
    x: &[f32],
    out: &mut [Q],
    lanes: impl Fn(usize, usize) -> Lanes,
    slice: impl Fn(usize) -> Slice,
) {
    let ((blocks, rest), (outs, out_rest)) = (x.as_chunks::<32>(), out.as_chunks_mut::<32>());
    for (b, (x, out)) in blocks.iter().zip(outs).enumerate() {
        let mut q = [_mm256_setzero_si256(); 4];
        for (v, x) in x.as_chunks().0.iter().enumerate() {
            q[v] = lanes(b, v).integers(load(x));
        }
        store_integers(q, out);
    }
    let ((eights, rest), (outs, out_rest)) = (rest.as_chunks::<8>(), out_rest.as_chunks_mut::<8>());
    for (v, (x, out)) in eights.iter().zip(outs).enumerate() {
        store_8_integers(lanes(blocks.len(), v).integers(load(x)), out);
    }
    let first = 32 * blocks.len() + 8 * eights.len();
    for (i, (x, out)) in rest.iter().zip(out_rest).enumerate() {
        *out = generic::quantize_one(*x, slice(first + i));
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn fake_quantize(x: &[f32], slices: Slices<'_>, rounding: Rounding, out: &mut [f32]) {
    if rounding != Rounding::Onnx || !slices.ordinary {
        return generic::fake_quantize(x, slices, rounding, out);
    }
    in_runs!(x, slices, out, fake_quantize_run);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fake_quantize_run(
    x: &[f32],
    out: &mut [f32],
    lanes: impl Fn(usize, usize) -> Lanes,
    slice: impl Fn(usize) -> Slice,
) {
    let ((blocks, rest), (outs, out_rest)) = (x.as_chunks::<32>(), out.as_chunks_mut::<32>());
    for (b, (x, out)) in blocks.iter().zip(outs).enumerate() {
        for (v, (x, out)) in x.as_chunks().0.iter().zip(out.as_chunks_mut().0).enumerate() {
            store(lanes(b, v).reals(load(x)), out);
        }
    }
    let ((eights, rest), (outs, out_rest)) = (rest.as_chunks(), out_rest.as_chunks_mut());
    for (v, (x, out)) in eights.iter().zip(outs).enumerate() {
        store(lanes(blocks.len(), v).reals(load(x)), out);
    }
    let first = 32 * blocks.len() + 8 * eights.len();
    for (i, (x, out)) in rest.iter().zip(out_rest).enumerate() {
        *out = generic::fake_quantize_one(*x, slice(first + i));
    }
}

/// The parameters of 8 values.
///
/// Values are clamped to `min` and `max`, the reals of the outermost integers, before anything else. These are rounded, which
/// moves their quotients by less than 2^-6 of a step: they still become those integers, as all beyond them would.
#[derive(Clone, Copy)]
struct Lanes {
    scale: __m256,
    inverse: __m256,
    min: __m256,
    max: __m256,
    zero_point: __m256i,
}

impl Lanes {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn splat(slice: Slice) -> Self {
        Self {
            scale: _mm256_set1_ps(slice.scale),
            inverse: _mm256_set1_ps(slice.inverse),
            min: _mm256_set1_ps(slice.min),
            max: _mm256_set1_ps(slice.max),
            zero_point: _mm256_set1_epi32(slice.zero_point),
        }
    }

    /// The `g`-th 8 slices, each alone.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn load(slices: Slices<'_>, g: usize) -> Self {
        Self {
            scale: load(&slices.scale.as_chunks().0[g]),
            inverse: load(&slices.inverse.as_chunks().0[g]),
            min: load(&slices.min.as_chunks().0[g]),
            max: load(&slices.max.as_chunks().0[g]),
            zero_point: load_i32(&slices.zero_point.as_chunks().0[g]),
        }
    }

    /// The distance from the zero point.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn steps(&self, x: __m256) -> __m256i {
        // Where an operand is NaN, both give the second.
        let x = _mm256_min_ps(self.max, _mm256_max_ps(self.min, x));
        let q = _mm256_mul_ps(x, self.inverse);
        let r = _mm256_fnmadd_ps(q, self.scale, x);
        let q = _mm256_fmadd_ps(r, self.inverse, q);
        // To nearest even; the mask makes NaN 0.
        _mm256_cvtps_epi32(_mm256_and_ps(q, _mm256_cmp_ps::<_CMP_ORD_Q>(q, q)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn integers(&self, x: __m256) -> __m256i {
        _mm256_add_epi32(self.steps(x), self.zero_point)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn reals(&self, x: __m256) -> __m256 {
        _mm256_mul_ps(_mm256_cvtepi32_ps(self.steps(x)), self.scale)
    }
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

/// Writes 32 integers that lie in `Q`.
#[inline]
#[target_feature(enable = "avx2")]
fn store_integers<Q: Integer>(v: [__m256i; 4], out: &mut [Q; 32]) {
    let signed = Q::TYPE.signed();
    let words = |low, high| match (Q::TYPE.bits(), signed) {
        (16, false) => _mm256_packus_epi32(low, high),
        _ => _mm256_packs_epi32(low, high),
    };
    let (low, high) = (words(v[0], v[1]), words(v[2], v[3]));
    let out = out.as_mut_ptr().cast::<__m256i>();
    if Q::TYPE.bits() == 16 {
        // Packing works in halves of 128 bits: quads of words lie in the order 0 2 1 3.
        let (low, high) = (
            _mm256_permute4x64_epi64::<0b11_01_10_00>(low),
            _mm256_permute4x64_epi64::<0b11_01_10_00>(high),
        );
        // SAFETY: `out` is 32 integers of 2 bytes, so 64 writable bytes, and `storeu` needs no alignment.
        unsafe {
            _mm256_storeu_si256(out, low);
            _mm256_storeu_si256(out.add(1), high);
        }
    } else {
        let bytes = if signed {
            _mm256_packs_epi16(low, high)
        } else {
            _mm256_packus_epi16(low, high)
        };
        // Groups of 4 bytes lie in the order 0 4 1 5 2 6 3 7 of these.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_permutevar8x32_epi32(bytes, order);
        // SAFETY: `out` is 32 integers of at least 1 byte, and `storeu` needs no alignment.
        unsafe { _mm256_storeu_si256(out, bytes) };
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_8_integers<Q: Integer>(v: __m256i, out: &mut [Q; 8]) {
    let mut wide = [0; 8];
    // SAFETY: `wide` is 32 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(wide.as_mut_ptr().cast(), v) };
    for (out, q) in out.iter_mut().zip(wide) {
        *out = Q::narrow(q);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[f32; 8]) -> __m256 {
    // SAFETY: `x` is 8 readable floats, and `loadu` needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_i32(x: &[i32; 8]) -> __m256i {
    // SAFETY: `x` is 32 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(v: __m256, out: &mut [f32; 8]) {
    // SAFETY: `out` is 8 writable floats, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) }
}
