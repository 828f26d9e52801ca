//! From i32 sums back to 8-bit integers: the one place that knows how this is rounded.
//!
//! A sum over products of quantized values stands for the real `sum * scale_a * scale_b`, so its integer on the
//! output's scale is `clamp(round((sum + bias) * m) + zero_point)` with `m = scale_a * scale_b / scale_y`. [`Rounding`]
//! says how the product is taken.

use crate::{Error, QuantType, Result};

/// How the product with the multiplier is computed and rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// `round_half_even(f32(sum) * m)` in f32, `m = (scale_a * scale_b) / scale_y` in f32 too: the bits of onnxruntime.
    /// Sums beyond 2^24 are rounded to f32 first.
    #[default]
    HalfEvenFloat,
    /// `m = q * 2^(shift - 31)`, computed from f64; the sum is shifted left (saturating), multiplied by the Q31 number
    /// `q` with `SaturatingRoundingDoublingHighMul` and shifted right with `RoundingDivideByPOT`: the bits of gemmlowp
    /// and of TFLite's reference kernels. Rounds twice, half away from zero.
    Gemmlowp,
}

impl Rounding {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::HalfEvenFloat, Self::Gemmlowp];

    /// Its name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HalfEvenFloat => "half_even_float",
            Self::Gemmlowp => "gemmlowp",
        }
    }
}

impl std::str::FromStr for Rounding {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|r| r.name() == name)
            .ok_or_else(|| Error::UnknownName {
                what: "rounding",
                name: name.to_owned(),
                known: Self::ALL.map(Self::name).join(", "),
            })
    }
}

/// The scales of a product: of its left and right operand, the right one's for all columns or for each, and of the
/// output.
#[derive(Debug, Clone, Copy)]
pub struct Scales<'a> {
    /// Scale of the left operand.
    pub a: f32,
    /// Scale of the right operand, `[1]` or `[columns]`.
    pub b: &'a [f32],
    /// Scale of the output.
    pub y: f32,
}

/// Turns sums into 8-bit integers; made once, used for any number of products.
///
/// ```
/// use requant_core::{QuantType, requantize::{Requantizer, Rounding, Scales}};
/// let scales = Scales { a: 0.5, b: &[0.5, 0.25], y: 1.0 };
/// let relu = Requantizer::new(Rounding::HalfEvenFloat, scales, QuantType::U8, 10)?.with_clamp(10, 255)?;
/// assert_eq!([relu.apply(10, 0), relu.apply(10, 1), relu.apply(-10, 0)], [12, 11, 10]); // 2.5 and 1.25
/// # Ok::<(), requant_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Requantizer {
    multipliers: Multipliers,
    bias: Vec<i32>,
    zero_point: i32,
    limits: (i32, i32),
    dtype: QuantType,
}

/// One for all columns, or one for each.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Multipliers {
    Float(Vec<f32>),
    Fixed(Vec<Fixed>),
}

/// `mantissa * 2^(shift - 31)`, the mantissa within 2^30..2^31, or 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Fixed {
    mantissa: i32,
    shift: i32,
}

impl Requantizer {
    /// Without bias, clamped to the integers of `dtype`, which is int8 or uint8.
    ///
    /// # Errors
    /// A scale that is not finite and positive, a multiplier too large for f32 (or of 2^30 and more where it is fixed
    /// point), a zero point outside `dtype`, another `dtype`.
    pub fn new(rounding: Rounding, scales: Scales<'_>, dtype: QuantType, zero_point: i32) -> Result<Self> {
        if dtype.bits() != 8 {
            return Err(Error::Container {
                dtype,
                container: if dtype.signed() { QuantType::I8 } else { QuantType::U8 },
            });
        }
        for scales in [&[scales.a], &[scales.y], scales.b] {
            check_scales(scales)?;
        }
        let limits = (dtype.min(), dtype.max());
        check_within(&[zero_point], limits)?;
        let each = scales.b.iter().enumerate();
        let multipliers = match rounding {
            Rounding::HalfEvenFloat => {
                let float = |(index, &b): (usize, &f32)| {
                    let m = scales.a * b / scales.y;
                    let value = f64::from(m);
                    if m.is_finite() {
                        Ok(m)
                    } else {
                        Err(Error::Multiplier { value, index })
                    }
                };
                Multipliers::Float(each.map(float).collect::<Result<_>>()?)
            }
            Rounding::Gemmlowp => {
                let fixed = |(index, &b): (usize, &f32)| {
                    let value = f64::from(scales.a) * f64::from(b) / f64::from(scales.y);
                    Fixed::new(value).ok_or(Error::Multiplier { value, index })
                };
                Multipliers::Fixed(each.map(fixed).collect::<Result<_>>()?)
            }
        };
        Ok(Self {
            multipliers,
            bias: Vec::new(),
            zero_point,
            limits,
            dtype,
        })
    }

