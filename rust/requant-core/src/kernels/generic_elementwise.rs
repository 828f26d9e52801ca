//! The definition of quantization, in plain Rust.
//!
//! Functions are generic and always inlined, so that a set with `target_feature`s compiles the same code for itself
//! wherever it has none of its own.

use super::{
    elementwise::{ElementwiseKernel, Slice, Slices},
    halves,
};
use crate::affine::{Integer, Integers, IntegersMut, Reals, RealsMut, Rounding};

pub(super) struct Generic;

#[expect(clippy::unnecessary_wraps, reason = "the signature of every probe")]
pub(super) fn probe() -> Option<&'static dyn ElementwiseKernel> {
    Some(&Generic)
}

impl ElementwiseKernel for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn quantize(&self, x: &[f32], slices: Slices<'_>, rounding: Rounding, out: IntegersMut<'_>) {
        quantize(x, slices, rounding, out);
    }

    fn dequantize(&self, q: Integers<'_>, slices: Slices<'_>, out: &mut [f32]) {
        dequantize(q, slices, out);
    }

    fn fake_quantize(&self, x: &[f32], slices: Slices<'_>, rounding: Rounding, out: &mut [f32]) {
        fake_quantize(x, slices, rounding, out);
    }

    fn in_range(&self, x: &[f32], slices: Slices<'_>, rounding: Rounding, out: &mut [bool]) {
        in_range(x, slices, rounding, out);
    }

    fn widen(&self, x: Reals<'_>, out: &mut [f32]) {
        halves::widen(x, out);
    }

    fn narrow(&self, x: &[f32], out: RealsMut<'_>) {
        halves::narrow(x, out);
    }

    fn pack(&self, q: Integers<'_>, per_byte: usize, out: &mut [u8]) -> bool {
        pack(q, per_byte, out)
    }

    fn unpack(&self, packed: &[u8], per_byte: usize, out: IntegersMut<'_>) {
        unpack(packed, per_byte, out);
    }
}

#[inline(always)]
pub(super) fn quantize(x: &[f32], slices: Slices<'_>, rounding: Rounding, out: IntegersMut<'_>) {
    match out {
        IntegersMut::I8(out) => quantize_to(x, slices, rounding, out),
        IntegersMut::U8(out) => quantize_to(x, slices, rounding, out),
        IntegersMut::I16(out) => quantize_to(x, slices, rounding, out),
        IntegersMut::U16(out) => quantize_to(x, slices, rounding, out),
    }
}

#[inline(always)]
fn quantize_to<Q: Integer>(x: &[f32], slices: Slices<'_>, rounding: Rounding, out: &mut [Q]) {
    with_level!(rounding, level => map(x, slices, out, |x, slice| {
        Q::narrow(steps(level(x, slice), slice) + slice.zero_point)
    }));
}

#[inline(always)]
pub(super) fn fake_quantize(x: &[f32], slices: Slices<'_>, rounding: Rounding, out: &mut [f32]) {
    with_level!(rounding, level => map(x, slices, out, |x, slice| {
        to_f32(steps(level(x, slice), slice)) * slice.scale
    }));
}

#[inline(always)]
pub(super) fn in_range(x: &[f32], slices: Slices<'_>, rounding: Rounding, out: &mut [bool]) {
    with_level!(rounding, level => map(x, slices, out, |x, slice| {
        let (v, origin) = level(x, slice);
        let v = v.round_ties_even();
        let (lo, hi) = bounds(origin, slice);
        (v >= lo) & (v <= hi)
    }));
}

#[inline(always)]
pub(super) fn dequantize(q: Integers<'_>, slices: Slices<'_>, out: &mut [f32]) {
    #[inline(always)]
    fn from<Q: Integer>(q: &[Q], slices: Slices<'_>, out: &mut [f32]) {
        let f = |q: Q, slice: Slice| to_f32(q.widen() - slice.zero_point) * slice.scale;
        match slices.run {
            1 => {
                for (((out, q), scale), zero_point) in out.iter_mut().zip(q).zip(slices.scale).zip(slices.zero_point) {
                    *out = to_f32(q.widen() - zero_point) * scale;
                }
            }
            16 => map_short::<_, _, 1>(q, slices, out, f),
            32 => map_short::<_, _, 2>(q, slices, out, f),
            64 => map_short::<_, _, 4>(q, slices, out, f),
            128 => map_short::<_, _, 8>(q, slices, out, f),
            _ => map(q, slices, out, f),
        }
    }
    match q {
        Integers::I8(q) => from(q, slices, out),
        Integers::U8(q) => from(q, slices, out),
        Integers::I16(q) => from(q, slices, out),
        Integers::U16(q) => from(q, slices, out),
    }
}

