//! Observing an array that no cache holds, with each set of kernels, beside merely reading it. In values a second.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::cast_precision_loss, reason = "test data")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use requant_core::{
    kernels,
    stats::{Statistic, TensorStatistics},
};

const VALUES: usize = 1 << 24;

fn normal() -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 + 0.5) / (1 << 24) as f32
    };
    (0..VALUES)
        .map(|_| (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos())
        .collect()
}

/// The limit: every value is loaded, and little else.
fn read(x: &[f32]) -> [u32; 64] {
    let mut all = [0; 64];
    for group in x.as_chunks::<64>().0 {
        for (all, v) in all.iter_mut().zip(group) {
            *all |= v.to_bits();
        }
    }
    all
}

fn statistics(c: &mut Criterion) {
    let normal = normal();
    let relu: Vec<f32> = normal.iter().map(|v| v.max(0.0)).collect();
    let constant = vec![1.5; VALUES];

    let mut group = c.benchmark_group("statistics");
    group.throughput(Throughput::Elements(VALUES as u64)).sample_size(10);
    group.bench_function("read", |b| b.iter(|| read(black_box(&normal))));
    for (data, x) in [("normal", &normal), ("relu", &relu), ("constant", &constant)] {
        for kernels in kernels::available() {
            group.bench_function(format!("{data}/{}", kernels.name()), |b| {
                b.iter(|| {
                    let mut stats = TensorStatistics::default();
                    stats.observe_with(black_box(x), kernels);
                    stats
                });
            });
        }
    }
    group.finish();

    let mut group = c.benchmark_group("statistics/call");
    for len in [16, 256, 4096] {
        let mut stats = TensorStatistics::default();
        stats.observe(&normal);
        group.throughput(Throughput::Elements(len as u64));
        group.bench_function(len.to_string(), |b| b.iter(|| stats.observe(black_box(&normal[..len]))));
    }
    group.finish();

    let (mut a, mut b) = (TensorStatistics::default(), TensorStatistics::default());
    a.observe(&normal);
    b.observe(&relu);
    c.bench_function("statistics/merge", |bencher| bencher.iter(|| a.merge(black_box(&b))));
    c.bench_function("statistics/to_bytes", |b| b.iter(|| a.to_bytes()));
    let bytes = a.to_bytes();
    c.bench_function("statistics/from_bytes", |b| {
        b.iter(|| TensorStatistics::from_bytes(black_box(&bytes)))
    });
}

criterion_group!(benches, statistics);
criterion_main!(benches);
