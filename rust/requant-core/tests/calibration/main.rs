//! Calibration methods: exhaustive search by a naive oracle, properties of every method, golden cases.
//!
//! Values that are small multiples of 2^-140 fall into few bins, as bins are at least 2^-126 wide: small enough histograms
//! for an oracle that tries everything.

mod naive;

use naive::{Candidate, Naive, kullback_leibler};
use proptest::{collection::vec, prelude::*};
use requant_core::{
    Error, QuantParams, QuantScheme, QuantType, Range, affine,
    calibration::{self, METHODS},
    stats::{Statistic, TensorStatistics},
};

const ASYMMETRIC: QuantScheme = scheme(QuantType::U8, false);
const SYMMETRIC: QuantScheme = scheme(QuantType::I8, true);

const fn scheme(dtype: QuantType, symmetric: bool) -> QuantScheme {
    QuantScheme { dtype, symmetric, narrow: false }
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
    (0..count).map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32).collect()
}

/// Tensors of at most 30 bins on each side, some of them spiky and full of holes.
fn few_bins() -> impl Strategy<Value = Vec<f32>> {
    let bins = |lo: i32, hi: i32| {
        let value = (lo..hi, 0..1 << 14, 1..60usize).prop_map(|(bin, part, n)| (bin << 14 | part, n));
        vec(value, 1..40).prop_map(|runs| {
            runs.iter().flat_map(|(k, n)| std::iter::repeat_n(*k as f32 * f32::from_bits(1 << 9), *n)).collect()
        })
    };
    let bell = vec((-9000i32..9000, -9000i32..9000, -9000i32..9000, -200_000i32..200_000), 1..400)
        .prop_map(|v| v.iter().map(|(a, b, c, d)| (a + b + c + d * i32::from(*d > 190_000)) as f32 * f32::from_bits(1 << 9)).collect());
    prop_oneof![bins(-30, 30), bins(0, 30), bins(-30, 0), bins(-3, 30), bell]
}

fn four_bits() -> impl Strategy<Value = QuantScheme> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(signed, symmetric, narrow)| QuantScheme {
        dtype: if signed { QuantType::I4 } else { QuantType::U4 },
        symmetric,
        narrow: narrow && symmetric,
    })
}

/// Every quantizer that a method may choose.
fn candidates(naive: &Naive, extents: (f64, f64), scheme: QuantScheme) -> Vec<Candidate> {
    let (qmin, qmax) = affine::limits(scheme.dtype, scheme.narrow);
    let levels = (qmax - qmin) as usize;
    let extent = if scheme.symmetric { extents.0.max(extents.1) } else { extents.0 + extents.1 };
    let lo = if naive.negative.is_empty() { 0.0 } else { -1.0 };
    let one = affine::params(Range { lo, hi: 1.0 }, scheme).expect("valid");
    (1..=extent.ceil() as usize)
        .flat_map(|i| {
            let width = (i as f64).min(extent);
            if scheme.symmetric {
                let (below, above) = ((one.zero_point - qmin) as usize, (qmax - one.zero_point) as usize);
                vec![Candidate { step: width * f64::from(one.scale), below, above }]
            } else {
                let step = width / levels as f64;
                (0..=levels).map(|above| Candidate { step, below: levels - above, above }).collect()
            }
        })
        .collect()
}

