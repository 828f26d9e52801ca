//! Convolution on every kernel, on one thread: GOPS read as `thrpt`, a multiplication and an addition being two.
#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    reason = "test data, and what a macro writes"
)]

mod peak;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use requant_core::{
    QuantParams, QuantType,
    arrays::{Bytes, BytesMut},
    conv::{Filters, Geometry, Images, PackedConv, conv2d},
    elementwise::{Addition, Table},
    gemm::Output,
    kernels::{
        depthwise::{self, DepthwiseKernel},
        gemm::{self, GemmKernel},
    },
    requantize::{Requantizer, Rounding, Scales},
};

/// Side and channels of the images, filters, their side, groups.
const LAYERS: [[usize; 5]; 6] = [
    [56, 64, 64, 3, 1],
    [14, 256, 256, 3, 1],
    [28, 128, 256, 1, 1],
    [112, 32, 32, 3, 32],
    [14, 256, 256, 3, 256],
    [28, 128, 128, 5, 128],
];

/// A multiplicative walk through the integers: spread evenly, and the same in each run.
fn spread(i: usize) -> u8 {
    (i.wrapping_mul(2_654_435_761) >> 13) as u8
}

/// Each kernel of the kind in question, beside any of the other.
fn kernels(groups: bool) -> Vec<(&'static dyn GemmKernel, &'static dyn DepthwiseKernel)> {
    let (gemm, depthwise) = (
        gemm::by_name("generic").unwrap(),
        depthwise::by_name("generic").unwrap(),
    );
    if groups {
        depthwise::available().map(|kernel| (gemm, kernel)).collect()
    } else {
        gemm::available().map(|kernel| (kernel, depthwise)).collect()
    }
}

fn convolutions(c: &mut Criterion) {
    for [side, channels, filters, kernel, groups] in LAYERS {
        let shape = [filters, channels / groups, kernel, kernel];
        let x: Vec<u8> = (0..side * side * channels).map(spread).collect();
        let w: Vec<u8> = (0..shape.iter().product()).map(spread).collect();
        let signed: Vec<i8> = w.iter().map(|v| v.cast_signed()).collect();
        let images = Images::new(Bytes::U8(&x), [1, side, side, channels], 128).unwrap();
        let geometry = Geometry {
            pads: [kernel / 2; 4],
            groups,
            ..Geometry::default()
        };
        let (mut sums, mut bytes) = (vec![0; side * side * filters], vec![0; side * side * filters]);
        let scale = vec![0.01; filters];
        let scales = Scales {
            a: 0.01,
            b: &scale,
            y: 1.0,
        };
        let to_u8 = Requantizer::new(Rounding::HalfEvenFloat, scales, QuantType::U8, 128).unwrap();
        let name = if groups == 1 { "conv" } else { "depthwise" };
        let mut group = c.benchmark_group(format!("{name}/{kernel}x{kernel}/{side}x{side}x{channels}to{filters}"));
        let operations = 2 * side * side * shape.iter().product::<usize>();
        group.throughput(Throughput::Elements(operations as u64));
        for (gemm, depthwise) in kernels(groups > 1) {
            for (name, data, zero_point) in [("u8s8", Bytes::I8(&signed), &[0]), ("u8u8", Bytes::U8(&w), &[121])] {
                let filters = Filters {
                    data,
                    shape,
                    zero_point,
                };
                let conv = PackedConv::with_kernels(gemm, depthwise, filters, geometry).unwrap();
                let id = |to| BenchmarkId::new(format!("{name} to {to}"), conv.kernel());
                group.bench_function(id("i32"), |b| {
                    b.iter(|| conv2d(images, &conv, Output::I32(&mut sums), 1).unwrap());
                });
                group.bench_function(id("u8"), |b| {
                    b.iter(|| conv2d(images, &conv, Output::U8(&mut bytes, &to_u8), 1).unwrap());
                });
            }
        }
    }
}

fn elementwise(c: &mut Criterion) {
    const LENGTH: usize = 1 << 16;
    let x: Vec<u8> = (0..LENGTH).map(spread).collect();
    let mut y = vec![0; LENGTH];
    let params = QuantParams {
        scale: 0.1,
        zero_point: 128,
    };
    let mut group = c.benchmark_group("elementwise");
    group.throughput(Throughput::Elements(LENGTH as u64));
    let add = Addition::new(QuantType::U8, params, params, params).unwrap();
    group.bench_function("add", |b| {
        b.iter(|| add.apply(Bytes::U8(&x), Bytes::U8(&x), BytesMut::U8(&mut y)).unwrap());
    });
    let table = Table::new(QuantType::U8, params, QuantType::U8, params, f32::tanh).unwrap();
    group.bench_function("look up", |b| {
        b.iter(|| table.apply(Bytes::U8(&x), BytesMut::U8(&mut y)).unwrap())
    });
}

fn limit(c: &mut Criterion) {
    let mut group = c.benchmark_group("conv");
    group.throughput(Throughput::Elements(peak::run()));
    group.bench_function("peak", |b| b.iter(peak::run));
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = limit, convolutions, elementwise
}
criterion_main!(benches);
