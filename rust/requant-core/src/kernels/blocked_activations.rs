//! Real activations, and their integers.

use std::ops::Range;

use super::blocked_gemm::OCTET;
use crate::{Error, Result, requantize::round_half_even};

/// What becomes of A before it is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// Each block along K of each row becomes int8 with a scale of its own, `absmax / 127`. The sums of a block's
    /// products are exact, and then scaled and added in f32: what onnxruntime does at `accuracy_level` 4.
    #[default]
    Int8PerBlock,
    /// The same with one scale to a row, which costs precision where a row has outliers.
    Int8PerRow,
    /// Nothing: weights become reals, and products are added in f32.
    Float,
}

impl Activations {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Int8PerBlock, Self::Int8PerRow, Self::Float];

    /// Its name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8PerBlock => "int8",
            Self::Int8PerRow => "int8_per_row",
            Self::Float => "float",
        }
    }
}

impl std::str::FromStr for Activations {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|a| a.name() == name)
            .ok_or_else(|| Error::UnknownName {
                what: "activations",
                name: name.to_owned(),
                known: Self::ALL.map(Self::name).join(", "),
            })
    }
}

/// The largest block of weights.
const LONGEST: usize = 256;

/// Rows of A, cut to some whole blocks of K.
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    /// `[M, K]`
    pub(crate) a: &'a [f32],
    pub(crate) k: usize,
    pub(crate) rows: Range<usize>,
    pub(crate) columns: Range<usize>,
    pub(crate) block_size: usize,
    pub(crate) activations: Activations,
}

impl<'a> Rows<'a> {
    fn row(&self, row: usize) -> &'a [f32] {
        &self.a[row * self.k..(row + 1) * self.k]
    }

    /// Writes the reals as `[columns][rows]`.
    pub(crate) fn transpose(&self, out: &mut [f32]) {
        let count = self.rows.len();
        for (i, row) in self.rows.clone().enumerate() {
            let row = &self.row(row)[self.columns.clone()];
            for (out, value) in out.chunks_exact_mut(count).zip(row) {
                out[i] = *value;
            }
        }
    }
}

/// Where the integers of rows go; `kernels/blocked_gemm.rs` says in which order.
#[derive(Debug)]
pub struct Quantized<'a> {
    pub(crate) groups: &'a mut [i32],
    pub(crate) scales: &'a mut [f32],
    pub(crate) corrections: &'a mut [i32],
    /// What makes sums of integers corrections.
    pub(crate) factor: i32,
}

/// Quantizes symmetrically: `scale = absmax / 127`, `q = clamp(round_half_even(x / scale), -127, 127)`.
///
/// Written once, without intrinsics; a kernel has it compiled for its instruction set.
#[inline(always)]
pub fn quantize(from: Rows<'_>, to: Quantized<'_>) {
    let count = from.rows.len();
    let mut buffer = [0i8; LONGEST];
    for (i, row) in from.rows.clone().enumerate() {
        let row = from.row(row);
        let common = match from.activations {
            Activations::Int8PerRow => Some(scale(row)),
            _ => None,
        };
        let mut groups = to.groups.chunks_exact_mut(count);
        for (b, block) in row[from.columns.clone()].chunks(from.block_size).enumerate() {
            let scale = common.unwrap_or_else(|| scale(block));
            let (integers, padding) = buffer.split_at_mut(block.len());
            round(block, scale, integers);
            let mut sum = 0;
            for q in &*integers {
                sum += i32::from(*q);
            }
            to.scales[b * count + i] = scale;
            to.corrections[b * count + i] = to.factor * sum;
            // Only the last block is short.
            let length = block.len().next_multiple_of(OCTET);
            padding[..length - block.len()].fill(0);
            for (quad, group) in buffer[..length].as_chunks::<4>().0.iter().zip(&mut groups) {
                group[i] = i32::from_le_bytes(quad.map(i8::cast_unsigned));
            }
        }
    }
}

/// NaN where one of the values is not finite.
#[inline(always)]
fn scale(x: &[f32]) -> f32 {
    // Without its sign, a float's bits are ordered as its value, and those of NaN are above all others.
    let mut largest = 0;
    for v in x {
        largest = largest.max(v.to_bits() & (u32::MAX >> 1));
    }
    let largest = f32::from_bits(largest);
    if largest.is_finite() { largest / 127.0 } else { f32::NAN }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "within -127..=127")]
fn round(x: &[f32], scale: f32, out: &mut [i8]) {
    // Zeros, and what is too small to have a scale, become 0.
    let divisor = if scale > 0.0 { scale } else { f32::INFINITY };
    for (q, v) in out.iter_mut().zip(x) {
        let v = v / divisor;
        // In this form NaN becomes -127; its scale is NaN too.
        let v = if v > -127.0 { v } else { -127.0 };
        let v = if v < 127.0 { v } else { 127.0 };
        *q = round_half_even(v) as i8;
    }
}
