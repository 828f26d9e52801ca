//! The definition of the inner loops of GPTQ, in plain Rust.

use super::feedback::{Columns, Factors, FeedbackKernel, LANES, LaneGrids, PANEL};

pub(super) struct Generic;

#[expect(clippy::unnecessary_wraps, reason = "the signature of every probe")]
pub(super) fn probe() -> Option<&'static dyn FeedbackKernel> {
    Some(&Generic)
}

impl FeedbackKernel for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn subtract(&self, left: &[[f64; PANEL]], right: &[[f64; PANEL]], out: &mut [[f64; PANEL]; PANEL]) {
        for (left, right) in left.iter().zip(right) {
            for (out, right) in out.iter_mut().zip(right) {
                for (out, left) in out.iter_mut().zip(left) {
                    *out = (-left).mul_add(*right, *out);
                }
            }
        }
    }

    fn solve(&self, triangle: &[f64], x: &mut [[f64; PANEL]]) {
        solve(triangle, x);
    }

    fn quantize(&self, columns: Columns<'_>, grids: &[LaneGrids], blocks: &[u32], limits: (f32, f32)) {
        quantize(columns, grids, blocks, limits);
    }

    fn relax(&self, carried: &mut [[f32; LANES]], factors: Factors<'_>) {
        relax(carried, factors);
    }
}

/// What [`FeedbackKernel::solve`] writes; compiled for each instruction set, as all below.
#[inline(always)]
pub(super) fn solve(triangle: &[f64], x: &mut [[f64; PANEL]]) {
    for (j, row) in triangle.chunks_exact(x.len()).enumerate() {
        let (before, rest) = x.split_at_mut(j);
        let mut sum = rest[0];
        for (x, d) in before.iter().zip(row) {
            for i in 0..PANEL {
                sum[i] = (-x[i]).mul_add(*d, sum[i]);
            }
        }
        rest[0] = sum.map(|sum| sum / row[j]);
    }
}

/// What [`FeedbackKernel::quantize`] writes.
#[inline(always)]
pub(super) fn quantize(columns: Columns<'_>, grids: &[LaneGrids], blocks: &[u32], (least, most): (f32, f32)) {
    let Columns {
        weights,
        carried,
        factors,
        codes,
    } = columns;
    for (j, weight) in weights.iter_mut().enumerate() {
        let grid = &grids[blocks[j] as usize];
        let (now, later) = carried[j..].split_at_mut(1);
        let mut levels = [0f32; LANES];
        for i in 0..LANES {
            let level = (weight[i] + now[0][i]) * grid.inverse[i] + grid.zero_point[i];
            // Not f32::clamp, which asserts its bounds at each element.
            let level = if level < least { least } else { level };
            let level = if level > most { most } else { level };
            // Not negative: whole numbers of a sum with the float below 1/2, as in the other kernels.
            let up = level + 0.499_999_97;
            let near = (up + ROUND) - ROUND;
            levels[i] = if near > up { near - 1.0 } else { near };
        }
        for i in 0..LANES {
            weight[i] -= (levels[i] - grid.zero_point[i]) * grid.scale[i];
        }
        codes[j] = levels.map(byte);
        for (carried, factor) in later.iter_mut().zip(&factors.values[j * factors.stride + j + 1..]) {
            for i in 0..LANES {
                carried[i] = weight[i].mul_add(*factor, carried[i]);
            }
        }
    }
}

/// What [`FeedbackKernel::relax`] writes.
#[inline(always)]
pub(super) fn relax(carried: &mut [[f32; LANES]], factors: Factors<'_>) {
    for j in 0..carried.len() {
        let (now, later) = carried[j..].split_at_mut(1);
        for (carried, factor) in later.iter_mut().zip(&factors.values[j * factors.stride + j + 1..]) {
            for i in 0..LANES {
                carried[i] = (-now[0][i]).mul_add(*factor, carried[i]);
            }
        }
    }
}

/// Rounds numbers below 2^22 to integers, as their sum with this has no bits for fractions.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// An integer within 0..=255.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the limits, within 0..=255"
)]
fn byte(level: f32) -> u8 {
    level as u8
}
