//! Requantization equals its definition in wide arithmetic.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "test data"
)]

use proptest::prelude::*;
use requant_core::{
    Error, QuantType,
    requantize::{Requantizer, Rounding, Scales},
};

fn requantizer(rounding: Rounding, (a, b, y): (f32, f32, f32), dtype: QuantType, zero_point: i32) -> Requantizer {
    Requantizer::new(rounding, Scales { a, b: &[b], y }, dtype, zero_point).unwrap()
}

/// The f32 product of an f32 sum and multiplier, rounded to the nearest integer, ties to the even one.
fn float(sum: i32, (a, b, y): (f32, f32, f32), dtype: QuantType, zero_point: i32) -> i32 {
    let product = f64::from(sum as f32 * ((a * b) / y));
    let integer = product.round_ties_even() + f64::from(zero_point);
    integer.clamp(f64::from(dtype.min()), f64::from(dtype.max())) as i32
}

/// gemmlowp's `MultiplyByQuantizedMultiplier` in i128: round(sum * 2^left * q / 2^31), halves up, then a rounding
/// division by a power of two, halves away from zero.
fn fixed(sum: i32, (a, b, y): (f32, f32, f32), dtype: QuantType, zero_point: i32) -> i32 {
    let real = f64::from(a) * f64::from(b) / f64::from(y);
    let (mut exponent, mut fraction) = (0, real);
    while fraction >= 1.0 {
        (fraction, exponent) = (fraction / 2.0, exponent + 1);
    }
    while fraction < 0.5 {
        (fraction, exponent) = (fraction * 2.0, exponent - 1);
    }
    let mut q = (fraction * 2_147_483_648.0).round() as i128;
    if q == 1 << 31 {
        (q, exponent) = (q / 2, exponent + 1);
    }
    if exponent < -31 {
        return zero_point;
    }
    let shifted = (i128::from(sum) << exponent.max(0)).clamp(i128::from(i32::MIN), i128::from(i32::MAX));
    let doubled = shifted * q;
    let high = match doubled {
        0.. => (doubled + (1 << 30)) / (1 << 31),
        _ => -((-doubled + (1 << 30) - 1) / (1 << 31)), // a tie goes up, that is towards zero
    };
    let divisor = 1i128 << (-exponent).max(0);
    let rounded = (high.abs() + divisor / 2) / divisor * high.signum();
    (rounded + i128::from(zero_point)).clamp(i128::from(dtype.min()), i128::from(dtype.max())) as i32
}

const SUMS: [i32; 19] = [
    0,
    1,
    -1,
    2,
    -2,
    3,
    -3,
    127,
    -128,
    255,
    256,
    16_777_217,
    -16_777_217,
    33_554_435,
    1 << 30,
    i32::MAX,
    i32::MIN,
    i32::MAX - 64,
    -1_000_003,
];
const SCALES: [(f32, f32, f32); 9] = [
    (1.0, 1.0, 1.0),
    (0.5, 1.0, 1.0),
    (0.5, 0.5, 1.0),
    (1.0, 1.0, 3.0),
    (0.02, 0.003, 0.05),
    (1e-20, 1e-20, 1.0),
    (3.0, 1.0, 1.0),
    (1e-5, 1e-4, 0.999),
    (1.0, 1.0, 2_147_483_648.0),
];

#[test]
fn special_sums_round_as_defined() {
    for scales in SCALES {
        for (dtype, zero_point) in [
            (QuantType::U8, 0),
            (QuantType::U8, 255),
            (QuantType::I8, -128),
            (QuantType::I8, 3),
        ] {
            for sum in SUMS {
                let got = requantizer(Rounding::HalfEvenFloat, scales, dtype, zero_point).apply(sum, 0);
                assert_eq!(
                    got,
                    float(sum, scales, dtype, zero_point),
                    "{sum} {scales:?} {dtype} {zero_point}"
                );
                let got = requantizer(Rounding::Gemmlowp, scales, dtype, zero_point).apply(sum, 0);
                assert_eq!(
                    got,
                    fixed(sum, scales, dtype, zero_point),
                    "{sum} {scales:?} {dtype} {zero_point}"
                );
            }
        }
    }
}