/// Evaluates an expression with `level`, a function from a real and its slice to the number that is rounded and to where
/// zero lies on that number's axis.
macro_rules! with_level {
    ($rounding:expr, $level:ident => $body:expr) => {
        match $rounding {
            Rounding::Onnx => {
                let $level = |x: f32, slice: Slice| (x / slice.scale, 0.0);
                $body
            }
            Rounding::TorchFakeQuantize => {
                let $level = |x: f32, slice: Slice| (x * slice.inverse, 0.0);
                $body
            }
            Rounding::TorchPerTensor => {
                let $level = |x: f32, slice: Slice| {
                    let zero = to_f32(slice.zero_point);
                    (x.mul_add(slice.inverse, zero), zero)
                };
                $body
            }
            Rounding::TorchPerChannel => {
                let $level = |x: f32, slice: Slice| {
                    let zero = to_f32(slice.zero_point);
                    (x * slice.inverse + zero, zero)
                };
                $body
            }
        }
    };
}
use with_level;

/// Adding 1.5 * 2^23 leaves no bit for a fraction, so the addition itself rounds to nearest even, and the low bits of
/// the sum are the integer. Exact for |v| <= 2^22; `v` is within +-65535 here.
const MAGIC: f32 = 12_582_912.0;

/// The distance of the integer from the zero point. Clamped before it is rounded, so infinities and 3e9 saturate; both
/// orders give the same integers since the bounds are integers.
#[inline(always)]
fn steps((v, origin): (f32, f32), slice: Slice) -> i32 {
    let (lo, hi) = bounds(origin, slice);
    let v = if v.is_nan() { origin } else { v };
    // Not f32::clamp, which asserts its bounds at each element.
    let v = if v < lo { lo } else { v };
    let v = if v > hi { hi } else { v };
    let distance = |v: f32| (v + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed();
    distance(v) - distance(origin)
}

/// Smallest and largest integer in use, on an axis where zero lies at `origin`.
#[inline(always)]
fn bounds(origin: f32, slice: Slice) -> (f32, f32) {
    let (qmin, qmax) = slice.limits;
    let bound = |q| to_f32(q - slice.zero_point) + origin;
    (bound(qmin), bound(qmax))
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "at most 17 bits")]
fn to_f32(q: i32) -> f32 {
    q as f32
}

/// What ONNX's formula makes of one value.
#[inline(always)]
pub(super) fn quantize_one<Q: Integer>(x: f32, slice: Slice) -> Q {
    Q::narrow(steps((x / slice.scale, 0.0), slice) + slice.zero_point)
}

/// What ONNX's formula, there and back, makes of one value.
#[inline(always)]
pub(super) fn fake_quantize_one(x: f32, slice: Slice) -> f32 {
    to_f32(steps((x / slice.scale, 0.0), slice)) * slice.scale
}

/// Elements that are computed before any is written: known not to overlap the input, they need no check that they do not.
const GROUP: usize = 16;

/// `out[i] = f(x[i], slice of i)`.
#[inline(always)]
fn map<X: Copy, Y: Copy + Default>(x: &[X], slices: Slices<'_>, out: &mut [Y], f: impl Fn(X, Slice) -> Y) {
    let slices = slices.part(0, x.len().div_ceil(slices.run));
    if slices.run == 1 {
        let groups = |g: usize| {
            let group = slices.part(g * GROUP, GROUP);
            move |i| group.get(i)
        };
        each(x, out, groups, |i| slices.get(i), f);
    } else {
        for (i, (x, out)) in x.chunks(slices.run).zip(out.chunks_mut(slices.run)).enumerate() {
            let slice = slices.get(i);
            each(x, out, |_| move |_| slice, |_| slice, &f);
        }
    }
}

/// [`map`] for runs of `GROUPS` groups.
#[inline(always)]
fn map_short<X: Copy, Y: Copy + Default, const GROUPS: usize>(
    x: &[X],
    slices: Slices<'_>,
    out: &mut [Y],
    f: impl Fn(X, Slice) -> Y,
) {
    let slices = slices.part(0, x.len().div_ceil(slices.run));
    let groups = |g: usize| {
        let slice = slices.get(g / GROUPS);
        move |_| slice
    };
    each(x, out, groups, |i| slices.get(i / (GROUPS * GROUP)), f);
}

