//! Exhaustive search by the oracle: no candidate is better than the one chosen.
//!
//! Values that are small multiples of 2^-140 fall into few bins, as bins are at least 2^-126 wide: histograms small
//! enough for an oracle that tries everything.

use proptest::{collection::vec, prelude::*};
use requant_core::{QuantParams, QuantScheme, QuantType, Range, affine, calibration};

use crate::{
    ASYMMETRIC, SYMMETRIC,
    naive::{Candidate, Naive, kullback_leibler},
    normal, observed, range,
};

/// Tensors of at most 30 bins on each side, some of them spiky and full of holes.
fn few_bins() -> impl Strategy<Value = Vec<f32>> {
    let bins = |lo: i32, hi: i32| {
        let value = (lo..hi, 0..1 << 14, 1..60usize).prop_map(|(bin, part, n)| (bin << 14 | part, n));
        vec(value, 1..40).prop_map(|runs| {
            runs.iter()
                .flat_map(|(k, n)| std::iter::repeat_n(*k as f32 * f32::from_bits(1 << 9), *n))
                .collect()
        })
    };
    let bell = vec(
        (-9000i32..9000, -9000i32..9000, -9000i32..9000, -200_000i32..200_000),
        1..400,
    )
    .prop_map(|v| {
        v.iter()
            .map(|(a, b, c, d)| (a + b + c + d * i32::from(*d > 190_000)) as f32 * f32::from_bits(1 << 9))
            .collect()
    });
    prop_oneof![bins(-30, 30), bins(0, 30), bins(-30, 0), bins(-3, 30), bell]
}

/// Up to 260 bins: heavy tails, one or two spikes far from zero or at it, values of one size, zeros, all of it mirrored
/// or not.
fn awkward() -> impl Strategy<Value = Vec<f32>> {
    let unit = f32::from_bits(1 << 23); // a bin
    let tails = vec((1..4000u32, any::<bool>()), 1..400).prop_map(|v| {
        v.iter()
            .map(|(part, flip)| (80.0 / *part as f32).min(130.0) * if *flip { -1.0 } else { 1.0 })
            .collect::<Vec<_>>()
    });
    let spikes = (
        -130..130i32,
        -130..130i32,
        1..200usize,
        1..200usize,
        vec(-130f32..130.0, 0..20),
    )
        .prop_map(|(a, b, m, n, noise)| {
            let spike = |at: i32, count| std::iter::repeat_n(at as f32 + 0.5, count);
            spike(a, m).chain(spike(b, n)).chain(noise).collect()
        });
    let constant = (-130f32..130.0, 1..50usize).prop_map(|(v, count)| vec![v; count]);
    (
        prop_oneof![4 => tails, 4 => spikes, 1 => constant],
        0..3usize,
        0..100usize,
    )
        .prop_map(move |(mut x, fold, zeros)| {
            if fold > 0 {
                x.iter_mut().for_each(|v| *v = v.abs() * [1.0, -1.0][fold - 1]);
            }
            x.iter_mut().for_each(|v| *v *= unit);
            x.resize(x.len() + zeros, 0.0);
            x
        })
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
    let extent = if scheme.symmetric {
        extents.0.max(extents.1)
    } else {
        extents.0 + extents.1
    };
    let lo = if naive.negative.is_empty() { 0.0 } else { -1.0 };
    let one = affine::params(Range { lo, hi: 1.0 }, scheme).expect("valid");
    // Without negatives both schemes are the one that spreads all levels over [0, a], with steps that are not rounded
    // to f32.
    let unit = if lo == 0.0 && !scheme.narrow {
        1.0 / levels as f64
    } else {
        f64::from(one.scale)
    };
    (1..=extent.ceil() as usize)
        .flat_map(|i| {
            let width = (i as f64).min(extent);
            if scheme.symmetric {
                let (below, above) = ((one.zero_point - qmin) as usize, (qmax - one.zero_point) as usize);
                vec![Candidate {
                    step: width * unit,
                    below,
                    above,
                }]
            } else {
                let step = width / levels as f64;
                (0..=levels)
                    .map(|above| Candidate {
                        step,
                        below: levels - above,
                        above,
                    })
                    .collect()
            }
        })
        .collect()
}

