//! What parameters and the map promise for every range, degenerate ones included.

use super::*;

const EXTREMES: [f32; 13] = [
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    1e-39,
    f32::MIN_POSITIVE,
    1e-30,
    1.0,
    127.5,
    1e38,
    f32::MAX,
    f32::MIN,
    -1e38,
];

fn range() -> impl Strategy<Value = Range> {
    let end = || {
        prop_oneof![
            prop::sample::select(&EXTREMES[..]),
            -100.0f32..100.0,
            -1e-36f32..1e-36,
            -3e38f32..3e38
        ]
    };
    (end(), end()).prop_map(|(a, b)| Range {
        lo: a.min(b),
        hi: a.max(b),
    })
}

fn scheme() -> impl Strategy<Value = QuantScheme> {
    let types = prop::sample::select(&QuantType::ALL[..]);
    (types, any::<bool>(), any::<bool>()).prop_map(|(dtype, symmetric, narrow)| QuantScheme {
        dtype,
        symmetric,
        narrow,
    })
}

fn fake(x: f32, scheme: QuantScheme, params: QuantParams) -> f32 {
    let (scale, zero_point) = ([params.scale], [params.zero_point]);
    let map = Affine::new(
        &[],
        Granularity::PerTensor,
        scheme.dtype,
        scheme.narrow,
        &scale,
        &zero_point,
    )
    .unwrap();
    let mut out = [f32::NAN];
    map.fake_quantize(&[x], &mut out).unwrap();
    out[0]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 1000 }))]

    #[test]
    fn scales_are_normal_and_zero_is_exact(range in range(), scheme in scheme()) {
        let params = affine::params(range, scheme).unwrap();
        prop_assert!(params.scale.is_normal() && params.scale > 0.0, "{:?}", params);
        let (qmin, qmax) = affine::limits(scheme.dtype, scheme.narrow);
        prop_assert!((qmin..=qmax).contains(&params.zero_point), "{:?}", params);
        prop_assert_eq!(fake(0.0, scheme, params).to_bits(), 0);
        for q in [qmin, qmax] {
            let real = (q - params.zero_point) as f32 * params.scale;
            prop_assert!(real.is_finite(), "{} stands for {}", q, real);
        }
    }

    #[test]
    fn the_error_inside_the_range_is_half_a_step(range in range(), scheme in scheme(), at in 0.0f64..=1.0) {
        // Beyond this the scale may be cut so that every integer stands for a finite real: with 2 bits the lowest one
        // stands for up to 4/3 of the range.
        let range = Range { lo: range.lo.clamp(-2.5e38, 2.5e38), hi: range.hi.clamp(-2.5e38, 2.5e38) };
        let params = affine::params(range, scheme).unwrap();
        let (lo, hi) = (f64::from(range.lo.min(0.0)), f64::from(range.hi.max(0.0)));
        let x = (lo + at * (hi - lo)) as f32;
        let error = (f64::from(fake(x, scheme, params)) - f64::from(x)).abs() / f64::from(params.scale);
        // Scale, quotient and product are each rounded to 24 bits; the quotient is at most 65535.
        prop_assert!(error <= 0.5 + 65535.0 * 3.0 / f64::from(1 << 24), "{} of a step at {:e}, {:?}", error, x, params);
    }

    #[test]
    fn the_map_is_monotone_and_idempotent(range in range(), scheme in scheme(), a in super::real(), b in super::real()) {
        prop_assume!(!a.is_nan() && !b.is_nan());
        let params = affine::params(range, scheme).unwrap();
        let (low, high) = (fake(a.min(b), scheme, params), fake(a.max(b), scheme, params));
        prop_assert!(low <= high, "{:e} -> {:e}, {:e} -> {:e}", a.min(b), low, a.max(b), high);
        prop_assert_eq!(fake(low, scheme, params), low);
    }

    #[test]
    fn symmetric_ranges_have_their_zero_point_by_rule(range in range(), scheme in scheme()) {
        let scheme = QuantScheme { symmetric: true, ..scheme };
        let params = affine::params(range, scheme).unwrap();
        let centre = if scheme.dtype.signed() { 0 } else { 1 << (scheme.dtype.bits() - 1) };
        let one_sided = range.lo >= 0.0 && !scheme.narrow;
        prop_assert_eq!(params.zero_point, if one_sided { scheme.dtype.min() } else { centre });
    }
}

