//! A kernel that no machine has.

use std::ops::Range;

use requant_core::{
    arrays::Matrix,
    kernels::gemm::{GemmKernel, Tile},
};

/// A layout unlike any other: what surrounds the kernels must not know theirs. It wants A unsigned, as `vpdpbusd` does.
pub(crate) struct Foreign;

impl GemmKernel for Foreign {
    fn name(&self) -> &'static str {
        "foreign"
    }

    fn tile(&self) -> Tile {
        Tile {
            rows: 3,
            columns: 24,
            group: 4,
        }
    }

    fn offset(&self, signed: bool) -> i32 {
        if signed { 128 } else { 0 }
    }

    fn pack_rows(&self, a: Matrix<'_>, rows: Range<usize>, out: &mut [i32]) {
        let offset = self.offset(a.dtype().signed());
        for (q, quads) in out.chunks_mut(rows.len()).enumerate() {
            for (quad, row) in quads.iter_mut().zip(rows.clone()) {
                let byte = |t| {
                    if 4 * q + t < a.columns() {
                        a.get(row, 4 * q + t) + offset
                    } else {
                        0
                    }
                };
                *quad = i32::from_le_bytes([0, 1, 2, 3].map(|t| u8::try_from(byte(t)).unwrap()));
            }
        }
    }

    fn multiply(&self, rows: usize, a: &[i32], panel: &[i8], sums: &mut [i32]) {
        for i in 0..rows {
            for j in 0..24 {
                sums[i * 24 + j] = 0;
                for q in 0..a.len() / rows {
                    for (t, byte) in a[q * rows + i].to_le_bytes().into_iter().enumerate() {
                        sums[i * 24 + j] += i32::from(byte) * i32::from(panel[(q * 24 + j) * 4 + t]);
                    }
                }
            }
        }
    }
}
