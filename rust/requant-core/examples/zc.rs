#![allow(warnings)]
use requant_core::{
    QuantType,
    arrays::Bytes,
    conv::{Filters, Geometry, Images, PackedConv, conv2d},
    gemm::Output,
    kernels::{depthwise, gemm},
    requantize::{Requantizer, Rounding, Scales},
};
use std::time::Instant;
fn spread(i: usize) -> u8 {
    (i.wrapping_mul(2_654_435_761) >> 13) as u8
}
fn main() {
    for [side, channels, filters, kernel, groups] in [
        [56, 64, 64, 3, 1],
        [14, 256, 256, 3, 1],
        [28, 128, 256, 1, 1],
        [112, 32, 32, 3, 32],
        [14, 256, 256, 3, 256],
        [28, 128, 128, 5, 128],
    ] {
        let shape = [filters, channels / groups, kernel, kernel];
        let x: Vec<u8> = (0..side * side * channels).map(spread).collect();
        let w: Vec<i8> = (0..shape.iter().product()).map(|i| spread(i).cast_signed()).collect();
        let images = Images::new(Bytes::U8(&x), [1, side, side, channels], 128).unwrap();
        let geometry = Geometry {
            pads: [kernel / 2; 4],
            groups,
            ..Geometry::default()
        };
        let mut bytes = vec![0; side * side * filters];
        let scale = vec![0.01; filters];
        let to_u8 = Requantizer::new(
            Rounding::HalfEvenFloat,
            Scales {
                a: 0.01,
                b: &scale,
                y: 1.0,
            },
            QuantType::U8,
            128,
        )
        .unwrap();
        let gs: Vec<_> = gemm::available().filter(|k| k.name() != "generic").collect();
        let ds: Vec<_> = depthwise::available().filter(|k| k.name() != "generic").collect();
        let packs: Vec<_> = if groups > 1 {
            ds.iter()
                .map(|d| {
                    (
                        d.name(),
                        PackedConv::with_kernels(
                            gs[0],
                            *d,
                            Filters {
                                data: Bytes::I8(&w),
                                shape,
                                zero_point: &[0],
                            },
                            geometry,
                        )
                        .unwrap(),
                    )
                })
                .collect()
        } else {
            gs.iter()
                .map(|g| {
                    (
                        g.name(),
                        PackedConv::with_kernels(
                            *g,
                            ds[0],
                            Filters {
                                data: Bytes::I8(&w),
                                shape,
                                zero_point: &[0],
                            },
                            geometry,
                        )
                        .unwrap(),
                    )
                })
                .collect::<Vec<_>>()
        };
        let mut best = vec![f64::MAX; packs.len()];
        for _ in 0..40 {
            for (i, p) in packs.iter().enumerate() {
                for _ in 0..3 {
                    let t = Instant::now();
                    conv2d(images, &p.1, Output::U8(&mut bytes, &to_u8), 1).unwrap();
                    best[i] = best[i].min(t.elapsed().as_secs_f64());
                }
            }
        }
        print!("{kernel}x{kernel} {side} {channels}->{filters}:");
        let ops = 2 * side * side * shape.iter().product::<usize>();
        for (i, p) in packs.iter().enumerate() {
            print!("  {} {:.0} ({:.1}us)", p.0, ops as f64 / best[i] / 1e9, best[i] * 1e6);
        }
        println!();
    }
}