    /// Adds `bias`, `[1]` or `[columns]`, to the sums; its scale is that of the sums, `scale_a * scale_b`.
    #[must_use]
    pub fn with_bias(self, bias: Vec<i32>) -> Self {
        Self { bias, ..self }
    }

    /// Clamps results to `min..=max`: for ReLU from the zero point on, for ReLU6 up to the integer of 6.
    ///
    /// # Errors
    /// Ends outside the type, or swapped.
    pub fn with_clamp(self, min: i32, max: i32) -> Result<Self> {
        check_within(&[min, max], (self.dtype.min(), self.dtype.max()))?;
        check_within(&[min], (self.dtype.min(), max))?;
        Ok(Self {
            limits: (min, max),
            ..self
        })
    }

    /// The type of the results.
    pub fn dtype(&self) -> QuantType {
        self.dtype
    }

    /// The integer of one sum; `sum + bias` must not overflow.
    pub fn apply(&self, sum: i32, column: usize) -> i32 {
        match &self.multipliers {
            Multipliers::Float(m) => self.columns::<_, 1>(m, column).apply([sum])[0],
            Multipliers::Fixed(m) => self.columns::<_, 1>(m, column).apply([sum])[0],
        }
    }

    /// Largest magnitude of the bias.
    pub(crate) fn bias_magnitude(&self) -> u32 {
        self.bias.iter().map(|b| b.unsigned_abs()).max().unwrap_or(0)
    }

    /// Fails unless there is one multiplier and bias for all of `columns`, or one for each.
    pub(crate) fn check_columns(&self, columns: usize) -> Result<()> {
        let multipliers = match &self.multipliers {
            Multipliers::Float(m) => m.len(),
            Multipliers::Fixed(m) => m.len(),
        };
        check_one_or("scale of b", multipliers, columns)?;
        if self.bias.is_empty() {
            return Ok(());
        }
        check_one_or("bias", self.bias.len(), columns)
    }

    pub(crate) fn multipliers(&self) -> &Multipliers {
        &self.multipliers
    }

    /// What `W` columns need, beginning at `first`, with multipliers of this requantizer; those columns that do not
    /// exist may get anything.
    #[inline(always)]
    pub(crate) fn columns<M: Copy + Default, const W: usize>(&self, multipliers: &[M], first: usize) -> Columns<M, W> {
        Columns {
            multipliers: lanes(multipliers, first),
            bias: lanes(&self.bias, first),
            zero_point: self.zero_point,
            limits: self.limits,
        }
    }
}

/// The parameters of neighbouring columns.
pub struct Columns<M, const W: usize> {
    pub(crate) multipliers: [M; W],
    pub(crate) bias: [i32; W],
    pub(crate) zero_point: i32,
    pub(crate) limits: (i32, i32),
}

/// What each [`Rounding`] makes of sums.
pub(crate) trait Apply<const W: usize> {
    /// The integers of one sum in each column.
    fn apply(&self, sums: [i32; W]) -> [i32; W];
}

impl<const W: usize> Apply<W> for Columns<f32, W> {
    #[inline(always)]
    fn apply(&self, sums: [i32; W]) -> [i32; W] {
        let (min, max) = self.limits;
        let (lo, hi) = ((min - self.zero_point) as f32, (max - self.zero_point) as f32);
        let mut out = [0; W];
        for i in 0..W {
            let v = sums[i].wrapping_add(self.bias[i]) as f32 * self.multipliers[i];
            // The bounds are integers, so clamping first gives what clamping last would.
            let v = if v < lo { lo } else { v };
            let v = if v > hi { hi } else { v };
            out[i] = round_half_even(v) + self.zero_point;
        }
        out
    }
}

