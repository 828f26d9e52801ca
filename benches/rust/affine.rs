//! Quantize, dequantize and slice ranges: in the cache (64 Ki) and beside it (4 Mi), in each granularity.
#![allow(missing_docs, reason = "criterion's macros define undocumented functions")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use requant_core::{
    Granularity, QuantType,
    affine::{Affine, slice_ranges},
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
            let map = Affine::new(&shape, granularity, QuantType::U8, false, &scale, &zero_point).unwrap();
            let id = |what: &str| BenchmarkId::new(format!("{what}/{name}"), elements);
            group.bench_function(id("quantize"), |b| b.iter(|| map.quantize(&x, &mut q)));
            group.bench_function(id("dequantize"), |b| b.iter(|| map.dequantize(&q, &mut y)));
            group.bench_function(id("fake_quantize"), |b| b.iter(|| map.fake_quantize(&x, &mut y)));
            group.bench_function(id("slice_ranges"), |b| b.iter(|| slice_ranges(&x, &shape, granularity)));
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = affine
}
criterion_main!(benches);
