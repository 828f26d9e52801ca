//! Rounding the weights of a layer by the error of its output, with and without smaller scales. In weights a second.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::cast_precision_loss, reason = "test data")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use requant_core::reconstruction::{Bounds, Moments, reconstruct};

const BOUNDS: Bounds = Bounds {
    magnitude: 127,
    pair: None,
};

/// Numbers in -1..1.
fn uniform(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// The second moments of `2k` random inputs, neighbours of which go up and down together.
fn moments(k: usize) -> Vec<f32> {
    let noise = uniform(2 * k * (k + 1));
    let mut moments = vec![0.0; k * k];
    for noise in noise.chunks_exact(k + 1) {
        let x: Vec<f32> = noise.windows(2).map(|pair| pair[0] + pair[1]).collect();
        for (row, a) in moments.chunks_exact_mut(k).zip(&x) {
            for (sum, b) in row.iter_mut().zip(&x) {
                *sum += a * b / (2 * k) as f32;
            }
        }
    }
    moments
}

fn reconstruction(c: &mut Criterion) {
    let mut group = c.benchmark_group("reconstruction");
    group.sample_size(10);
    for (n, k) in [(64, 27), (64, 576), (256, 1024)] {
        let (weights, moments) = (uniform(n * k), moments(k));
        group.throughput(Throughput::Elements((n * k) as u64));
        for search in [false, true] {
            let name = if search { "searched scales" } else { "given scales" };
            group.bench_function(BenchmarkId::new(name, format!("{n}x{k}")), |b| {
                let (mut scales, mut q) = (vec![1.0 / 127.0; n], vec![0; n * k]);
                b.iter(|| {
                    scales.fill(1.0 / 127.0);
                    let moments = Moments::new(&moments, 1, k).expect("second moments");
                    reconstruct(black_box(&weights), moments, &mut scales, BOUNDS, search, 1, &mut q)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, reconstruction);
criterion_main!(benches);
