//! Choosing a range: each method in its asymmetric (uint8) and symmetric (int8) form, and all ten together.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::cast_precision_loss, reason = "test data")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use requant_core::{
    QuantScheme, QuantType,
    calibration::{self, METHODS},
    stats::{Statistic, TensorStatistics},
};

const FORMS: [(&str, QuantType, bool); 2] = [("asymmetric", QuantType::U8, false), ("symmetric", QuantType::I8, true)];

/// A million values: N(0, 1), its positive part, a Laplacian, and N(0, 1) with one value at 50.
fn tensors() -> [(&'static str, TensorStatistics); 4] {
    let mut state = 1u64;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 + 0.5) / (1 << 24) as f32
    };
    let pairs: Vec<(f32, f32)> = (0..1_000_000).map(|_| (uniform(), uniform())).collect();
    let normal: Vec<f32> = pairs
        .iter()
        .map(|(u, v)| (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos())
        .collect();
    let relu = normal.iter().map(|v| v.max(0.0)).collect();
    let laplace = pairs.iter().map(|(u, v)| u.ln() * (v - 0.5).signum()).collect();
    let mut outlier = normal.clone();
    outlier[0] = 50.0;
    [
        ("normal", normal),
        ("relu", relu),
        ("laplace", laplace),
        ("outlier", outlier),
    ]
    .map(|(name, x)| {
        let mut stats = TensorStatistics::default();
        stats.observe(&x);
        (name, stats)
    })
}

fn all(stats: &TensorStatistics) {
    for (_, dtype, symmetric) in FORMS {
        for method in METHODS {
            one(stats, method.name, dtype, symmetric);
        }
    }
}

fn one(stats: &TensorStatistics, method: &str, dtype: QuantType, symmetric: bool) {
    let scheme = QuantScheme {
        dtype,
        symmetric,
        narrow: false,
    };
    black_box(calibration::range(black_box(stats), method, scheme, 99.99)).expect("valid input");
}

fn calibrate(c: &mut Criterion) {
    let tensors = tensors();
    let mut group = c.benchmark_group("calibration");
    group.sample_size(20);
    for (form, dtype, symmetric) in FORMS {
        for method in METHODS {
            group.bench_function(format!("{}/{form}", method.name), |b| {
                b.iter(|| one(&tensors[0].1, method.name, dtype, symmetric));
            });
        }
    }
    for (name, stats) in &tensors {
        group.bench_function(format!("all ten/{name}"), |b| b.iter(|| all(stats)));
    }
    group.finish();
}

criterion_group!(benches, calibrate);
criterion_main!(benches);
