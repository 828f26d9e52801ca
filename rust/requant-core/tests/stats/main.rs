//! Statistics against a naive oracle: any values, cut and merged in any way.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests know their numbers"
)]

mod naive;

use std::sync::Mutex;

use proptest::{collection::vec, prelude::*};
use requant_core::{
    Error, kernels,
    stats::{Statistic, TensorStatistics, observe_many},
};

/// Any bits; and what tensors hold: one magnitude, many equal values, zeros.
fn values(most: usize) -> impl Strategy<Value = Vec<f32>> {
    let tame = vec(-10f32..10.0, 0..most);
    let wild = vec(any::<u32>().prop_map(f32::from_bits), 0..most);
    let finite = vec(
        any::<u32>().prop_map(|bits| f32::from_bits(bits & 0xbfff_ffff)),
        0..most,
    );
    let tiny = vec((-3000i32..3000).prop_map(|k| k as f32 * f32::from_bits(1)), 0..most);
    let lattice = vec((-4100i32..4100).prop_map(|k| k as f32), 0..most);
    let sparse = vec(
        prop_oneof![3 => Just(0.0), 1 => Just(-0.0), 1 => 0f32..6.0, 1 => Just(f32::MAX)],
        0..most,
    );
    prop_oneof![tame, wild, finite, tiny, lattice, sparse]
}

fn observed(x: &[f32]) -> TensorStatistics {
    let mut stats = TensorStatistics::default();
    stats.observe(x);
    stats
}

fn assert_is_right(stats: &TensorStatistics, x: &[f32]) {
    let want = naive::observe(x);
    assert_eq!(stats.count(), want.count);
    assert_eq!(
        (stats.zeros(), stats.nan_count(), stats.inf_count()),
        (want.zeros, want.nan, want.inf)
    );
    assert_eq!(stats.histogram().edges(), want.edges);
    assert_eq!(stats.histogram().counts(), want.counts);
    if want.count > 0 {
        assert_eq!((stats.min(), stats.max()), (want.min, want.max));
        let magnitude = f64::from(want.max.abs().max(want.min.abs()));
        assert!(
            (stats.mean() - want.mean).abs() <= 1e-12 * magnitude,
            "{} {}",
            stats.mean(),
            want.mean
        );
        assert!(
            (stats.std() - want.std).abs() <= 1e-7 * magnitude,
            "{} {}",
            stats.std(),
            want.std
        );
    } else {
        assert!(stats.min().is_nan() && stats.max().is_nan() && stats.mean().is_nan() && stats.std().is_nan());
    }
}

/// All that does not depend on how values are cut into batches.
fn uncut(stats: &TensorStatistics) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        stats.count(),
        stats.nan_count(),
        stats.inf_count(),
        stats.min().to_bits(),
        stats.max().to_bits(),
        stats.histogram().clone(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn equals_the_oracle(x in values(900)) {
        assert_is_right(&observed(&x), &x);
    }

    #[test]
    fn equals_the_oracle_over_many_chunks(mut x in values(40), tail in vec(-300f32..1000.0, 0..30), at in 0usize..9000) {
        let mut long: Vec<f32> = (0..9000).map(|i| (i % 37) as f32 * 0.125 - 1.0).collect();
        long.splice(at..at, x.drain(..));
        long.extend(tail);
        assert_is_right(&observed(&long), &long);
    }

    #[test]
    fn does_not_depend_on_batches(x in values(1500), cuts in vec(0usize..1500, 0..6)) {
        let mut stats = TensorStatistics::default();
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(x.len())).chain([0, x.len()]).collect();
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            stats.observe(&x[pair[0]..pair[1]]);
        }
        prop_assert_eq!(uncut(&stats), uncut(&observed(&x)));
    }

    #[test]
    fn merges_in_any_order(batches in vec(values(700), 1..6), picks in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 6)) {
        let mut parts: Vec<_> = batches.iter().map(|x| observed(x)).collect();
        let mut in_sequence = TensorStatistics::default();
        parts.iter().for_each(|part| in_sequence.merge(part));
        // A random merge tree.
        for (a, b) in picks {
            if parts.len() > 1 {
                let other = parts.remove(a.index(parts.len()));
                let at = b.index(parts.len());
                parts[at].merge(&other);
            }
        }
        prop_assert_eq!(parts.len(), 1);
        prop_assert_eq!(&parts[0], &in_sequence, "not the same bits");
        prop_assert_eq!(parts[0].to_bytes(), in_sequence.to_bytes());
        assert_is_right(&parts[0], &batches.concat());
    }

    #[test]
    fn observing_in_batches_is_merging_them(batches in vec(values(700), 1..5)) {
        let (mut merged, mut streamed) = (TensorStatistics::default(), TensorStatistics::default());
        for batch in &batches {
            merged.merge(&observed(batch));
            streamed.observe(batch);
        }
        prop_assert_eq!(merged, streamed);
    }

    #[test]
    fn every_set_of_kernels_agrees(x in values(5000)) {
        let want = observed(&x);
        for kernels in kernels::available() {
            let mut stats = TensorStatistics::default();
            stats.observe_with(&x, kernels);
            prop_assert_eq!(&stats, &want, "{}", kernels.name());
        }
    }

    #[test]
    fn bytes_come_back(x in values(900)) {
        let stats = observed(&x);
        let bytes = stats.to_bytes();
        prop_assert_eq!(TensorStatistics::from_bytes(&bytes), Ok(stats));
    }

    #[test]
    fn damage_is_refused(x in values(60), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = observed(&x).to_bytes();
        for len in 0..bytes.len() {
            prop_assert!(matches!(TensorStatistics::from_bytes(&bytes[..len]), Err(Error::Damaged(_))), "cut to {}", len);
        }
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(matches!(TensorStatistics::from_bytes(&bytes), Err(Error::Damaged(_))), "byte {} changed", at);
    }

    /// Bytes whose check value was made to match: whatever they decode to is refused or writes the same bytes' meaning.
    #[test]
    fn forged_bytes_do_not_panic(mut body in vec(any::<u8>(), 0..400), real in any::<bool>(), x in values(50), edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        if real {
            body = observed(&x).to_bytes();
            body.truncate(body.len() - 4);
            for (at, byte) in edits {
                let at = at.index(body.len());
                body[at] = byte;
            }
        } else {
            body.splice(0..0, *b"RQST\x01");
        }
        let check = body.iter().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        body.extend(check.to_le_bytes());
        if let Ok(stats) = TensorStatistics::from_bytes(&body) {
            prop_assert_eq!(TensorStatistics::from_bytes(&stats.to_bytes()), Ok(stats.clone()));
            let (edges, counts) = (stats.histogram().edges(), stats.histogram().counts());
            prop_assert_eq!(edges.len(), counts.len() + 1);
            prop_assert!(stats.mean().is_nan() || (f64::from(stats.min())..=f64::from(stats.max())).contains(&stats.mean()));
        }
    }
}

