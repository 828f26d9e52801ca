//! Each kernel of each set on arrays that end where its slices do, in calls so few and small that Miri can interpret
//! them: it sees what a right result hides, like reads past an end. `make miri` runs these files, `make asan` those
//! beside them too.
//!
//! Results are compared with the generic ones, so that every byte that was written is read.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    reason = "test data"
)]

mod elementwise;
mod products;
mod statistics;
mod weights;

/// Bytes without a pattern.
fn noise(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|i| (i.wrapping_add(1).wrapping_mul(2_654_435_761) >> 23) as u8)
        .collect()
}

fn signed(bytes: &[u8]) -> Vec<i8> {
    bytes.iter().map(|byte| byte.cast_signed()).collect()
}

/// In -4..4.
fn reals(length: usize) -> Vec<f32> {
    signed(&noise(length)).iter().map(|v| f32::from(*v) / 32.0).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Fails where a set makes something else of `f` than the last of the registry, which is the generic one.
fn compare<K: Copy, T: PartialEq + std::fmt::Debug>(all: impl Iterator<Item = K>, f: impl Fn(K) -> T) {
    let results: Vec<T> = all.map(f).collect();
    for (set, result) in results.iter().enumerate() {
        assert_eq!(Some(result), results.last(), "set {set} of {}", results.len());
    }
}