#[test]
fn known_parameters() {
    let scheme = |dtype, symmetric, narrow| QuantScheme {
        dtype,
        symmetric,
        narrow,
    };
    let cases = [
        // ONNX's own DynamicQuantizeLinear examples.
        ((-3.0, 2.0), scheme(QuantType::U8, false, false), (0.019_607_844, 153)),
        ((-4.0, -1.0), scheme(QuantType::U8, false, false), (0.015_686_275, 255)),
        ((1.0, 4.0), scheme(QuantType::U8, false, false), (0.015_686_275, 0)),
        ((-1.0, 1.0), scheme(QuantType::I8, true, true), (1.0 / 127.0, 0)),
        ((-1.0, 0.5), scheme(QuantType::U8, true, true), (1.0 / 127.0, 128)),
        ((-1.0, 0.5), scheme(QuantType::I8, true, false), (2.0 / 255.0, 0)),
        ((0.0, 1.0), scheme(QuantType::I8, true, false), (1.0 / 255.0, -128)),
        ((0.0, 1.0), scheme(QuantType::I8, true, true), (1.0 / 127.0, 0)),
        ((0.0, 7.0), scheme(QuantType::I4, true, true), (1.0, 0)),
        ((0.0, 0.0), scheme(QuantType::U8, false, false), (1.0, 0)),
        ((0.0, 0.0), scheme(QuantType::I8, true, true), (1.0, 0)),
        (
            (1e-45, 1e-45),
            scheme(QuantType::I8, false, false),
            (f32::MIN_POSITIVE, -128),
        ),
    ];
    for ((lo, hi), scheme, (scale, zero_point)) in cases {
        let params = affine::params(Range { lo, hi }, scheme).unwrap();
        assert_eq!(params, QuantParams { scale, zero_point }, "[{lo}, {hi}] {scheme:?}");
    }
}

#[test]
fn ranges_that_are_no_intervals() {
    let scheme = QuantScheme {
        dtype: QuantType::I8,
        symmetric: false,
        narrow: false,
    };
    for (lo, hi) in [(1.0, -1.0), (f32::NEG_INFINITY, 0.0), (0.0, f32::INFINITY)] {
        assert_eq!(affine::params(Range { lo, hi }, scheme), Err(Error::Range { lo, hi }));
    }
    assert!(matches!(
        affine::params(Range { lo: f32::NAN, hi: 0.0 }, scheme),
        Err(Error::Range { .. })
    ));
}

#[test]
fn what_quantizing_at_run_time_costs_is_the_error_of_each_value() {
    let x: Vec<f32> = (0..5000u16)
        .map(|i| (f32::from(i) * 0.37).sin() * f32::from(i % 97))
        .collect();
    let (lo, hi) = x.iter().fold((0.0f32, 0.0f32), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
    for dtype in [QuantType::U8, QuantType::I8, QuantType::I4] {
        let scheme = QuantScheme {
            dtype,
            symmetric: false,
            narrow: false,
        };
        let params = affine::params(Range { lo, hi }, scheme).unwrap();
        let mut expected = 0.0;
        for v in &x {
            let q = (v / params.scale).round_ties_even() + params.zero_point as f32;
            let q = q.clamp(dtype.min() as f32, dtype.max() as f32);
            expected += f64::from((q - params.zero_point as f32) * params.scale - v).powi(2);
        }
        let (range, error) = affine::dynamic_error(&x, dtype).unwrap().unwrap();
        assert_eq!((range.lo, range.hi), (lo, hi));
        let holed: Vec<f32> = [f32::NAN].iter().chain(&x).chain(&[f32::INFINITY]).copied().collect();
        assert_eq!(affine::dynamic_error(&holed, dtype), Ok(Some((range, error))));
        assert!((error / expected - 1.0).abs() < 1e-9, "{dtype:?}: {error} {expected}");
    }
    for none in [&[][..], &[f32::NAN, f32::NEG_INFINITY]] {
        assert_eq!(affine::dynamic_error(none, QuantType::U8), Ok(None));
    }
}
