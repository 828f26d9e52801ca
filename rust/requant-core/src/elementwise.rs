//! Maps of 8-bit integers to 8-bit integers: residual additions, and any function of one value.

use crate::{
    Error, Granularity, QuantParams, QuantType, Result,
    affine::Affine,
    arrays::{Bytes, BytesMut},
    error::check_length,
    kernels::{self, Terms, bits},
    requantize::{check_scales, check_within},
};

/// The sum of two quantized tensors, as onnxruntime's QLinearAdd computes it where the CPU fuses multiplications and
/// additions:
///
/// ```text
/// y = clamp(round_half_even(fma(a, ra, fma(b, rb, c))))      ra = a.scale / y.scale, rb = b.scale / y.scale
///                                                            c = y.zero_point - fma(ra, a.zero_point, rb * b.zero_point)
/// ```
///
/// ```
/// use requant_core::{QuantParams, QuantType, elementwise::Addition, arrays::{Bytes, BytesMut}};
/// let (half, one) = (QuantParams { scale: 0.5, zero_point: 10 }, QuantParams { scale: 1.0, zero_point: 20 });
/// let add = Addition::new(QuantType::U8, half, half, one)?.with_clamp(20, 255)?; // and a ReLU
/// let mut y = [0; 3];
/// add.apply(Bytes::U8(&[14, 14, 0]), Bytes::U8(&[16, 17, 0]), BytesMut::U8(&mut y))?;
/// assert_eq!(y, [25, 26, 20]); // 2 + 3, 2 + 3.5, -5 - 5
/// # Ok::<(), requant_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Addition {
    terms: Terms,
    dtype: QuantType,
}

impl Addition {
    /// Of int8 or uint8, clamped to the integers of the type.
    ///
    /// # Errors
    /// Another type, scales that are not finite and positive or too far apart, zero points outside the type.
    pub fn new(dtype: QuantType, a: QuantParams, b: QuantParams, y: QuantParams) -> Result<Self> {
        check_8_bits(dtype)?;
        let limits = (dtype.min(), dtype.max());
        check_scales(&[a.scale, b.scale, y.scale])?;
        check_within(&[a.zero_point, b.zero_point, y.zero_point], limits)?;
        let ratios = [a.scale / y.scale, b.scale / y.scale];
        for (index, &ratio) in ratios.iter().enumerate() {
            // So that no sum of such products leaves f32.
            if ratio > f32::MAX / 1024.0 {
                let value = f64::from(ratio);
                return Err(Error::Multiplier { value, index });
            }
        }
        let inputs = ratios[0].mul_add(a.zero_point as f32, ratios[1] * b.zero_point as f32);
        let terms = Terms {
            a: ratios[0],
            b: ratios[1],
            constant: y.zero_point as f32 - inputs,
            min: limits.0,
            max: limits.1,
            signed: dtype.signed(),
        };
        Ok(Self { terms, dtype })
    }

    /// Clamps results to `min..=max`.
    ///
    /// # Errors
    /// Ends outside the type, or swapped.
    pub fn with_clamp(self, min: i32, max: i32) -> Result<Self> {
        check_within(&[min, max], (self.dtype.min(), self.dtype.max()))?;
        check_within(&[min], (self.dtype.min(), max))?;
        let terms = Terms { min, max, ..self.terms };
        Ok(Self { terms, ..self })
    }

    /// Adds two tensors of one length.
    ///
    /// # Errors
    /// Lengths that differ, or another type.
    pub fn apply(&self, a: Bytes<'_>, b: Bytes<'_>, out: BytesMut<'_>) -> Result<()> {
        out.check(self.dtype, a.len())?;
        for x in [a, b] {
            if x.dtype() != self.dtype {
                let (dtype, container) = (self.dtype, x.dtype());
                return Err(Error::Container { dtype, container });
            }
        }
        check_length("b", a.len(), b.len())?;
        kernels::current().add(bits::bits(a), bits::bits(b), &self.terms, bits::bits_mut(out));
        Ok(())
    }
}