/// The quantizer that a range stands for.
fn chosen(range: Range, naive: &Naive, scheme: QuantScheme) -> Candidate {
    let (qmin, qmax) = affine::limits(scheme.dtype, scheme.narrow);
    if scheme.symmetric {
        // Of a range without the limits that f32 sets to a scale: these values are subnormal.
        let one = affine::params(Range { lo: if range.lo < 0.0 { -1.0 } else { 0.0 }, hi: 1.0 }, scheme).expect("valid");
        let step = f64::from(range.hi) / naive.width * f64::from(one.scale);
        return Candidate { step, below: (one.zero_point - qmin) as usize, above: (qmax - one.zero_point) as usize };
    }
    let levels = (qmax - qmin) as usize;
    let step = (f64::from(range.hi) - f64::from(range.lo)) / naive.width / levels as f64;
    let below = (-f64::from(range.lo) / naive.width / step).round() as usize;
    Candidate { step, below, above: levels - below }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn mse_finds_the_least_error(x in few_bins(), scheme in four_bits()) {
        let stats = observed(&x);
        prop_assume!(stats.min() < 0.0 || stats.max() > 0.0);
        let naive = Naive::with_exact_ends(&stats);
        let error = |c| { let (granular, overload, _) = naive.squared_error(c); granular + overload };
        let exact_extents = ((-f64::from(stats.min())).max(0.0) / naive.width, f64::from(stats.max()).max(0.0) / naive.width);
        let all = candidates(&naive, exact_extents, scheme);
        let least = all.iter().map(|c| error(*c)).fold(f64::INFINITY, f64::min);
        let got = chosen(range(&stats, "mse", scheme), &naive, scheme);
        // Ranges are rounded to subnormal f32; and steps below an eighth of a bin use an integral.
        prop_assert!(error(got) <= least * 1.001 + 1e-5 * stats.count() as f64, "{got:?} {} {least}", error(got));
    }

    #[test]
    fn entropy_finds_the_least_divergence(x in few_bins(), scheme in four_bits()) {
        let stats = observed(&x);
        prop_assume!(stats.min() < 0.0 || stats.max() > 0.0);
        let naive = Naive::new(&stats);
        let exact_extents = ((-f64::from(stats.min())).max(0.0) / naive.width, f64::from(stats.max()).max(0.0) / naive.width);
        let all: Vec<_> = candidates(&naive, exact_extents, scheme).into_iter().filter(|c| c.step >= 1.0).collect();
        let least = all.iter().map(|c| naive.divergence(*c)).fold(f64::INFINITY, f64::min);
        let got = range(&stats, "entropy", scheme);
        if least == f64::INFINITY {
            prop_assert_eq!(got, range(&stats, "minmax", scheme), "no candidate is the full range");
        } else {
            // The step is rounded to a subnormal f32, which may move a cell's edge over that of a bin.
            let got = chosen(got, &naive, scheme);
            let near = all.iter().filter(|c| (c.step / got.step - 1.0).abs() < 1e-5 && (c.below, c.above) == (got.below, got.above));
            let cost = near.map(|c| naive.divergence(*c)).fold(f64::INFINITY, f64::min);
            prop_assert!(cost <= least + 1e-9 * stats.count() as f64, "{got:?} {cost} {least}");
        }
    }

    #[test]
    fn error_is_that_of_the_density(x in few_bins(), scale in 0.05f64..6.0, zero_point in -8i32..=7) {
        let stats = observed(&x);
        prop_assume!(stats.min() < 0.0 || stats.max() > 0.0);
        let naive = Naive::with_exact_ends(&stats);
        // A step of `scale` bins, but normal: the values are scaled up, which moves no bin.
        let up = 2f32.powi(100);
        let stats = observed(&x.iter().map(|v| v * up).collect::<Vec<_>>());
        let fine = stats.histogram().width();
        let naive_up = Naive::with_exact_ends(&stats);
        let params = QuantParams { scale: (scale * naive.width * f64::from(up)) as f32, zero_point };
        let got = calibration::error(&stats, params, QuantType::I4).expect("valid");
        let c = Candidate { step: f64::from(params.scale) / fine, below: (zero_point + 8) as usize, above: (7 - zero_point) as usize };
        let (granular, overload, clipped) = naive_up.squared_error(c);
        let unit = fine * fine / stats.count() as f64;
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * (a + b) + 1e-9 * f64::from(params.scale).powi(2);
        prop_assert!(close(got.granular, granular * unit), "{} {}", got.granular, granular * unit);
        prop_assert!(close(got.overload, overload * unit), "{} {}", got.overload, overload * unit);
        prop_assert!((got.clipped - clipped / stats.count() as f64).abs() < 1e-9);
    }

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
            prop_assert!(affine::params(Range { lo, hi }, scheme).is_ok());
        }
        prop_assert_eq!(range(&stats, "mse", scheme), range(&stats, "sqnr", scheme));
    }
}

/// Where cells end where bins end, the formula is the divergence of two lists written out.
#[test]
fn the_formula_is_the_divergence() {
    // 30 bins, 7 levels above zero of 2 bins each: cells end at 1, 3, 5 .. 15.
    let counts: Vec<f64> = (0..30).map(|i| f64::from((i * 7 + 3) % 5 * (30 - i))).collect();
    let side = counts.iter().enumerate().map(|(i, n)| (i as f64, i as f64 + 1.0, *n)).collect();
    let zeros = 1000.0;
    let naive = Naive { negative: Vec::new(), positive: side, total: counts.iter().sum::<f64>() + zeros, width: 1.0 };
    let clipped: f64 = counts[15..].iter().sum();
    let mut p = counts[..15].to_vec();
    p[14] += clipped;
    let mut q = vec![0.0; 15];
    for cell in std::iter::once(0..1).chain((1..15).step_by(2).map(|i| i..i + 2)) {
        let filled = cell.clone().filter(|i| p[*i] > 0.0).count() as f64;
        let mass: f64 = counts[cell.clone()].iter().sum();
        cell.filter(|i| p[*i] > 0.0).for_each(|i| q[i] = mass / filled);
    }
    p.push(zeros);
    q.push(zeros);
    let got = naive.divergence(Candidate { step: 2.0, below: 0, above: 7 }) / naive.total;
    assert!(clipped > 0.0 && (got - kullback_leibler(&p, &q)).abs() < 1e-12, "{got} {}", kullback_leibler(&p, &q));
}

