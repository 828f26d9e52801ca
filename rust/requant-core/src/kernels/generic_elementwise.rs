//! The definition of quantization, in plain Rust.
//!
//! Functions are generic and always inlined, so that a set with `target_feature`s compiles the same code for itself
//! wherever it has none of its own.

use super::{
    elementwise::{Divisor, Divisors, ElementwiseKernel, ORDINARY, Params, Slices},
    halves,
};
use crate::arrays::{Integer, Integers, IntegersMut, Reals, RealsMut};
use crate::kernels::rounding::Rounding;

pub(super) struct Generic;

#[expect(clippy::unnecessary_wraps, reason = "the signature of every probe")]
pub(super) fn probe() -> Option<&'static dyn ElementwiseKernel> {
    Some(&Generic)
}

impl ElementwiseKernel for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn prepare(&self, slices: Slices<'_>, inverse: &mut [f32], min: &mut [f32], max: &mut [f32]) -> bool {
        prepare(slices, inverse, min, max)
    }

    fn quantize(&self, x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: IntegersMut<'_>) {
        quantize(x, divisors, rounding, out);
    }

    fn dequantize(&self, q: Integers<'_>, slices: Slices<'_>, _stream: bool, out: &mut [f32]) {
        dequantize(q, slices, out);
    }

    fn fake_quantize(&self, x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [f32]) {
        fake_quantize(x, divisors, rounding, out);
    }

    fn in_range(&self, x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [bool]) {
        in_range(x, divisors, rounding, out);
    }

    fn squares(&self, x: &[f32], y: &[f32]) -> (f64, f64) {
        squares(x, y)
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
pub(super) fn prepare(slices: Slices<'_>, inverse: &mut [f32], min: &mut [f32], max: &mut [f32]) -> bool {
    let ((qmin, qmax), mut ordinary) = (slices.limits, true);
    let outs = inverse.iter_mut().zip(min).zip(max);
    for ((scale, zero_point), ((inverse, min), max)) in slices.scale.iter().zip(slices.zero_point).zip(outs) {
        *inverse = 1.0 / scale;
        *min = -(to_f32(zero_point - qmin) * scale);
        *max = to_f32(qmax - zero_point) * scale;
        ordinary &= (*scale >= *ORDINARY.start()) & (*scale <= *ORDINARY.end());
    }
    ordinary
}

#[inline(always)]
fn quantize(x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: IntegersMut<'_>) {
    match out {
        IntegersMut::I8(out) => quantize_to(x, divisors, rounding, out),
        IntegersMut::U8(out) => quantize_to(x, divisors, rounding, out),
        IntegersMut::I16(out) => quantize_to(x, divisors, rounding, out),
        IntegersMut::U16(out) => quantize_to(x, divisors, rounding, out),
    }
}

#[inline(always)]
fn quantize_to<Q: Integer>(x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [Q]) {
    with_level!(rounding, level => map(x, divisors, out, |x, divisor| {
        Q::narrow(steps(level(x, divisor), divisor) + divisor.zero_point)
    }));
}

#[inline(always)]
fn fake_quantize(x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [f32]) {
    with_level!(rounding, level => map(x, divisors, out, |x, divisor| {
        to_f32(steps(level(x, divisor), divisor)) * divisor.scale
    }));
}

#[inline(always)]
fn in_range(x: &[f32], divisors: Divisors<'_>, rounding: Rounding, out: &mut [bool]) {
    with_level!(rounding, level => map(x, divisors, out, |x, divisor| {
        let (v, origin) = level(x, divisor);
        let v = v.round_ties_even();
        let (lo, hi) = bounds(origin, divisor);
        (v >= lo) & (v <= hi)
    }));
}

#[inline(always)]
fn dequantize(q: Integers<'_>, slices: Slices<'_>, out: &mut [f32]) {
    #[inline(always)]
    fn from<Q: Integer>(q: &[Q], slices: Slices<'_>, out: &mut [f32]) {
        map(q, slices, out, |q, (scale, zero_point)| {
            to_f32(q.widen() - zero_point) * scale
        });
    }
    match q {
        Integers::I8(q) => from(q, slices, out),
        Integers::U8(q) => from(q, slices, out),
        Integers::I16(q) => from(q, slices, out),
        Integers::U16(q) => from(q, slices, out),
    }
}

/// Evaluates an expression with `level`, a function from a real and its divisor to the number that is rounded and to
/// where zero lies on that number's axis.
macro_rules! with_level {
    ($rounding:expr, $level:ident => $body:expr) => {
        match $rounding {
            Rounding::Onnx => {
                let $level = |x: f32, divisor: Divisor| (x / divisor.scale, 0.0);
                $body
            }
            Rounding::TorchFakeQuantize => {
                let $level = |x: f32, divisor: Divisor| (x * divisor.inverse, 0.0);
                $body
            }
            Rounding::TorchPerTensor => {
                let $level = |x: f32, divisor: Divisor| {
                    let zero = to_f32(divisor.zero_point);
                    (x.mul_add(divisor.inverse, zero), zero)
                };
                $body
            }
            Rounding::TorchPerChannel => {
                let $level = |x: f32, divisor: Divisor| {
                    let zero = to_f32(divisor.zero_point);
                    (x * divisor.inverse + zero, zero)
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
fn steps((v, origin): (f32, f32), divisor: Divisor) -> i32 {
    let (lo, hi) = bounds(origin, divisor);
    let v = if v.is_nan() { origin } else { v };
    // Not f32::clamp, which asserts its bounds at each element.
    let v = if v < lo { lo } else { v };
    let v = if v > hi { hi } else { v };
    let distance = |v: f32| (v + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed();
    distance(v) - distance(origin)
}

/// Smallest and largest integer in use, on an axis where zero lies at `origin`.
#[inline(always)]
fn bounds(origin: f32, divisor: Divisor) -> (f32, f32) {
    let (qmin, qmax) = divisor.limits;
    let bound = |q| to_f32(q - divisor.zero_point) + origin;
    (bound(qmin), bound(qmax))
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "at most 17 bits")]
fn to_f32(q: i32) -> f32 {
    q as f32
}

/// Elements that are computed before any is written: known not to overlap the input, they need no check that they do
/// not.
const GROUP: usize = 16;

/// `out[i] = f(x[i], parameters of i)`.
#[inline(always)]
fn map<X: Copy, Y: Copy + Default, P: Params>(x: &[X], params: P, out: &mut [Y], f: impl Fn(X, P::One) -> Y) {
    let params = params.part(0, x.len().div_ceil(params.run()));
    if params.run() == 1 {
        let groups = |g: usize| {
            let group = params.part(g * GROUP, GROUP);
            move |i| group.get(i)
        };
        each(x, out, groups, |i| params.get(i), f);
    } else {
        for (i, (x, out)) in x.chunks(params.run()).zip(out.chunks_mut(params.run())).enumerate() {
            let one = params.get(i);
            each(x, out, |_| move |_| one, |_| one, &f);
        }
    }
}

/// `groups(g)(i)` are the parameters of the `i`-th value of the `g`-th group, `one(i)` those of the `i`-th of all.
#[inline(always)]
fn each<X: Copy, Y: Copy + Default, One, G: Fn(usize) -> One>(
    x: &[X],
    out: &mut [Y],
    groups: impl Fn(usize) -> G,
    one: impl Fn(usize) -> One,
    f: impl Fn(X, One) -> Y,
) {
    let ((blocks, rest), (outs, out_rest)) = (x.as_chunks::<GROUP>(), out.as_chunks_mut::<GROUP>());
    for (g, (x, out)) in blocks.iter().zip(outs).enumerate() {
        let of_group = groups(g);
        let mut results = [Y::default(); GROUP];
        for (i, (result, x)) in results.iter_mut().zip(x).enumerate() {
            *result = f(*x, of_group(i));
        }
        *out = results;
    }
    let first = blocks.len() * GROUP;
    for (i, (x, out)) in rest.iter().zip(out_rest).enumerate() {
        *out = f(*x, one(first + i));
    }
}

#[inline(always)]
pub(super) fn squares(x: &[f32], y: &[f32]) -> (f64, f64) {
    let (mut signal, mut noise) = ([0.0; GROUP], [0.0; GROUP]);
    let mut add = |x: &[f32], y: &[f32]| {
        for (((x, y), signal), noise) in x.iter().zip(y).zip(&mut signal).zip(&mut noise) {
            let (value, distance) = (f64::from(*x), f64::from(y - x));
            *signal += value * value;
            *noise += distance * distance;
        }
    };
    let ((groups, rest), (others, other_rest)) = (x.as_chunks::<GROUP>(), y.as_chunks::<GROUP>());
    for (x, y) in groups.iter().zip(others) {
        add(x, y);
    }
    add(rest, other_rest);
    (signal.iter().sum(), noise.iter().sum())
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
