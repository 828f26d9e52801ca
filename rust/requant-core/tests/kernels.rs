//! Every set of kernels gives the same bits as the generic one, and the generic one those of its definition.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests know their numbers"
)]

use requant_core::kernels::{self, BINS, Counters, Kernels, WAYS};

const SPECIALS: [f32; 22] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    1.999_999_9,
    -2.0,
    1e-40,
    -1e-40,
    1e-45,
    -1e-45,
    3.75,
    -3.75,
    7.0,
    -6.999_999_5,
    100.25,
    -511.5,
    1023.0,
    -1024.0,
    2.5e-38,
    -3.3,
];
const NOT_FINITE: [f32; 4] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN];
const OFF_THE_GRID: [f32; 5] = [3e9, -3e9, f32::MAX, f32::MIN, 1e30];

/// Around vectors, groups of 32, pieces of 512, and the 8,192 from which counters are fetched first.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=67).chain([
        127, 128, 129, 255, 256, 300, 511, 512, 513, 1023, 1024, 1025, 1029, 2700, 8191, 8192, 8230,
    ])
}

fn cleared() -> Box<Counters> {
    Box::new([[0; BINS]; WAYS])
}

/// `len` values that cycle through `values`, beginning with the `shift`-th.
fn cycle(values: &[f32], len: usize, shift: usize) -> Vec<f32> {
    values.iter().copied().cycle().skip(shift).take(len).collect()
}

fn generic() -> &'static dyn Kernels {
    kernels::by_name("generic").expect("always present")
}

/// Which of its tables a set counts in is its own affair.
fn assert_same(got: &Counters, want: &Counters, what: &str) {
    let sum = |counters: &Counters, slot| counters.iter().fold(0u32, |sum, table| sum.wrapping_add(table[slot]));
    for slot in 0..BINS {
        assert_eq!(sum(got, slot), sum(want, slot), "{what}, slot {slot}");
    }
}

#[test]
fn generic_is_last_and_best_is_active() {
    let names: Vec<_> = kernels::available().map(Kernels::name).collect();
    assert_eq!(names.last(), Some(&"generic"));
    if std::env::var_os("REQUANT_ISA").is_none() {
        assert_eq!(kernels::active().expect("nothing is forced").name(), names[0]);
    }
    let error = kernels::by_name("mmx").err().expect("no such set").to_string();
    assert_eq!(
        error,
        format!(
            "REQUANT_ISA=\"mmx\" cannot run here; this machine has {}",
            names.join(", ")
        )
    );
}

#[test]
fn every_set_equals_generic() {
    for kernels in kernels::available() {
        for len in lengths() {
            for shift in 0..SPECIALS.len() {
                let x = cycle(&SPECIALS, len, shift);
                for inv_width in [1.0, 0.25, 4.0, 2f32.powi(-117)] {
                    let (mut got, mut want) = (cleared(), cleared());
                    let summary = kernels.tally(&x, inv_width, 1, &mut got);
                    let name = kernels.name();
                    assert_eq!(
                        summary,
                        generic().tally(&x, inv_width, 1, &mut want),
                        "{name}, length {len}, shift {shift}"
                    );
                    let what = format!("{name}, length {len}, shift {shift}, 1/width {inv_width}");
                    assert_same(&got, &want, &what);
                }
            }
        }
    }
}

/// Runs of one value, which a set may count at once, with another value somewhere.
#[test]
fn runs_are_counted() {
    for kernels in kernels::available() {
        for (value, other) in [(1.5, 1.5), (1.5, -1.5), (0.0, -0.0), (-0.0, 3.0), (-7.0, -7.25)] {
            for len in [31, 32, 33, 511, 512, 513, 1024, 1300, 8192] {
                for at in [0, 1, 127, 128, 200, 383, 511, 512, 1100, len - 1] {
                    let mut x = vec![value; len];
                    if let Some(v) = x.get_mut(at) {
                        *v = other;
                    }
                    let (mut got, mut want) = (cleared(), cleared());
                    let summary = kernels.tally(&x, 4.0, 3, &mut got);
                    assert_eq!(summary, generic().tally(&x, 4.0, 3, &mut want), "{}", kernels.name());
                    let what = format!("{}, {len} of {value}, and {other} at {at}", kernels.name());
                    assert_same(&got, &want, &what);
                }
            }
        }
    }
}

