//! The definition of the depthwise convolution's inner loops, in plain Rust.

use super::depthwise::{DepthwiseKernel, LANES, ORDER, Pairs, Row, pair};
use crate::arrays::{Bytes, Integer};

pub(super) struct Generic;

#[expect(clippy::unnecessary_wraps, reason = "the signature of every probe")]
pub(super) fn probe() -> Option<&'static dyn DepthwiseKernel> {
    Some(&Generic)
}

impl DepthwiseKernel for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn interleave(&self, lines: [Option<Bytes<'_>>; 2], step: usize, zero_point: i32, out: &mut [Pairs]) {
        let [upper, lower] = lines;
        for (i, pairs) in out.iter_mut().enumerate() {
            let (upper, lower) = (pixel(upper, i * step, zero_point), pixel(lower, i * step, zero_point));
            for (to, c) in pairs.iter_mut().zip(ORDER) {
                *to = pair(upper[c], lower[c]);
            }
        }
    }

    fn multiply(&self, Row { x, taps, weights }: Row<'_>, sums: &mut [[i32; LANES]]) {
        for (i, sums) in sums.iter_mut().enumerate() {
            // Brought into the order of channels at the end, so that the inner loop becomes vectors.
            let mut lanes = [0; LANES];
            for (tap, weights) in taps.iter().zip(weights) {
                for ((lane, &x), &w) in lanes.iter_mut().zip(&x[tap + i]).zip(weights) {
                    *lane += low(x) * low(w) + (x >> 16) * (w >> 16);
                }
            }
            for (c, lane) in ORDER.into_iter().zip(lanes) {
                sums[c] = lane;
            }
        }
    }
}

/// The channels from `first` on, less the zero point.
fn pixel(line: Option<Bytes<'_>>, first: usize, zero_point: i32) -> [i32; LANES] {
    match line {
        None => [0; LANES],
        Some(Bytes::U8(line)) => widen(&line[first..], zero_point),
        Some(Bytes::I8(line)) => widen(&line[first..], zero_point),
    }
}

fn widen<T: Integer>(line: &[T], zero_point: i32) -> [i32; LANES] {
    let mut wide = [0; LANES];
    for (wide, value) in wide.iter_mut().zip(line) {
        *wide = value.widen() - zero_point;
    }
    wide
}

/// The low half, signed.
fn low(pair: i32) -> i32 {
    pair << 16 >> 16
}