/// `groups(g)(i)` is the slice of the `i`-th value of the `g`-th group, `one(i)` that of the `i`-th of all.
#[inline(always)]
fn each<X: Copy, Y: Copy + Default, G: Fn(usize) -> Slice>(
    x: &[X],
    out: &mut [Y],
    groups: impl Fn(usize) -> G,
    one: impl Fn(usize) -> Slice,
    f: impl Fn(X, Slice) -> Y,
) {
    let ((blocks, rest), (outs, out_rest)) = (x.as_chunks::<GROUP>(), out.as_chunks_mut::<GROUP>());
    for (g, (x, out)) in blocks.iter().zip(outs).enumerate() {
        let slice = groups(g);
        let mut results = [Y::default(); GROUP];
        for (i, (result, x)) in results.iter_mut().zip(x).enumerate() {
            *result = f(*x, slice(i));
        }
        *out = results;
    }
    let first = blocks.len() * GROUP;
    for (i, (x, out)) in rest.iter().zip(out_rest).enumerate() {
        *out = f(*x, one(first + i));
    }
}

#[inline(always)]
pub(super) fn pack(q: Integers<'_>, per_byte: usize, out: &mut [u8]) -> bool {
    #[inline(always)]
    fn from<Q: Integer>(q: &[Q], per_byte: usize, out: &mut [u8]) -> bool {
        match per_byte {
            4 => pack_groups::<Q, 4>(q, out),
            _ => pack_groups::<Q, 2>(q, out),
        }
    }
    match q {
        Integers::I8(q) => from(q, per_byte, out),
        Integers::U8(q) => from(q, per_byte, out),
        Integers::I16(q) => from(q, per_byte, out),
        Integers::U16(q) => from(q, per_byte, out),
    }
}

/// Packs `N` integers to a byte.
#[inline(always)]
fn pack_groups<Q: Integer, const N: usize>(q: &[Q], out: &mut [u8]) -> bool {
    let bits = 8 / N;
    let (mask, half) = ((1 << bits) - 1, if Q::TYPE.signed() { 1 << (bits - 1) } else { 0 });
    let excess = q.iter().fold(0, |excess, q| excess | (q.widen() + half) & !mask);
    let byte = |q: &[Q]| {
        let place = |(i, q): (usize, &Q)| (q.widen() & mask) << (i * bits);
        u8::narrow(q.iter().enumerate().map(place).fold(0, |byte, q| byte | q))
    };
    let (groups, rest) = q.as_chunks::<N>();
    for (group, out) in groups.iter().zip(&mut *out) {
        *out = byte(group);
    }
    if let (false, Some(out)) = (rest.is_empty(), out.last_mut()) {
        *out = byte(rest);
    }
    excess == 0
}

#[inline(always)]
pub(super) fn unpack(packed: &[u8], per_byte: usize, out: IntegersMut<'_>) {
    #[inline(always)]
    fn to<Q: Integer>(packed: &[u8], per_byte: usize, out: &mut [Q]) {
        match per_byte {
            4 => unpack_groups::<Q, 4>(packed, out),
            _ => unpack_groups::<Q, 2>(packed, out),
        }
    }
    match out {
        IntegersMut::I8(out) => to(packed, per_byte, out),
        IntegersMut::U8(out) => to(packed, per_byte, out),
        IntegersMut::I16(out) => to(packed, per_byte, out),
        IntegersMut::U16(out) => to(packed, per_byte, out),
    }
}

#[inline(always)]
fn unpack_groups<Q: Integer, const N: usize>(packed: &[u8], out: &mut [Q]) {
    let bits = 8 / N;
    let (mask, half) = ((1 << bits) - 1, if Q::TYPE.signed() { 1 << (bits - 1) } else { 0 });
    // (n ^ half) - half copies the sign bit into the bits above it.
    let group = |byte: &u8| {
        let mut group = [Q::default(); N];
        for (i, q) in group.iter_mut().enumerate() {
            *q = Q::narrow(((i32::from(*byte) >> (i * bits) & mask) ^ half) - half);
        }
        group
    };
    let (groups, rest) = out.as_chunks_mut::<N>();
    for (out, byte) in groups.iter_mut().zip(packed) {
        *out = group(byte);
    }
    if let Some(byte) = packed.last() {
        rest.copy_from_slice(&group(byte)[..rest.len()]);
    }
}