#[test]
fn ties_tell_the_roundings_apart() {
    let half = (0.5, 1.0, 1.0);
    let of = |rounding| [-5, -3, -1, 1, 3, 5].map(|sum| requantizer(rounding, half, QuantType::I8, 0).apply(sum, 0));
    assert_eq!(of(Rounding::HalfEvenFloat), [-2, -2, 0, 0, 2, 2]);
    // The multiplication already rounds halves up, and no shift follows: 0.5 = 2^30 * 2^-31.
    assert_eq!(of(Rounding::Gemmlowp), [-2, -1, 0, 1, 2, 3]);
    let quarter = (0.25, 1.0, 1.0);
    let of = |rounding| [-6, -2, 2, 6].map(|sum| requantizer(rounding, quarter, QuantType::I8, 0).apply(sum, 0));
    assert_eq!(of(Rounding::HalfEvenFloat), [-2, 0, 0, 2]);
    assert_eq!(of(Rounding::Gemmlowp), [-2, -1, 1, 2]);
}

#[test]
fn bias_clamp_and_columns() {
    let scales = Scales {
        a: 1.0,
        b: &[1.0, 0.5],
        y: 1.0,
    };
    for rounding in Rounding::ALL {
        let plain = Requantizer::new(rounding, scales, QuantType::U8, 10).unwrap();
        assert_eq!([plain.apply(-4, 0), plain.apply(-4, 1)], [6, 8]);
        let relu6 = plain.with_bias(vec![100, -100]).with_clamp(10, 60).unwrap();
        assert_eq!(
            [relu6.apply(-4, 0), relu6.apply(-4, 1), relu6.apply(130, 1)],
            [60, 10, 25]
        );
    }
}

#[test]
fn impossible_parameters_are_refused() {
    let new =
        |rounding, a, b: &[f32], y, dtype, z| Requantizer::new(rounding, Scales { a, b, y }, dtype, z).map(|_| ());
    for rounding in Rounding::ALL {
        assert_eq!(rounding.name().parse(), Ok(rounding));
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let expected = new(rounding, 1.0, &[1.0, bad], 1.0, QuantType::U8, 0).unwrap_err();
            assert!(matches!(expected, Error::Scale { index: 1, .. }), "{expected}");
            assert!(new(rounding, bad, &[1.0], 1.0, QuantType::U8, 0).is_err());
            assert!(new(rounding, 1.0, &[1.0], bad, QuantType::U8, 0).is_err());
        }
        assert!(matches!(
            new(rounding, 1e30, &[1.0, 1e20], 1e-3, QuantType::U8, 0),
            Err(Error::Multiplier { index: 0 | 1, .. })
        ));
        assert!(matches!(
            new(rounding, 1.0, &[1.0], 1.0, QuantType::U8, 256),
            Err(Error::ZeroPoint { .. })
        ));
        assert!(matches!(
            new(rounding, 1.0, &[1.0], 1.0, QuantType::I16, 0),
            Err(Error::Container { .. })
        ));
        let fine = requantizer(rounding, (1.0, 1.0, 1.0), QuantType::I8, 0);
        assert!(fine.clone().with_clamp(-129, 0).is_err());
        assert!(fine.with_clamp(1, 0).is_err());
    }
    assert!("nearest".parse::<Rounding>().is_err());
    assert!(matches!(
        new(Rounding::Gemmlowp, 1.0, &[1.08e9], 1.0, QuantType::U8, 0),
        Err(Error::Multiplier { .. })
    ));
    assert!(new(Rounding::Gemmlowp, 1.0, &[1.07e9], 1.0, QuantType::U8, 0).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_sum_rounds_as_defined(
        sum in prop_oneof![any::<i32>(), -100_000i32..100_000],
        exponents in (-12i32..4, -12i32..4, -12i32..4),
        parts in (1.0f32..2.0, prop_oneof![Just(1.0f32), 1.0f32..2.0], prop_oneof![Just(1.0f32), 1.0f32..2.0]),
        zero_point in -128i32..128,
    ) {
        let scales = (parts.0 * 2f32.powi(exponents.0), parts.1 * 2f32.powi(exponents.1), parts.2 * 2f32.powi(exponents.2));
        let dtype = QuantType::I8;
        let got = requantizer(Rounding::HalfEvenFloat, scales, dtype, zero_point).apply(sum, 0);
        prop_assert_eq!(got, float(sum, scales, dtype, zero_point));
        let got = requantizer(Rounding::Gemmlowp, scales, dtype, zero_point).apply(sum, 0);
        prop_assert_eq!(got, fixed(sum, scales, dtype, zero_point));
    }
}
