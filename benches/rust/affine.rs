//! Quantize, dequantize and slice ranges on one thread: in the cache (64 Ki) and beside it (4 Mi), in each granularity,
//! and other types, formats and formulas per tensor.
#![allow(missing_docs, reason = "criterion's macros define undocumented functions")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use requant_core::{
    Granularity, QuantType,
    affine::{Affine, Rounding, slice_ranges},
    arrays::{Reals, RealsMut},
};

const SHAPES: [[usize; 2]; 2] = [[256, 256], [2048, 2048]];
const GRANULARITIES: [(&str, Granularity); 5] = [
    ("tensor", Granularity::PerTensor),
    ("channel-0", Granularity::PerChannel { axis: 0 }),
    ("channel-1", Granularity::PerChannel { axis: 1 }),
    (
        "block-0-32",
        Granularity::PerBlock {
            axis: 0,
            block_size: 32,
        },
    ),
    (
        "block-1-32",
        Granularity::PerBlock {
            axis: 1,
            block_size: 32,
        },
    ),
];

fn affine(c: &mut Criterion) {
    for shape in SHAPES {
        let elements: usize = shape.iter().product();
        // A multiplicative walk through the integers: spread evenly, and the same in each run.
        let spread = |i: usize| (i.wrapping_mul(2_654_435_761) % 2000) as f32 / 100.0 - 10.0;
        let x: Vec<f32> = (0..elements).map(spread).collect();
        let (mut q, mut y) = (vec![0u8; elements], vec![0.0f32; elements]);
        let mut group = c.benchmark_group("affine");
        group.throughput(Throughput::Elements(elements as u64));
        for (name, granularity) in GRANULARITIES {
            let slices = slice_ranges(&x, &shape, granularity).unwrap().len();
            let (scale, zero_point) = (vec![0.1; slices], vec![128; slices]);
            let map = Affine::new(&shape, granularity, QuantType::U8, false, &scale, &zero_point)
                .unwrap()
                .with_threads(1);
            let id = |what: &str| BenchmarkId::new(format!("{what}/{name}"), elements);
            group.bench_function(id("quantize"), |b| b.iter(|| map.quantize(&x, &mut q)));
            group.bench_function(id("dequantize"), |b| b.iter(|| map.dequantize(&q, &mut y)));
            group.bench_function(id("fake_quantize"), |b| b.iter(|| map.fake_quantize(&x, &mut y)));
            group.bench_function(id("slice_ranges"), |b| b.iter(|| slice_ranges(&x, &shape, granularity)));
        }
        let id = |what: &str| BenchmarkId::new(what, elements);
        let map = |dtype| {
            let map = Affine::new(&shape, Granularity::PerTensor, dtype, false, &[0.1], &[0]).unwrap();
            map.with_threads(1)
        };
        let (wide, narrow) = (map(QuantType::I16), map(QuantType::U4));
        let (mut words, mut halves, mut mask) = (vec![0i16; elements], vec![0u16; elements], vec![false; elements]);
        group.bench_function(id("int16/quantize"), |b| b.iter(|| wide.quantize(&x, &mut words)));
        group.bench_function(id("float16/dequantize"), |b| {
            b.iter(|| wide.dequantize(&words, RealsMut::F16(&mut halves)))
        });
        group.bench_function(id("float16/quantize"), |b| {
            b.iter(|| wide.quantize(Reals::F16(&halves), &mut words))
        });
        group.bench_function(id("mask"), |b| {
            b.iter(|| wide.fake_quantize_with_mask(&x, &mut y, &mut mask))
        });
        let packed = &mut q[..elements / 2];
        group.bench_function(id("packed/quantize"), |b| b.iter(|| narrow.quantize_packed(&x, packed)));
        group.bench_function(id("packed/dequantize"), |b| {
            b.iter(|| narrow.dequantize_packed(packed, &mut y))
        });
        for rounding in Rounding::ALL {
            let map = wide.clone().with_rounding(rounding);
            group.bench_function(id(rounding.name()), |b| b.iter(|| map.quantize(&x, &mut words)));
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = affine
}
criterion_main!(benches);