/// Zeros, which a set may leave out and count together, few and many; what is counted can be taken back.
#[test]
fn zeros_are_counted_wherever_they_are() {
    let mut state = 1u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 32
    };
    for (share, len) in (0..=8).flat_map(|share| [16, 128, 131, 700, 2100].map(|len| (share, len))) {
        for last in [1.5, 0.0, f32::NAN] {
            let mut value = || match random() % 8 {
                part if part < share => [0.0, -0.0][usize::from(random() % 2 == 0)],
                _ => SPECIALS[usize::try_from(random()).unwrap() % SPECIALS.len()],
            };
            let mut x: Vec<f32> = (0..len).map(|_| value()).collect();
            x[len - 1] = last;
            let mut want = cleared();
            let summary = generic().tally(&x, 4.0, 3, &mut want);
            for kernels in kernels::available() {
                let mut got = cleared();
                let what = format!("{}, {share} of 8 zeros, length {len}, {last} last", kernels.name());
                assert_eq!(kernels.tally(&x, 4.0, 3, &mut got), summary, "{what}");
                assert_same(&got, &want, &what);
                kernels.tally(&x, 4.0, 3u32.wrapping_neg(), &mut got);
                assert_eq!(got.as_flattened().iter().find(|count| **count != 0), None, "{what}");
            }
        }
    }
}

#[test]
fn bins_mirror_each_other_in_zero() {
    for kernels in kernels::available() {
        let width = 0.25;
        let mut counters = cleared();
        kernels.tally(&SPECIALS, 1.0 / width, 1, &mut counters);
        let mut want = vec![0; BINS];
        for v in SPECIALS {
            let bin = (f64::from(v.abs()) / f64::from(width)).floor() as i64;
            want[(if v < 0.0 { -1 - bin } else { bin }).rem_euclid(BINS as i64) as usize] += 1;
        }
        let got: Vec<u32> = (0..BINS)
            .map(|slot| counters.iter().map(|table| table[slot]).sum())
            .collect();
        assert_eq!(got, want, "{}", kernels.name());
    }
}

