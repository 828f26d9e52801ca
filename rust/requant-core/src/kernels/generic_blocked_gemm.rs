//! The definition of the inner loops of products with block-quantized weights, in plain Rust.

use super::{
    blocked_gemm::{BlockedKernel, OCTET, Panel, QuantizedTile, ZeroPoints},
    gemm::Tile,
};

const ROWS: usize = 4;
const COLUMNS: usize = 16;

pub(super) struct Generic;

#[expect(clippy::unnecessary_wraps, reason = "the signature of every probe")]
pub(super) fn probe() -> Option<&'static dyn BlockedKernel> {
    Some(&Generic)
}

impl BlockedKernel for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn tile(&self) -> Tile {
        Tile {
            rows: ROWS,
            columns: COLUMNS,
            group: 4,
        }
    }

    fn multiply_int8(&self, rows: usize, a: QuantizedTile<'_>, b: Panel<'_>, sums: &mut [f32]) {
        let (sums, _) = sums.as_chunks_mut::<COLUMNS>();
        let blocks = b.integers.chunks(b.octets * COLUMNS * 4);
        let groups = a.groups.chunks(2 * b.octets * rows);
        let scales = b.scales.as_chunks::<COLUMNS>().0;
        let rows_of_a = groups
            .zip(a.scales.chunks_exact(rows))
            .zip(a.corrections.chunks_exact(rows));
        for (at, ((integers, scales), ((groups, a_scales), corrections))) in
            blocks.zip(scales).zip(rows_of_a).enumerate()
        {
            let factors = match b.zero_points {
                ZeroPoints::Common(_) => [1; COLUMNS],
                ZeroPoints::Each(each) => each.as_chunks().0[at],
            };
            for (i, sums) in sums.iter_mut().enumerate().take(rows) {
                let mut dots = [0i32; COLUMNS];
                for (dot, factor) in dots.iter_mut().zip(factors) {
                    *dot = i32::from(factor) * corrections[i];
                }
                let (octets, _) = integers.as_chunks::<{ COLUMNS * 4 }>();
                for (octet, groups) in octets.iter().zip(groups.chunks_exact(2 * rows)) {
                    let (low, high) = (groups[i].to_le_bytes(), groups[rows + i].to_le_bytes());
                    for (dot, bytes) in dots.iter_mut().zip(octet.as_chunks::<4>().0) {
                        for t in 0..4 {
                            *dot += i32::from(bytes[t] & 15) * i32::from(low[t].cast_signed())
                                + i32::from(bytes[t] >> 4) * i32::from(high[t].cast_signed());
                        }
                    }
                }
                for ((sum, dot), scale) in sums.iter_mut().zip(dots).zip(scales) {
                    *sum = (dot as f32 * a_scales[i]).mul_add(*scale, *sum);
                }
            }
        }
    }

    fn dequantize(&self, b: Panel<'_>, out: &mut [f32]) {
        let blocks = b.integers.chunks(b.octets * COLUMNS * 4);
        let outs = out.chunks_mut(b.octets * OCTET * COLUMNS);
        for (at, ((integers, scales), out)) in blocks.zip(b.scales.as_chunks::<COLUMNS>().0).zip(outs).enumerate() {
            let zero_points = match b.zero_points {
                ZeroPoints::Common(zero_point) => [zero_point; COLUMNS],
                ZeroPoints::Each(each) => each.as_chunks().0[at],
            };
            let (dwords, _) = integers.as_chunks::<4>();
            let (rows, _) = out.as_chunks_mut::<COLUMNS>();
            for (octet, rows) in dwords
                .as_chunks::<COLUMNS>()
                .0
                .iter()
                .zip(rows.as_chunks_mut::<OCTET>().0)
            {
                for (k, row) in rows.iter_mut().enumerate() {
                    let shift = k % 4 * 8 + k / 4 * 4;
                    for j in 0..COLUMNS {
                        let q = u32::from_le_bytes(octet[j]) >> shift & 15;
                        row[j] = (q.cast_signed() - i32::from(zero_points[j])) as f32 * scales[j];
                    }
                }
            }
        }
    }

    fn multiply_f32(&self, rows: usize, a: &[f32], b: &[f32], sums: &mut [f32]) {
        for (a, b) in a.chunks_exact(rows).zip(b.as_chunks::<COLUMNS>().0) {
            for (sums, a) in sums.as_chunks_mut::<COLUMNS>().0.iter_mut().zip(a) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = a.mul_add(*b, *sum);
                }
            }
        }
    }
}
