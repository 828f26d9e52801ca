//! The definition of the inner loops of low-bit weight quantization, in plain Rust.

use std::ops::Range;

use super::low_bit::{Columns, Fit, Grids, LowBitKernel, Split, Weighted};
use crate::weights::Grid;

pub(super) struct Generic;

#[expect(clippy::unnecessary_wraps, reason = "the signature of every probe")]
pub(super) fn probe() -> Option<&'static dyn LowBitKernel> {
    Some(&Generic)
}

impl LowBitKernel for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn turn(&self, from: Columns<'_>, pitch: usize, to: &mut [f32]) {
        turn(from, 0..from.rows, 0..from.columns, pitch, to);
    }

    fn ranges(&self, x: &[f32], run: usize, lo: &mut [f32], hi: &mut [f32]) -> bool {
        ranges(x, run, lo, hi)
    }

    fn encode(&self, x: &[f32], grids: Grids<'_>, bits: u32, out: &mut [u8]) {
        encode(x, grids, bits as usize, out);
    }

    fn errors(&self, block: Weighted<'_>, grids: &[Grid], limits: (f32, f32), out: &mut [f32]) {
        for (grid, out) in grids.iter().zip(out) {
            let mut error = [0f32; 8];
            for (x, weights) in block.x.iter().zip(block.weights) {
                for i in 0..8 {
                    let off = x[i] - steps(x[i], *grid, limits) * grid.scale;
                    error[i] += weights[i] * (off * off);
                }
            }
            *out = sum(error);
        }
    }

    fn fit(&self, block: Weighted<'_>, grids: &[Grid], limits: (f32, f32), out: &mut [Fit]) {
        fit(block, grids, limits, out);
    }

    fn split(&self, block: Weighted<'_>, grid: Grid, beta: f32, limits: (f32, f32)) -> Split {
        split(block, grid, beta, limits)
    }
}

/// Floats to a cache line.
pub(super) const LINE: usize = 16;

/// What [`LowBitKernel::turn`] writes, of some rows and columns: a line at a time, from lines that are read for the
/// next columns again.
pub(super) fn turn(from: Columns<'_>, rows: Range<usize>, columns: Range<usize>, pitch: usize, to: &mut [f32]) {
    for first in rows.clone().step_by(LINE) {
        for column in columns.clone() {
            for row in first..rows.end.min(first + LINE) {
                to[column * pitch + row] = from.values[row * from.pitch + column];
            }
        }
    }
}

/// What [`LowBitKernel::ranges`] finds.
pub(super) fn ranges(x: &[f32], run: usize, lo: &mut [f32], hi: &mut [f32]) -> bool {
    let mut finite = true;
    for ((run, lo), hi) in x.chunks(run).zip(lo).zip(hi) {
        (*lo, *hi) = (f32::INFINITY, f32::NEG_INFINITY);
        for v in run {
            finite &= v.is_finite();
            *lo = lo.min(*v);
            *hi = hi.max(*v);
        }
    }
    finite
}

/// What [`LowBitKernel::encode`] writes.
pub(super) fn encode(x: &[f32], grids: Grids<'_>, bits: usize, out: &mut [u8]) {
    let per_byte = 8 / bits;
    out.fill(0);
    for (i, v) in x.iter().enumerate() {
        let (inverse, zero_point) = (grids.inverse[i / grids.run], grids.zero_point[i / grids.run]);
        let code = code(*v, inverse, zero_point, grids.limits);
        out[i / per_byte] |= code << (i % per_byte * bits);
    }
}

/// One integer.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the limits, within 0..=255"
)]
fn code(x: f32, inverse: f32, zero_point: f32, (least, most): (f32, f32)) -> u8 {
    // The sum is not negative, so that truncation is the floor.
    ((x * inverse + zero_point).clamp(least, most) + 0.499_999_97) as u8
}

/// Rounds numbers below 2^22 to integers, as their sum with this has no bits for fractions.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// What [`LowBitKernel::fit`] writes.
fn fit(block: Weighted<'_>, grids: &[Grid], limits: (f32, f32), out: &mut [Fit]) {
    for (grid, out) in grids.iter().zip(out) {
        let (mut l, mut ll, mut lx, mut error) = ([0f32; 8], [0f32; 8], [0f32; 8], [0f32; 8]);
        for (x, weights) in block.x.iter().zip(block.weights) {
            for i in 0..8 {
                let steps = steps(x[i], *grid, limits);
                let off = x[i] - steps * grid.scale;
                let weighted = weights[i] * steps;
                l[i] += weighted;
                ll[i] += weighted * steps;
                lx[i] += weighted * x[i];
                error[i] += weights[i] * (off * off);
            }
        }
        *out = Fit {
            l: sum(l),
            ll: sum(ll),
            lx: sum(lx),
            error: sum(error),
        };
    }
}

/// What [`LowBitKernel::split`] gives; compiled for each instruction set.
#[inline(always)]
pub(super) fn split(block: Weighted<'_>, grid: Grid, beta: f32, limits: (f32, f32)) -> Split {
    let (mut l, mut ll, mut lt, mut t, mut norm) = ([0f32; 8], [0f32; 8], [0f32; 8], [0f32; 8], [0f32; 8]);
    let (scale, inverse) = (grid.scale.abs(), grid.inverse.abs());
    for (x, weights) in block.x.iter().zip(block.weights) {
        for i in 0..8 {
            let steps = steps(x[i], grid, limits);
            let off = x[i] - steps * grid.scale;
            let root = off.abs().sqrt();
            let distance = off.abs() * inverse;
            let kept = distance - 1.0 / (distance.sqrt().sqrt() * beta);
            let kept = if kept > 0.0 { kept } else { 0.0 };
            let rest = x[i] - (kept * scale).copysign(off);
            let weighted = weights[i] * steps;
            l[i] += weighted;
            ll[i] += weighted * steps;
            lt[i] += weighted * rest;
            t[i] += weights[i] * rest;
            norm[i] += weights[i] * (root * root.sqrt());
        }
    }
    Split {
        l: sum(l),
        ll: sum(ll),
        lt: sum(lt),
        t: sum(t),
        norm: sum(norm),
    }
}

/// The distance of a value's integer from the zero point, ties to even.
#[inline(always)]
fn steps(x: f32, grid: Grid, (least, most): (f32, f32)) -> f32 {
    let level = x * grid.inverse + grid.zero_point;
    // Not f32::clamp, which asserts its bounds at each element.
    let level = if level < least { least } else { level };
    let level = if level > most { most } else { level };
    (level + ROUND) - ROUND - grid.zero_point
}

/// By halves, as vectors are added.
#[inline(always)]
fn sum(v: [f32; 8]) -> f32 {
    let [a, b, c, d] = [v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]];
    (a + c) + (b + d)
}
