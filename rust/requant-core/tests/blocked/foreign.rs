//! A kernel of another shape, in plain Rust: 5 rows, 32 columns, as one for 512-bit vectors would have.

use requant_core::kernels::{
    blocked_gemm::{BlockedKernel, Panel, QuantizedTile, ZeroPoints},
    gemm::Tile,
};

const COLUMNS: usize = 32;

pub(crate) struct Foreign;

/// The integer of a panel at `k`, less its zero point, and its scale.
fn at(b: Panel<'_>, k: usize, j: usize) -> (i32, f32) {
    let byte = b.integers[(k / 8 * COLUMNS + j) * 4 + k % 4];
    let nibble = if k % 8 < 4 { byte & 15 } else { byte >> 4 };
    let slot = k / (8 * b.octets) * COLUMNS + j;
    let zero_point = match b.zero_points {
        ZeroPoints::Common(common) => common,
        ZeroPoints::Each(each) => each[slot],
    };
    (i32::from(nibble) - i32::from(zero_point), b.scales[slot])
}

fn length(b: Panel<'_>) -> usize {
    b.integers.len() / COLUMNS / 4 * 8
}

impl BlockedKernel for Foreign {
    fn name(&self) -> &'static str {
        "foreign"
    }

    fn tile(&self) -> Tile {
        Tile {
            rows: 5,
            columns: COLUMNS,
            group: 4,
        }
    }

    fn multiply_int8(&self, rows: usize, a: QuantizedTile<'_>, b: Panel<'_>, sums: &mut [f32]) {
        for i in 0..rows {
            for j in 0..COLUMNS {
                for first in (0..length(b)).step_by(8 * b.octets) {
                    let mut dot = 0;
                    for k in first..length(b).min(first + 8 * b.octets) {
                        let value = a.groups[k / 4 * rows + i].to_le_bytes()[k % 4].cast_signed();
                        dot += i32::from(value) * at(b, k, j).0;
                    }
                    let real = dot as f32 * a.scales[first / (8 * b.octets) * rows + i];
                    sums[i * COLUMNS + j] = real.mul_add(at(b, first, j).1, sums[i * COLUMNS + j]);
                }
            }
        }
    }

    fn dequantize(&self, b: Panel<'_>, out: &mut [f32]) {
        for (at_k, out) in out.chunks_exact_mut(COLUMNS).enumerate().take(length(b)) {
            for (j, out) in out.iter_mut().enumerate() {
                let (centred, scale) = at(b, at_k, j);
                *out = centred as f32 * scale;
            }
        }
    }

    fn multiply_f32(&self, rows: usize, a: &[f32], b: &[f32], sums: &mut [f32]) {
        for (a, b) in a.chunks_exact(rows).zip(b.chunks_exact(COLUMNS)) {
            for (sums, a) in sums.chunks_exact_mut(COLUMNS).zip(a) {
                sums.iter_mut().zip(b).for_each(|(sum, b)| *sum = a.mul_add(*b, *sum));
            }
        }
    }
}
