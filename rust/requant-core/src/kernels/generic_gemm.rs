//! The definition of the integer GEMM's inner loops, in plain Rust.

use std::ops::Range;

use super::gemm::{GemmKernel, Tile};
use crate::arrays::Matrix;

/// Rows of A to a tile: with 16 columns the sums fill 16 registers of 4 lanes.
const ROWS: usize = 4;
const COLUMNS: usize = 16;

pub(super) struct Generic;

#[expect(clippy::unnecessary_wraps, reason = "the signature of every probe")]
pub(super) fn probe() -> Option<&'static dyn GemmKernel> {
    Some(&Generic)
}

impl GemmKernel for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn tile(&self) -> Tile {
        Tile {
            rows: ROWS,
            columns: COLUMNS,
            group: 1,
        }
    }

    fn pack_rows(&self, a: Matrix<'_>, rows: Range<usize>, out: &mut [i32]) {
        let count = rows.len();
        for (i, row) in rows.enumerate() {
            for (k, out) in out.iter_mut().skip(i).step_by(count).enumerate() {
                *out = a.get(row, k);
            }
        }
    }

    fn multiply(&self, rows: usize, a: &[i32], panel: &[i8], sums: &mut [i32]) {
        match rows {
            1 => multiply::<1>(a, panel, sums),
            2 => multiply::<2>(a, panel, sums),
            3 => multiply::<3>(a, panel, sums),
            _ => multiply::<ROWS>(a, panel, sums),
        }
    }
}

fn multiply<const R: usize>(a: &[i32], panel: &[i8], out: &mut [i32]) {
    let mut sums = [[0i32; COLUMNS]; R];
    for (a, b) in a.as_chunks::<R>().0.iter().zip(panel.as_chunks::<COLUMNS>().0) {
        for (sums, &a) in sums.iter_mut().zip(a) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = sum.wrapping_add(a.wrapping_mul(i32::from(b)));
            }
        }
    }
    out.copy_from_slice(sums.as_flattened());
}
