//! What holds of every method, for any data.

use proptest::{collection::vec, prelude::*};
use requant_core::{
    QuantScheme, QuantType, Range, affine,
    calibration::{self, METHODS},
};

use crate::{observed, range, scheme};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn percentile_leaves_the_share_outside(x in vec(-5f32..9.0, 1..3000), percentile in 50f64..=100.0, symmetric: bool) {
        let stats = observed(&x);
        let got = calibration::range(&stats, "percentile", scheme(QuantType::I8, symmetric), percentile).expect("valid");
        let want = x.len() as f64 * (100.0 - percentile) / 100.0;
        let width = stats.histogram().width();
        let within = |edge: f32, sign: f32| x.iter().filter(|v| (f64::from(**v * sign) - f64::from(edge)).abs() <= width).count() as f64;
        let beyond = |edge: f32, sign: f32| x.iter().filter(|v| **v * sign > edge).count() as f64;
        let ends: Vec<_> = if symmetric {
            vec![(beyond(got.hi, 1.0) + beyond(got.hi, -1.0), want, within(got.hi, 1.0) + within(got.hi, -1.0))]
        } else {
            let share = if stats.min() < 0.0 && stats.max() > 0.0 { want / 2.0 } else { want };
            vec![(beyond(got.hi, 1.0), share, within(got.hi, 1.0)), (beyond(-got.lo, -1.0), share, within(-got.lo, -1.0))]
        };
        for (outside, share, tolerance) in ends {
            // Where fewer lie on a side than may lie outside, that side ends at zero.
            prop_assert!(outside <= share + tolerance && (outside >= share - tolerance - 1.0 || got.lo == 0.0 || got.hi == 0.0), "{outside} {share} {got:?}");
        }
        if percentile == 100.0 {
            prop_assert_eq!(got, range(&stats, "minmax", scheme(QuantType::I8, symmetric)));
        }
    }

    #[test]
    fn every_method_gives_a_range_around_zero(
        x in prop_oneof![
            vec(-1f32..2.0, 1..300), vec(0f32..1e38, 1..300), vec(-1e-40f32..0.0, 1..300), vec(Just(0.0f32), 1..3),
            vec(any::<u32>().prop_map(|bits| f32::from_bits(bits & 0xbfff_ffff)), 1..300), vec(any::<i8>().prop_map(f32::from), 1..300),
        ],
        dtype in prop::sample::select(&QuantType::ALL[..4]), symmetric: bool, narrow: bool,
    ) {
        let stats = observed(&x);
        let scheme = QuantScheme { dtype, symmetric, narrow };
        let full = range(&stats, "minmax", scheme);
        for method in METHODS {
            let Range { lo, hi } = range(&stats, method.name, scheme);
            prop_assert!(lo <= 0.0 && 0.0 <= hi && lo.is_finite() && hi.is_finite(), "{} [{lo}, {hi}]", method.name);
            let (width, most) = (f64::from(hi) - f64::from(lo), f64::from(full.hi) - f64::from(full.lo));
            prop_assert!(width <= most * (1.0 + 1e-6), "{} [{lo}, {hi}] is wider than the data", method.name);
            prop_assert!(!symmetric || lo == -hi || (lo == 0.0 && stats.min() >= 0.0), "{} [{lo}, {hi}]", method.name);
            let params = affine::params(Range { lo, hi }, scheme);
            prop_assert!(params.is_ok());
        }
        prop_assert_eq!(range(&stats, "mse", scheme), range(&stats, "sqnr", scheme));
    }
}
