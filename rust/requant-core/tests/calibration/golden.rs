//! Cases whose answer is known.

use requant_core::{
    Error, Granularity, QuantParams, QuantType, Range, affine,
    calibration::{self, METHODS},
    stats::Statistic,
};

use crate::{ASYMMETRIC, SYMMETRIC, normal, observed, range, scheme};

#[test]
fn golden_minmax() {
    let both = observed(&[-1.0, 0.5, 3.0]);
    assert_eq!(range(&both, "minmax", ASYMMETRIC), Range { lo: -1.0, hi: 3.0 });
    assert_eq!(range(&both, "minmax", SYMMETRIC), Range { lo: -3.0, hi: 3.0 });
    let positive = observed(&[2.0, 3.0]);
    assert_eq!(range(&positive, "minmax", ASYMMETRIC), Range { lo: 0.0, hi: 3.0 });
    assert_eq!(range(&positive, "minmax", SYMMETRIC), Range { lo: 0.0, hi: 3.0 });
    let negative = observed(&[-2.0, -3.0]);
    assert_eq!(range(&negative, "minmax", ASYMMETRIC), Range { lo: -3.0, hi: 0.0 });
    assert_eq!(range(&negative, "minmax", SYMMETRIC), Range { lo: -3.0, hi: 3.0 });
}

#[test]
fn golden_percentile() {
    // 1, 2 .. 1000 and their negatives, in bins of 1/2: the 50 beyond 950, whose mass ends at 950.5, at each end; 1/4
    // with one sign.
    let x: Vec<f32> = (1..=1000).flat_map(|i| [i as f32, -i as f32]).collect();
    let of = |x: &[f32], scheme, p| calibration::range(&observed(x), "percentile", scheme, p).expect("valid");
    assert_eq!(of(&x, SYMMETRIC, 95.0), Range { lo: -950.5, hi: 950.5 });
    assert_eq!(of(&x, ASYMMETRIC, 95.0), Range { lo: -950.5, hi: 950.5 });
    let positive: Vec<f32> = (1..=1000).map(|i| i as f32).collect();
    assert_eq!(of(&positive, ASYMMETRIC, 95.0), Range { lo: 0.0, hi: 950.25 });
    assert_eq!(
        of(&x, SYMMETRIC, 100.0),
        Range {
            lo: -1000.0,
            hi: 1000.0
        }
    );
}

/// Half of the values are zero, or nearly all: what is chosen for the others stays.
#[test]
fn entropy_is_not_drawn_to_the_spike_of_relu() {
    let half: Vec<f32> = normal(200_000).into_iter().filter(|v| *v > 0.0).collect();
    let bare = range(&observed(&half), "entropy", ASYMMETRIC);
    assert!((3.0..6.0).contains(&bare.hi), "{bare:?}");
    for zeros in [100_000, 2_000_000] {
        let mut stats = observed(&half);
        stats.observe(&vec![0.0; zeros]);
        let got = range(&stats, "entropy", ASYMMETRIC);
        assert!(
            (got.hi / bare.hi - 1.0).abs() < 0.02,
            "{zeros} zeros: {got:?}, none: {bare:?}"
        );
    }
}

/// One value at 50 among a million from N(0, 1): onnxruntime's default returns 50.
#[test]
fn an_outlier_is_clipped_by_all_but_minmax() {
    let mut x = normal(1_000_000);
    x[123] = 50.0;
    let stats = observed(&x);
    for method in METHODS {
        let hi = range(&stats, method.name, SYMMETRIC).hi;
        let want = match method.name {
            "minmax" => 50.0..=50.0,
            "mse" | "sqnr" => 5.0..=15.0,
            _ => 3.0..=6.0,
        };
        assert!(want.contains(&hi), "{} {hi}", method.name);
    }
}

/// The optimal clip of N(0, 1): 3.92 for 8 bits and 2.55 for 4, in the limit of many values.
#[test]
fn mse_is_near_theory_for_normal_data() {
    let stats = observed(&normal(2_000_000));
    let of = |dtype| range(&stats, "mse", scheme(dtype, true)).hi;
    assert!((of(QuantType::I8) - 3.94).abs() < 0.1 && (of(QuantType::I4) - 2.6).abs() < 0.1);
}

