//! Which integer stands for a real, and which real an integer stands for.
//!
//! ```text
//! q = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)        ONNX QuantizeLinear
//! x = (q - zero_point) * scale                                          ONNX DequantizeLinear
//! ```
//!
//! [`params`] turns a range into a scale and zero point, [`slice_ranges`] finds ranges in an array, and [`Affine`]
//! applies parameters to one. The division is a division, in f32: multiplying by `1 / scale` rounds twice and moves
//! values that lie on a tie. The clamp comes before the rounding and the conversion, so infinities and 3e9 saturate;
//! both orders give the same integers since the bounds are integers. NaN gives the zero point.

mod params;
mod ranges;
mod tiling;

pub use params::{limits, params};
pub use ranges::slice_ranges;
use tiling::Tiling;

use crate::{Error, Granularity, QuantType, Result};

/// A machine integer that quantized values are held in; 4-bit types are held in 8 bits.
pub trait Integer: Copy + Default + Send + Sync + private::Sealed {
    /// The widest quantized type it holds.
    const TYPE: QuantType;
    /// `value`, which lies in the type.
    fn narrow(value: i32) -> Self;
    /// The value, widened.
    fn widen(self) -> i32;
}

mod private {
    pub trait Sealed {}
}

macro_rules! integer {
    ($($machine:ty => $name:ident),*) => {$(
        impl private::Sealed for $machine {}
        impl Integer for $machine {
            const TYPE: QuantType = QuantType::$name;
            #[inline(always)]
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "callers clamp first")]
            fn narrow(value: i32) -> Self {
                value as $machine
            }
            #[inline(always)]
            fn widen(self) -> i32 {
                i32::from(self)
            }
        }
    )*};
}
integer!(i8 => I8, u8 => U8, i16 => I16, u16 => U16);

/// Parameters laid over a shape, checked once and then applied to any number of arrays of that shape.
///
/// Arrays are row-major. `scale` and `zero_point` are too, in the shape that the granularity gives: `x` of shape
/// `[64, 32]` has 1 (per tensor), 64 (per channel, axis 0), `64 x 2` (blocks of 16 along axis 1) or 64 (per token).
///
/// ```
/// use requant_core::{Granularity, QuantType, affine::Affine};
/// let map = Affine::new(&[2, 2], Granularity::PerChannel { axis: 0 }, QuantType::I8, false, &[0.5, 2.0], &[0, 1])?;
/// let mut q = [0i8; 4];
/// map.quantize(&[1.0, -0.25, 1.0, 1e9], &mut q)?;
/// assert_eq!(q, [2, 0, 1, 127]);
/// # Ok::<(), requant_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Affine<'a> {
    tiling: Tiling,
    dtype: QuantType,
    limits: (i32, i32),
    scale: &'a [f32],
    zero_point: &'a [i32],
}