/// Any function of one quantized value, tabulated: an activation costs the same whatever it computes.
///
/// ```
/// use requant_core::{QuantParams, QuantType, elementwise::Table, arrays::{Bytes, BytesMut}};
/// let x = QuantParams { scale: 0.5, zero_point: -1 };
/// let y = QuantParams { scale: 1.0 / 256.0, zero_point: 0 };
/// let sigmoid = Table::new(QuantType::I8, x, QuantType::U8, y, |v| 1.0 / (1.0 + (-v).exp()))?;
/// let mut out = [0; 3];
/// sigmoid.apply(Bytes::I8(&[-128, -1, 127]), BytesMut::U8(&mut out))?;
/// assert_eq!(out, [0, 128, 255]);
/// # Ok::<(), requant_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// By the bits of the input.
    bits: [u8; 256],
    x: QuantType,
    y: QuantType,
}

impl Table {
    /// `quantize(f(dequantize(q)))` for each `q`, from int8 or uint8 to either: ONNX DequantizeLinear, `f`,
    /// QuantizeLinear.
    ///
    /// # Errors
    /// Other types, scales that are not finite and positive, zero points outside their types.
    pub fn new(
        x: QuantType,
        x_params: QuantParams,
        y: QuantType,
        y_params: QuantParams,
        f: impl Fn(f32) -> f32,
    ) -> Result<Self> {
        check_8_bits(x)?;
        check_8_bits(y)?;
        let (scales, zero_points) = (
            [x_params.scale, y_params.scale],
            [x_params.zero_point, y_params.zero_point],
        );
        let map = |dtype, i: usize| {
            let (scale, zero_point) = (&scales[i..=i], &zero_points[i..=i]);
            Affine::new(&[256], Granularity::PerTensor, dtype, false, scale, zero_point)
        };
        let all: [u8; 256] = std::array::from_fn(|i| i.to_le_bytes()[0]);
        let mut reals = [0.0; 256];
        if x.signed() {
            map(x, 0)?.dequantize(&all.map(u8::cast_signed), &mut reals)?;
        } else {
            map(x, 0)?.dequantize(&all, &mut reals)?;
        }
        let reals = reals.map(f);
        let mut bits = [0; 256];
        if y.signed() {
            let mut integers = [0i8; 256];
            map(y, 1)?.quantize(&reals, &mut integers)?;
            bits = integers.map(i8::cast_unsigned);
        } else {
            map(y, 1)?.quantize(&reals, &mut bits)?;
        }
        Ok(Self { bits, x, y })
    }

    /// From the bits of each result, in the order of the bits of what it is looked up for.
    ///
    /// # Errors
    /// Types other than int8 and uint8.
    pub fn from_bits(x: QuantType, y: QuantType, bits: [u8; 256]) -> Result<Self> {
        check_8_bits(x)?;
        check_8_bits(y)?;
        Ok(Self { bits, x, y })
    }

    /// Type of what it takes.
    pub fn x(&self) -> QuantType {
        self.x
    }

    /// Type of what it gives.
    pub fn y(&self) -> QuantType {
        self.y
    }

    /// Looks each value up.
    ///
    /// # Errors
    /// Other types, or lengths that differ.
    pub fn apply(&self, x: Bytes<'_>, out: BytesMut<'_>) -> Result<()> {
        if x.dtype() != self.x {
            let (dtype, container) = (self.x, x.dtype());
            return Err(Error::Container { dtype, container });
        }
        out.check(self.y, x.len())?;
        kernels::current().look_up(&self.bits, bits::bits(x), bits::bits_mut(out));
        Ok(())
    }
}

fn check_8_bits(dtype: QuantType) -> Result<()> {
    if dtype.bits() == 8 {
        return Ok(());
    }
    Err(Error::Container {
        dtype,
        container: if dtype.signed() { QuantType::I8 } else { QuantType::U8 },
    })
}
