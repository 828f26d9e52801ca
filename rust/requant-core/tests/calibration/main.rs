//! Calibration methods: exhaustive search by a naive oracle, properties of every method, golden cases.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests know their numbers"
)]

mod golden;
mod laws;
mod naive;
mod search;

use requant_core::{
    QuantScheme, QuantType, Range, calibration,
    stats::{Statistic, TensorStatistics},
};

const ASYMMETRIC: QuantScheme = scheme(QuantType::U8, false);
const SYMMETRIC: QuantScheme = scheme(QuantType::I8, true);

const fn scheme(dtype: QuantType, symmetric: bool) -> QuantScheme {
    QuantScheme {
        dtype,
        symmetric,
        narrow: false,
    }
}

fn observed(x: &[f32]) -> TensorStatistics {
    let mut stats = TensorStatistics::default();
    stats.observe(x);
    stats
}

fn range(stats: &TensorStatistics, method: &str, scheme: QuantScheme) -> Range {
    calibration::range(stats, method, scheme, calibration::DEFAULT_PERCENTILE).expect("valid input")
}

/// Reproducible values of a normal distribution.
fn normal(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    (0..count)
        .map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32)
        .collect()
}