#[test]
fn summaries_are_right() {
    for kernels in kernels::available() {
        for len in lengths().filter(|len| (1..=2700).contains(len)) {
            let x = cycle(&SPECIALS, len, 3);
            let s = kernels.tally(&x, 1.0, 0, &mut cleared()).expect("all are finite");
            assert_eq!(s.min, x.iter().copied().fold(f32::INFINITY, f32::min));
            assert_eq!(s.max, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            assert_eq!(s.zeros as usize, x.iter().filter(|v| **v == 0.0).count());
            let sum: f64 = x.iter().map(|v| f64::from(*v)).sum();
            let sum_sq: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
            assert!(
                (s.sum - sum).abs() <= 1e-9 && (s.sum_sq - sum_sq).abs() <= 1e-15 * sum_sq,
                "length {len}"
            );
        }
        let zeros = kernels
            .tally(&[-0.0; 40], 1.0, 0, &mut cleared())
            .expect("all are finite");
        assert!(zeros.min.is_sign_positive() && zeros.max.is_sign_positive(), "-0 is 0");
    }
}

#[test]
fn what_is_not_finite_is_reported_and_all_can_be_taken_back() {
    for kernels in kernels::available() {
        for len in lengths().filter(|len| *len > 0) {
            for at in [0, len / 2, len - 1] {
                for odd in NOT_FINITE.into_iter().chain(OFF_THE_GRID) {
                    let mut x = cycle(&SPECIALS, len, at);
                    x[at] = odd;
                    let mut counters = cleared();
                    let summary = kernels.tally(&x, 8.0, 1, &mut counters);
                    assert_eq!(
                        summary.is_some(),
                        odd.is_finite(),
                        "{}, {odd} at {at} of {len}",
                        kernels.name()
                    );
                    assert_eq!(counters.as_flattened().iter().sum::<u32>() as usize, len);
                    kernels.tally(&x, 8.0, 1u32.wrapping_neg(), &mut counters);
                    assert!(
                        counters.as_flattened().iter().all(|n| *n == 0),
                        "{}, {odd} at {at} of {len}",
                        kernels.name()
                    );
                }
            }
        }
    }
}

/// Where all values of vectors and pieces are such, whatever slots they have.
#[test]
fn only_what_is_not_finite_or_off_the_grid_can_be_taken_back() {
    for kernels in kernels::available() {
        for len in [1, 15, 16, 31, 32, 33, 511, 512, 513, 1100] {
            for odd in NOT_FINITE.into_iter().chain(OFF_THE_GRID) {
                for x in [vec![odd; len], cycle(&[odd, 0.0, -odd], len, 1)] {
                    for inv_width in [8.0, 2f32.powi(126)] {
                        let mut counters = cleared();
                        let what = format!("{}, {len} of {odd}, 1/width {inv_width}", kernels.name());
                        kernels.tally(&x, inv_width, 1, &mut counters);
                        assert_eq!(counters.as_flattened().iter().sum::<u32>() as usize, len, "{what}");
                        kernels.tally(&x, inv_width, 1u32.wrapping_neg(), &mut counters);
                        assert!(counters.as_flattened().iter().all(|n| *n == 0), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn extrema_are_those_of_the_definition() {
    for kernels in kernels::available() {
        let name = kernels.name();
        assert_eq!(kernels.extrema(&[]), Some((f32::INFINITY, f32::NEG_INFINITY)), "{name}");
        for len in lengths().filter(|len| *len > 0) {
            for shift in 0..SPECIALS.len() {
                let x = cycle(&SPECIALS, len, shift);
                let sorted = |pick: fn(f32, f32) -> f32| x.iter().copied().reduce(pick).map(|v| (v + 0.0).to_bits());
                let got = kernels.extrema(&x).expect("all are finite");
                assert_eq!(
                    Some(got.0.to_bits()),
                    sorted(f32::min),
                    "{name}, length {len}, shift {shift}"
                );
                assert_eq!(
                    Some(got.1.to_bits()),
                    sorted(f32::max),
                    "{name}, length {len}, shift {shift}"
                );
            }
            for (at, odd) in [0, len / 2, len - 1]
                .into_iter()
                .flat_map(|at| NOT_FINITE.map(|odd| (at, odd)))
            {
                let mut x = vec![1.0; len];
                x[at] = odd;
                assert_eq!(kernels.extrema(&x), None, "{name}, {odd} at {at} of {len}");
            }
        }
    }
}

#[test]
fn widening_is_that_of_the_definition() {
    for kernels in kernels::available() {
        let name = kernels.name();
        for len in lengths() {
            let (mut lo, mut hi) = (cycle(&SPECIALS, len, 5), cycle(&SPECIALS, len, 9));
            let (mut want_lo, mut want_hi) = (lo.clone(), hi.clone());
            for shift in 0..SPECIALS.len() {
                let mut x = cycle(&SPECIALS, len, shift);
                let numbers = shift % 5 != 0 || len == 0;
                if !numbers {
                    x[len / 2] = f32::NAN;
                }
                assert_eq!(kernels.widen(&x, &mut lo, &mut hi), numbers, "{name}, length {len}");
                for ((v, lo), hi) in x.iter().zip(&mut want_lo).zip(&mut want_hi) {
                    (*lo, *hi) = (if v < lo { *v } else { *lo }, if v > hi { *v } else { *hi });
                }
                let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(
                    (bits(&lo), bits(&hi)),
                    (bits(&want_lo), bits(&want_hi)),
                    "{name}, length {len}"
                );
            }
        }
    }
}

#[test]
fn sums_of_two_are_those_of_the_definition() {
    for kernels in kernels::available() {
        let name = kernels.name();
        for len in lengths() {
            for shift in 0..SPECIALS.len() {
                let (a, b) = (cycle(&SPECIALS, len, shift), cycle(&SPECIALS, len, 2 * shift + 1));
                let mut peaks = cycle(&SPECIALS, len, 7).into_iter().map(f64::from).collect::<Vec<_>>();
                let sums = a.iter().zip(&b).map(|(a, b)| (f64::from(*a) + f64::from(*b)).abs());
                let want: Vec<f64> = peaks.iter().zip(sums).map(|(peak, sum)| peak.max(sum)).collect();
                kernels.raise_to_sums(&a, &b, &mut peaks);
                assert_eq!(peaks, want, "{name}, length {len}, shift {shift}");
                let sums = a
                    .chunks_exact(2)
                    .map(|pair| (f64::from(pair[0]) + f64::from(pair[1])).abs());
                let got = kernels.largest_sum(&a);
                assert_eq!(
                    got.to_bits(),
                    sums.fold(0.0, f64::max).to_bits(),
                    "{name}, length {len}, shift {shift}"
                );
            }
        }
    }
}