impl<'a> Affine<'a> {
    /// Lays `scale` and `zero_point` over `shape`.
    ///
    /// # Errors
    /// An axis outside the shape, a block size of 0, too few or too many parameters, a scale that is not finite and
    /// positive, a zero point outside the integers in use.
    pub fn new(
        shape: &[usize],
        granularity: Granularity,
        dtype: QuantType,
        narrow: bool,
        scale: &'a [f32],
        zero_point: &'a [i32],
    ) -> Result<Self> {
        let tiling = Tiling::new(shape, granularity)?;
        check_length("scale", tiling.slices(), scale.len())?;
        check_length("zero_point", tiling.slices(), zero_point.len())?;
        if let Some(index) = scale.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
            return Err(Error::Scale {
                value: scale[index],
                index,
            });
        }
        let limits @ (min, max) = limits(dtype, narrow);
        if let Some(index) = zero_point.iter().position(|z| !(min..=max).contains(z)) {
            return Err(Error::ZeroPoint {
                value: zero_point[index],
                index,
                min,
                max,
            });
        }
        Ok(Self {
            tiling,
            dtype,
            limits,
            scale,
            zero_point,
        })
    }

    /// Writes the integer of each real.
    ///
    /// # Errors
    /// Lengths that differ from the shape's, or integers `Q` that do not hold the type.
    pub fn quantize<Q: Integer>(&self, x: &[f32], out: &mut [Q]) -> Result<()> {
        self.check_holds::<Q>()?;
        let limits = self.limits;
        self.map(x, out, move |x, scale, zero_point| {
            Q::narrow(encode(x, scale, zero_point, limits))
        })
    }

    /// Writes the real of each integer.
    ///
    /// # Errors
    /// Lengths that differ from the shape's, or integers `Q` that do not hold the type.
    pub fn dequantize<Q: Integer>(&self, q: &[Q], out: &mut [f32]) -> Result<()> {
        self.check_holds::<Q>()?;
        self.map(q, out, |q, scale, zero_point| decode(q.widen(), scale, zero_point))
    }

    /// Writes the real that each real becomes when it is quantized and dequantized.
    ///
    /// # Errors
    /// Lengths that differ from the shape's.
    pub fn fake_quantize(&self, x: &[f32], out: &mut [f32]) -> Result<()> {
        let limits = self.limits;
        self.map(x, out, move |x, scale, zero_point| {
            decode(encode(x, scale, zero_point, limits), scale, zero_point)
        })
    }

    /// `out[i] = f(x[i], scale, zero_point)` with the parameters of `i`'s slice.
    fn map<X: Copy, Y>(&self, x: &[X], out: &mut [Y], f: impl Fn(X, f32, i32) -> Y) -> Result<()> {
        check_length("input", self.tiling.elements(), x.len())?;
        check_length("output", self.tiling.elements(), out.len())?;
        self.tiling.for_each_run(|run, slices| {
            map_run(
                &x[run.clone()],
                &self.scale[slices.clone()],
                &self.zero_point[slices],
                &mut out[run],
                &f,
            );
        });
        Ok(())
    }

    fn check_holds<Q: Integer>(&self) -> Result<()> {
        if Q::TYPE.min() <= self.dtype.min() && self.dtype.max() <= Q::TYPE.max() {
            return Ok(());
        }
        Err(Error::Container {
            dtype: self.dtype,
            container: Q::TYPE,
        })
    }
}

/// One run, with one parameter for all of it or one for each element. Not inlined: as arguments, the slices are known
/// not to overlap, and the loops, which have no branches, vectorise.
#[inline(never)]
fn map_run<X: Copy, Y>(x: &[X], scale: &[f32], zero_point: &[i32], out: &mut [Y], f: &impl Fn(X, f32, i32) -> Y) {
    if let ([scale], [zero_point]) = (scale, zero_point) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = f(*x, *scale, *zero_point);
        }
    } else {
        for (((out, x), scale), zero_point) in out.iter_mut().zip(x).zip(scale).zip(zero_point) {
            *out = f(*x, *scale, *zero_point);
        }
    }
}

/// Adding 1.5 * 2^23 leaves no bit for a fraction, so the addition itself rounds to nearest even, and the low bits of
/// the sum are the integer. Exact for |v| <= 2^22; `v` is within +-65535 here.
const MAGIC: f32 = 12_582_912.0;

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "at most 17 bits")]
fn encode(x: f32, scale: f32, zero_point: i32, (qmin, qmax): (i32, i32)) -> i32 {
    let (lo, hi) = ((qmin - zero_point) as f32, (qmax - zero_point) as f32);
    let v = x / scale;
    let v = if v.is_nan() { 0.0 } else { v };
    // Not f32::clamp, which asserts its bounds at each element.
    let v = if v < lo { lo } else { v };
    let v = if v > hi { hi } else { v };
    (v + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed() + zero_point
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "at most 17 bits")]
fn decode(q: i32, scale: f32, zero_point: i32) -> f32 {
    (q - zero_point) as f32 * scale
}

fn check_length(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(Error::Length { what, expected, got })
    }
}