impl<const W: usize> Apply<W> for Columns<Fixed, W> {
    #[inline(always)]
    fn apply(&self, sums: [i32; W]) -> [i32; W] {
        let (min, max) = self.limits;
        let mut out = [0; W];
        for i in 0..W {
            let q = self.multipliers[i].multiply(sums[i].wrapping_add(self.bias[i]));
            out[i] = q.saturating_add(self.zero_point).clamp(min, max);
        }
        out
    }
}

/// Adding 1.5 * 2^23 leaves no bit for a fraction, so the addition itself rounds; exact for |v| <= 2^22.
#[inline(always)]
pub(crate) fn round_half_even(v: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    (v + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed()
}

impl Fixed {
    /// The nearest to `value`, which is not negative; none from 2^30 on.
    #[expect(clippy::cast_possible_truncation, reason = "a rounded mantissa is at most 2^31")]
    fn new(value: f64) -> Option<Self> {
        // value = fraction * 2^shift with the fraction in [0.5, 1): a product of f32 scales is normal in f64.
        const EXPONENT: u64 = 0x7ff << 52;
        let mut shift = ((value.to_bits() & EXPONENT) >> 52) as i32 - 1022;
        let fraction = f64::from_bits((value.to_bits() & !EXPONENT) | (1022 << 52));
        let mut mantissa = (fraction * 2f64.powi(31)).round() as i64;
        if mantissa == 1 << 31 {
            mantissa >>= 1;
            shift += 1;
        }
        match shift {
            ..-31 => Some(Self::default()), // less than half of 1, whatever the sum
            -31..=30 => Some(Self {
                mantissa: mantissa as i32,
                shift,
            }),
            _ => None,
        }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "clamped, and the high half of a product")]
    fn multiply(self, sum: i32) -> i32 {
        let shifted = (i64::from(sum) << self.shift.max(0)).clamp(i64::from(i32::MIN), i64::from(i32::MAX));
        let product = shifted * i64::from(self.mantissa);
        let nudge = if product >= 0 { 1 << 30 } else { 1 - (1 << 30) };
        let high = ((product + nudge) / (1 << 31)) as i32;
        let right = (-self.shift).max(0);
        let mask = ((1i64 << right) - 1) as i32;
        let threshold = (mask >> 1) + i32::from(high < 0);
        (high >> right) + i32::from((high & mask) > threshold)
    }
}

/// The values from `first` on, or the only one in all lanes; defaults beyond.
#[inline(always)]
pub(crate) fn lanes<T: Copy + Default, const W: usize>(values: &[T], first: usize) -> [T; W] {
    if let [only] = values {
        return [*only; W];
    }
    let rest = values.get(first..).unwrap_or(&[]);
    if let Some(full) = rest.first_chunk() {
        return *full;
    }
    let mut lanes = [T::default(); W];
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = *value;
    }
    lanes
}

/// Fails unless `got` is 1 or `expected`.
pub(crate) fn check_one_or(what: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == 1 || got == expected {
        Ok(())
    } else {
        Err(Error::Length { what, expected, got })
    }
}

/// Fails unless all scales are finite and positive.
pub(crate) fn check_scales(scales: &[f32]) -> Result<()> {
    match scales.iter().position(|s| !(s.is_finite() && *s > 0.0)) {
        None => Ok(()),
        Some(index) => Err(Error::Scale {
            value: scales[index],
            index,
        }),
    }
}

/// Fails unless all integers lie within the limits.
pub(crate) fn check_within(values: &[i32], (min, max): (i32, i32)) -> Result<()> {
    match values.iter().position(|z| !(min..=max).contains(z)) {
        None => Ok(()),
        Some(index) => Err(Error::ZeroPoint {
            value: values[index],
            index,
            min,
            max,
        }),
    }
}