#[test]
fn sixteen_bits_take_nearly_everything() {
    let stats = observed(&normal(100_000));
    for method in ["entropy", "mse"] {
        for (dtype, symmetric) in [(QuantType::I16, true), (QuantType::U16, false)] {
            let (got, full) = (
                range(&stats, method, scheme(dtype, symmetric)),
                range(&stats, "minmax", scheme(dtype, symmetric)),
            );
            assert!(
                got.hi >= full.hi * 0.999 && got.hi <= full.hi * 1.001 && got.lo <= full.lo * 0.999,
                "{method} {got:?} {full:?}"
            );
        }
    }
}

/// The model's error against that of quantizing the values themselves.
#[test]
fn error_is_close_to_the_true_one() {
    let x = normal(500_000);
    let stats = observed(&x);
    let power = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    for method in METHODS {
        let params = affine::params(range(&stats, method.name, ASYMMETRIC), ASYMMETRIC).expect("valid");
        let map = affine::Affine::new(
            &[x.len()],
            Granularity::PerTensor,
            QuantType::U8,
            false,
            std::slice::from_ref(&params.scale),
            std::slice::from_ref(&params.zero_point),
        )
        .expect("valid");
        let mut y = vec![0.0; x.len()];
        map.fake_quantize(&x, &mut y).expect("same length");
        let squared: f64 = x
            .iter()
            .zip(&y)
            .map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2))
            .sum();
        let got = calibration::error(&stats, params, QuantType::U8).expect("valid");
        let want = 10.0 * (power / squared).log10();
        assert!(
            (got.sqnr_db - want).abs() < 0.05,
            "{} {} {want}",
            method.name,
            got.sqnr_db
        );
    }
}

#[test]
fn degenerate_input_is_refused_or_defined() {
    let empty = observed(&[f32::NAN, f32::INFINITY]);
    let params = QuantParams {
        scale: 1.0,
        zero_point: 0,
    };
    for method in METHODS {
        assert_eq!(
            calibration::range(&empty, method.name, ASYMMETRIC, 99.0),
            Err(Error::Empty)
        );
        for x in [
            0.0,
            -0.0,
            5.0,
            -5.0,
            1e38,
            -1e38,
            f32::MAX,
            f32::MIN,
            1e-45,
            -1e-45,
            f32::MIN_POSITIVE,
        ] {
            for scheme in [ASYMMETRIC, SYMMETRIC] {
                let Range { lo, hi } = range(&observed(&[x; 5]), method.name, scheme);
                // A symmetric scheme rounds -a half a step off, so that the least error is with a little less.
                let slack = if ["mse", "sqnr"].contains(&method.name) {
                    0.005 * x.abs()
                } else {
                    0.0
                };
                let (want_lo, want_hi) = if scheme.symmetric && x < 0.0 {
                    (x, -x)
                } else {
                    (x.min(0.0), x.max(0.0))
                };
                assert!(
                    (lo - want_lo).abs() <= slack && (hi - want_hi).abs() <= slack,
                    "{} of {x}: [{lo}, {hi}]",
                    method.name
                );
            }
        }
    }
    assert_eq!(calibration::error(&empty, params, QuantType::I8), Err(Error::Empty));
    let stats = observed(&[1.0]);
    for percentile in [0.0, -1.0, 100.1, f64::NAN] {
        assert!(matches!(
            calibration::range(&stats, "minmax", ASYMMETRIC, percentile),
            Err(Error::Percentile(_))
        ));
    }
    let error = calibration::range(&stats, "kl", ASYMMETRIC, 99.0)
        .expect_err("no such method")
        .to_string();
    assert_eq!(
        error,
        "unknown calibration method \"kl\"; choose one of minmax, percentile, entropy, mse, sqnr"
    );
    assert!(
        calibration::error(
            &stats,
            QuantParams {
                scale: 0.0,
                zero_point: 0
            },
            QuantType::I8
        )
        .is_err()
    );
    assert!(
        calibration::error(
            &stats,
            QuantParams {
                scale: 1.0,
                zero_point: 128
            },
            QuantType::I8
        )
        .is_err()
    );
}
