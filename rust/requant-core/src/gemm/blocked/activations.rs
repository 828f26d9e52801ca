//! Real activations, and their integers.

use std::ops::Range;

use super::Activations;
use crate::{kernels::blocked_gemm::OCTET, requantize::round_half_even};

/// The largest block of weights.
const LONGEST: usize = 256;

/// Rows of A, cut to some whole blocks of K.
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    /// `[M, K]`
    pub(super) a: &'a [f32],
    pub(super) k: usize,
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    pub(super) block_size: usize,
    pub(super) activations: Activations,
}

impl<'a> Rows<'a> {
    fn row(&self, row: usize) -> &'a [f32] {
        &self.a[row * self.k..(row + 1) * self.k]
    }

    /// Writes the reals as `[columns][rows]`.
    pub(super) fn transpose(&self, out: &mut [f32]) {
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
    pub(super) groups: &'a mut [i32],
    pub(super) scales: &'a mut [f32],
    pub(super) corrections: &'a mut [i32],
    /// What makes sums of integers corrections.
    pub(super) factor: i32,
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