#[test]
fn golden() {
    let stats = observed(&[-1.0, 0.0, 3.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    assert_eq!(
        (stats.count(), stats.zeros(), stats.nan_count(), stats.inf_count()),
        (3, 1, 1, 2)
    );
    assert_eq!((stats.min(), stats.max(), stats.mean()), (-1.0, 3.0, 2.0 / 3.0));
    assert!((stats.std() - (26.0f64 / 9.0).sqrt()).abs() < 1e-15);
    // 3 - -1 in at most 4096 bins that mirror each other in 0: 3 * 1024 + 1024 and one more at each end are too many.
    assert_eq!(stats.histogram().width(), 1.0 / 512.0);
    let (edges, counts) = (stats.histogram().edges(), stats.histogram().counts());
    let filled: Vec<_> = edges.iter().zip(&counts).filter(|(_, n)| **n > 0).collect();
    assert_eq!(filled, [(&(-1.0 - 1.0 / 512.0), &1), (&0.0, &1), (&3.0, &1)]);
}

#[test]
fn extremes_are_exact() {
    for x in [
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        -f32::from_bits(1),
        1e38,
        -1e-30,
    ] {
        let stats = observed(&[x; 3]);
        assert_eq!(
            (stats.min(), stats.max(), stats.std()),
            (x, x, 0.0),
            "a constant does not vary"
        );
        assert_eq!(stats.mean(), f64::from(x));
        assert_is_right(&stats, &[x; 3]);
    }
    assert_is_right(&observed(&[f32::MAX, f32::MIN]), &[f32::MAX, f32::MIN]);
    assert_is_right(
        &observed(&[f32::MAX, f32::from_bits(1), -f32::from_bits(1)]),
        &[f32::MAX, 1e-45, -1e-45],
    );
}

/// 2^25 + 1 ones: more than f32 can count, and than one lane could sum.
#[test]
fn sums_do_not_drift() {
    let mut stats = TensorStatistics::default();
    let chunk = vec![0.1f32; 1 << 16];
    for _ in 0..64 {
        stats.observe(&chunk);
    }
    assert_eq!(
        (stats.mean(), stats.std(), stats.count()),
        (f64::from(0.1f32), 0.0, 1 << 22)
    );
    stats.observe(&[1e6]);
    let n = f64::from((1 << 22) + 1);
    let mean = (f64::from(0.1f32) * (n - 1.0) + 1e6) / n;
    assert!((stats.mean() - mean).abs() < 1e-12 * mean);
}

#[test]
fn threads_do_not_matter() {
    // Longer than a part, of no round length, and with values that are not finite.
    let mut big: Vec<f32> = (0..2_500_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-6 - 3.0)
        .collect();
    (big[17], big[1_100_000], big[2_400_000]) = (f32::NAN, f32::INFINITY, 1e9);
    let small: Vec<f32> = (0..1000).map(|i| i as f32 * 0.5).collect();
    let arrays = [&big[..], &small, &[], &big[5..700_001], &small[3..]];
    let want: Vec<_> = arrays.iter().map(|x| observed(x)).collect();
    for threads in [0, 1, 2, 3, 8] {
        let stats: Vec<_> = arrays.iter().map(|_| Mutex::<TensorStatistics>::default()).collect();
        let pairs: Vec<_> = stats.iter().zip(arrays).collect();
        observe_many(&pairs, threads);
        for (stats, want) in stats.into_iter().zip(&want) {
            assert_eq!(stats.into_inner().expect("nobody panicked"), *want, "{threads} threads");
        }
    }
}

#[test]
fn one_statistic_may_be_given_twice() {
    let stats = Mutex::default();
    let x: Vec<f32> = (0..5000).map(|i| i as f32).collect();
    observe_many(&[(&stats, &x[..]), (&stats, &x[..100])], 2);
    let mut want = observed(&x);
    want.observe(&x[..100]);
    assert_eq!(stats.into_inner().expect("nobody panicked"), want);
}

#[test]
fn bytes_are_compact() {
    let x: Vec<f32> = (0..1_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 * 1e-6)
        .collect();
    assert!(observed(&x).to_bytes().len() < 3 * 4096 + 200);
    assert!(observed(&[0.0, 1000.0]).to_bytes().len() < 220);
}