/// The quantizer that a range stands for.
fn chosen(range: Range, naive: &Naive, scheme: QuantScheme) -> Candidate {
    let (qmin, qmax) = affine::limits(scheme.dtype, scheme.narrow);
    if scheme.symmetric {
        // Of a range without the limits that f32 sets to a scale: these values are subnormal.
        let one = affine::params(
            Range {
                lo: if range.lo < 0.0 { -1.0 } else { 0.0 },
                hi: 1.0,
            },
            scheme,
        )
        .expect("valid");
        let step = f64::from(range.hi) / naive.width * f64::from(one.scale);
        return Candidate {
            step,
            below: (one.zero_point - qmin) as usize,
            above: (qmax - one.zero_point) as usize,
        };
    }
    let levels = (qmax - qmin) as usize;
    let step = (f64::from(range.hi) - f64::from(range.lo)) / naive.width / levels as f64;
    let below = (-f64::from(range.lo) / naive.width / step).round() as usize;
    Candidate {
        step,
        below,
        above: levels - below,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn mse_finds_the_least_error(x in prop_oneof![4 => few_bins(), 1 => awkward()], scheme in four_bits()) {
        let stats = observed(&x);
        prop_assume!(stats.min() < 0.0 || stats.max() > 0.0);
        let naive = Naive::with_exact_ends(&stats);
        let error = |c| { let (granular, overload, _) = naive.squared_error(c); granular + overload };
        let exact_extents = ((-f64::from(stats.min())).max(0.0) / naive.width, f64::from(stats.max()).max(0.0) / naive.width);
        let all = candidates(&naive, exact_extents, scheme);
        let least = all.iter().map(|c| error(*c)).fold(f64::INFINITY, f64::min);
        let got = chosen(range(&stats, "mse", scheme), &naive, scheme);
        // Steps below an eighth of a bin use an integral, good to the next order of the step; ranges are rounded to
        // subnormal f32.
        let tolerance = if got.step <= 0.125 { got.step / 2.0 } else { 1e-3 };
        prop_assert!(error(got) <= least * (1.0 + tolerance) + 1e-5 * stats.count() as f64, "{got:?} {} {least}", error(got));
    }

    #[test]
    fn entropy_finds_the_least_divergence(x in prop_oneof![4 => few_bins(), 1 => awkward()], scheme in four_bits()) {
        let stats = observed(&x);
        prop_assume!(stats.min() < 0.0 || stats.max() > 0.0);
        let naive = Naive::new(&stats);
        let exact_extents = ((-f64::from(stats.min())).max(0.0) / naive.width, f64::from(stats.max()).max(0.0) / naive.width);
        let all: Vec<_> = candidates(&naive, exact_extents, scheme).into_iter().filter(|c| c.step >= 1.0).collect();
        let reach = |side: f64, step: f64| (side / step - 0.5).ceil().max(0.0) as usize;
        let (negative, positive) = naive.extents();
        let is_waste = |c: &Candidate| {
            let (below, above) = (reach(negative, c.step), reach(positive, c.step));
            !scheme.symmetric && (c.below > below && c.above < above || c.below < below && c.above > above)
        };
        // Where a cell ends on the edge of a bin, rounding decides which bin that is, and the divergence jumps.
        let around = |c: &Candidate| [1.0 - 1e-12, 1.0, 1.0 + 1e-12].map(|by| naive.divergence(Candidate { step: c.step * by, ..*c }));
        let surely = |c| around(c).into_iter().fold(0.0, f64::max);
        let least = all.iter().filter(|c| !is_waste(c)).map(surely).fold(f64::INFINITY, f64::min);
        let got = range(&stats, "entropy", scheme);
        if least == f64::INFINITY {
            prop_assert_eq!(got, range(&stats, "minmax", scheme), "no candidate is the full range");
        } else {
            // The step is rounded to a subnormal f32, which may move a cell's edge over that of a bin.
            let got = chosen(got, &naive, scheme);
            let near = all.iter().filter(|c| (c.step / got.step - 1.0).abs() < 1e-5 && (c.below, c.above) == (got.below, got.above));
            let cost = near.flat_map(around).fold(f64::INFINITY, f64::min);
            prop_assert!(cost <= least + 1e-9 * stats.count() as f64, "{got:?} {cost} {least}");
        }
    }

    #[test]
    fn error_is_that_of_the_density(x in few_bins(), halvings in 0f64..16.0, zero_point in -8i32..=7) {
        // A scale must be normal, so the values are scaled up.
        let stats = observed(&x.iter().map(|v| v * 2f32.powi(100)).collect::<Vec<_>>());
        prop_assume!(stats.min() < 0.0 || stats.max() > 0.0);
        let naive = Naive::with_exact_ends(&stats);
        let widest = f64::from(stats.max().max(-stats.min()));
        let params = QuantParams { scale: (widest * 2f64.powf(-halvings)) as f32, zero_point };
        let got = calibration::error(&stats, params, QuantType::I4).expect("valid");
        let step = f64::from(params.scale) / naive.width;
        let (granular, overload, clipped) =
            naive.squared_error(Candidate { step, below: (zero_point + 8) as usize, above: (7 - zero_point) as usize });
        let unit = naive.width * naive.width / stats.count() as f64;
        let (granular, overload, clipped) = (granular * unit, overload * unit, clipped / stats.count() as f64);
        // An eighth of a bin and less: an integral, good to the next order of the step.
        let tolerance = if step > 0.125 { 1e-6 * granular } else { 0.05 * f64::from(params.scale).powi(2) };
        let rounding = 1e-11 * (got.overload + widest * widest);
        prop_assert!((got.granular - granular).abs() <= tolerance + rounding, "{} {granular}", got.granular);
        prop_assert!((got.overload - overload).abs() <= 1e-9 * overload + rounding, "{} {overload}", got.overload);
        prop_assert!((got.clipped - clipped).abs() < 1e-9, "{} {clipped}", got.clipped);
    }
}

/// Where cells end where bins end, the formula is the divergence of two lists written out.
#[test]
fn the_formula_is_the_divergence() {
    // 30 bins, 7 levels above zero of 2 bins each: cells end at 1, 3, 5 .. 15.
    let counts: Vec<f64> = (0..30).map(|i| f64::from((i * 7 + 3) % 5 * (30 - i))).collect();
    let side = counts
        .iter()
        .enumerate()
        .map(|(i, n)| (i as f64, i as f64 + 1.0, *n))
        .collect();
    let zeros = 1000.0;
    let naive = Naive {
        negative: Vec::new(),
        positive: side,
        total: counts.iter().sum::<f64>() + zeros,
        width: 1.0,
    };
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
    let got = naive.divergence(Candidate {
        step: 2.0,
        below: 0,
        above: 7,
    }) / naive.total;
    assert!(
        clipped > 0.0 && (got - kullback_leibler(&p, &q)).abs() < 1e-12,
        "{got} {}",
        kullback_leibler(&p, &q)
    );
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
        let error = |c| {
            let (granular, overload, _) = exact.squared_error(c);
            granular + overload
        };
        let mse = error(chosen(range(&stats, "mse", scheme), &exact, scheme));
        let entropy = whole.divergence(chosen(range(&stats, "entropy", scheme), &whole, scheme));
        let all = candidates(&exact, exact.extents(), scheme);
        let stride = (all.len() / 150).max(1);
        for c in all.into_iter().step_by(stride) {
            assert!(mse <= error(c) * (1.0 + 1e-6), "{c:?} {mse} {}", error(c));
            assert!(
                c.step < 1.0 || c.below * c.above == 0 || entropy <= whole.divergence(c) + 1e-3,
                "{c:?} {entropy} {}",
                whole.divergence(c)
            );
        }
    }
}