/// At full size the oracle cannot try everything: a sample of the candidates.
#[test]
fn full_histograms_have_no_better_candidate() {
    let mut x = normal(100_000);
    x.iter_mut().for_each(|v| *v = if *v < 0.0 { *v * 0.3 } else { *v });
    x[7] = 9.0;
    let stats = observed(&x);
    for scheme in [ASYMMETRIC, SYMMETRIC] {
        let (exact, whole) = (Naive::with_exact_ends(&stats), Naive::new(&stats));
        let error = |c| { let (granular, overload, _) = exact.squared_error(c); granular + overload };
        let mse = error(chosen(range(&stats, "mse", scheme), &exact, scheme));
        let entropy = whole.divergence(chosen(range(&stats, "entropy", scheme), &whole, scheme));
        let all = candidates(&exact, exact.extents(), scheme);
        let stride = (all.len() / 150).max(1);
        for c in all.into_iter().step_by(stride) {
            assert!(mse <= error(c) * (1.0 + 1e-6), "{c:?} {mse} {}", error(c));
            assert!(c.step < 1.0 || entropy <= whole.divergence(c) + 1e-3, "{c:?} {entropy} {}", whole.divergence(c));
        }
    }
}

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
    // 1, 2 .. 1000 and their negatives, in bins of 1/2: 100 of 2000 outside.
    let x: Vec<f32> = (1..=1000).flat_map(|i| [i as f32, -i as f32]).collect();
    let of = |x: &[f32], scheme, p| calibration::range(&observed(x), "percentile", scheme, p).expect("valid");
    assert_eq!(of(&x, SYMMETRIC, 95.0), Range { lo: -951.0, hi: 951.0 });
    assert_eq!(of(&x, ASYMMETRIC, 95.0), Range { lo: -951.0, hi: 951.0 });
    let positive: Vec<f32> = (1..=1000).map(|i| i as f32).collect();
    assert_eq!(of(&positive, ASYMMETRIC, 95.0), Range { lo: 0.0, hi: 951.0 });
    assert_eq!(of(&x, SYMMETRIC, 100.0), Range { lo: -1000.0, hi: 1000.0 });
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
        assert!((got.hi / bare.hi - 1.0).abs() < 0.02, "{zeros} zeros: {got:?}, none: {bare:?}");
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
            let (got, full) = (range(&stats, method, scheme(dtype, symmetric)), range(&stats, "minmax", scheme(dtype, symmetric)));
            assert!(got.hi >= full.hi * 0.999 && got.hi <= full.hi * 1.001 && got.lo <= full.lo * 0.999, "{method} {got:?} {full:?}");
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
            &[x.len()], requant_core::Granularity::PerTensor, QuantType::U8, false,
            std::slice::from_ref(&params.scale), std::slice::from_ref(&params.zero_point),
        ).expect("valid");
        let mut y = vec![0.0; x.len()];
        map.fake_quantize(&x, &mut y).expect("same length");
        let squared: f64 = x.iter().zip(&y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
        let got = calibration::error(&stats, params, QuantType::U8).expect("valid");
        let want = 10.0 * (power / squared).log10();
        assert!((got.sqnr_db - want).abs() < 0.05, "{} {} {want}", method.name, got.sqnr_db);
    }
}

#[test]
fn degenerate_input_is_refused_or_defined() {
    let empty = observed(&[f32::NAN, f32::INFINITY]);
    let params = QuantParams { scale: 1.0, zero_point: 0 };
    for method in METHODS {
        assert_eq!(calibration::range(&empty, method.name, ASYMMETRIC, 99.0), Err(Error::Empty));
        for x in [0.0, -0.0, 5.0, -5.0, 1e38, -1e38, f32::MAX, f32::MIN, 1e-45, -1e-45, f32::MIN_POSITIVE] {
            for scheme in [ASYMMETRIC, SYMMETRIC] {
                let Range { lo, hi } = range(&observed(&[x; 5]), method.name, scheme);
                let far = if scheme.symmetric && x < 0.0 { -x } else { x };
                assert!(lo == far.min(0.0).min(-hi * f32::from(u8::from(scheme.symmetric && x < 0.0))), "{} of {x}: [{lo}, {hi}]", method.name);
                assert_eq!(hi, far.max(0.0), "{} of {x}: [{lo}, {hi}]", method.name);
            }
        }
    }
    assert_eq!(calibration::error(&empty, params, QuantType::I8), Err(Error::Empty));
    let stats = observed(&[1.0]);
    for percentile in [0.0, -1.0, 100.1, f64::NAN] {
        assert!(matches!(calibration::range(&stats, "minmax", ASYMMETRIC, percentile), Err(Error::Percentile(_))));
    }
    let error = calibration::range(&stats, "kl", ASYMMETRIC, 99.0).expect_err("no such method").to_string();
    assert_eq!(error, "unknown calibration method \"kl\"; choose one of minmax, percentile, entropy, mse, sqnr");
    assert!(calibration::error(&stats, QuantParams { scale: 0.0, zero_point: 0 }, QuantType::I8).is_err());
    assert!(calibration::error(&stats, QuantParams { scale: 1.0, zero_point: 128 }, QuantType::I8).is_err());
}
