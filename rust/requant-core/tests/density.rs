//! What the calibration search looks up: every set of kernels gives the bits of the generic one, and that one what it says.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "tests know their numbers"
)]

use requant_core::kernels::{self, Corners, Kernels, Piece, Tables, Tail};

/// Tables of a side with these counts.
fn tables(counts: &[f64]) -> (Vec<Tail>, Vec<Piece>) {
    let mut tails = vec![Tail::default(); counts.len() + 1];
    let mut pieces = Vec::new();
    let (mut beyond, mut excess, mut excess_sq) = (0.0, 0.0, 0.0);
    for (i, &count) in counts.iter().enumerate().rev() {
        tails[i].mass = tails[i + 1].mass + count;
        tails[i].bins = tails[i + 1].bins + f64::from(u8::from(count > 0.0));
        pieces.push(Piece {
            density: count,
            beyond,
            excess,
            excess_sq,
        });
        excess_sq += 2.0 * excess + beyond + count / 3.0;
        excess += beyond + count / 2.0;
        beyond += count;
    }
    pieces.reverse();
    (tails, pieces)
}

/// Dense, sparse, steep, empty but for one bin, and a single bin.
fn sides() -> Vec<Vec<f64>> {
    let dense = (0..300u32).map(|i| f64::from((i * 7919) % 97 + 1)).collect();
    let sparse = (0..300u32)
        .map(|i| f64::from(u8::from(i % 7 == 3)) * f64::from(i + 1))
        .chain([1.0])
        .collect();
    let steep = (0..60).map(|i| (1e15 * 0.5f64.powi(i)).floor().max(1.0)).collect();
    let mut spike = vec![0.0; 90];
    spike[89] = 1e9;
    vec![dense, sparse, steep, spike, vec![5.0]]
}

const STEPS: [f64; 6] = [0.126, 1.0, 1.3, 2.5, 13.37, 400.0];

/// Sums beyond `x`, bin by bin.
fn beyond(counts: &[f64], x: f64) -> (f64, f64, f64) {
    let mut sums = (0.0, 0.0, 0.0);
    for (i, n) in (0u32..).zip(counts) {
        let (inner, outer) = (f64::from(i).max(x), f64::from(i) + 1.0);
        if outer > inner && *n > 0.0 {
            let length = outer - inner;
            sums.0 += n * length;
            sums.1 += length;
            sums.2 += n * length * (f64::midpoint(inner, outer) - x);
        }
    }
    sums
}

fn cut(kernels: &dyn Kernels, tails: &[Tail], step: f64, first: usize, count: usize) -> (Vec<Tail>, Vec<f64>) {
    let mut edges = vec![Tail::default(); count + 1];
    let mut spreads = vec![0.0; count];
    // The first edge is given.
    let mut given = [tails[0], Tail::default()];
    if first > 1 {
        kernels.cut(tails, step, first - 1, &mut given, &mut [0.0]);
        edges[0] = given[1];
    } else {
        edges[0] = tails[0];
    }
    kernels.cut(tails, step, first, &mut edges, &mut spreads);
    (edges, spreads)
}

#[test]
fn every_set_equals_generic() {
    let generic = kernels::by_name("generic").expect("always present");
    for kernels in kernels::available() {
        for (side, counts) in sides().iter().enumerate() {
            let (tails, pieces) = tables(counts);
            let end = f64::from(u32::try_from(counts.len()).expect("small")) - 0.25;
            for step in STEPS {
                for first in [1, 2, 9, 100] {
                    for count in (0..=35).chain([67, 130]) {
                        let what = format!("{}, side {side}, step {step}, {count} from {first}", kernels.name());
                        let (got, want) = (
                            cut(kernels, &tails, step, first, count),
                            cut(generic, &tails, step, first, count),
                        );
                        assert_eq!(got.0, want.0, "{what}");
                        for (got, want) in got.1.iter().zip(&want.1) {
                            assert_eq!(got.to_bits(), want.to_bits(), "{what}: {got} {want}");
                        }
                        let sum = |kernels: &dyn Kernels| kernels.excess(&pieces, end, step, first - 1, count);
                        assert_eq!(sum(kernels).to_bits(), sum(generic).to_bits(), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn cells_and_excesses_are_right() {
    for kernels in kernels::available() {
        for (side, counts) in sides().iter().enumerate() {
            let (tails, pieces) = tables(counts);
            let end = f64::from(u32::try_from(counts.len()).expect("small"));
            let all = tails[0].mass;
            for step in STEPS {
                let (edges, spreads) = cut(kernels, &tails, step, 1, 40);
                let mut excess = 0.0;
                for (k, level) in (0..40).zip(1u32..) {
                    let what = format!("{}, side {side}, step {step}, level {level}", kernels.name());
                    let (inner, outer) = if level == 1 {
                        (beyond(counts, 0.0), beyond(counts, 1.5 * step))
                    } else {
                        let half = |level: u32| beyond(counts, (f64::from(level) + 0.5) * step);
                        (half(level - 1), half(level))
                    };
                    assert!((edges[k + 1].mass - outer.0).abs() <= 1e-12 * all, "{what}");
                    assert!((edges[k + 1].bins - outer.1).abs() <= 1e-9, "{what}");
                    let (mass, bins) = (inner.0 - outer.0, inner.1 - outer.1);
                    let spread = if mass > 1e-9 * all {
                        mass * (mass / bins).ln()
                    } else {
                        0.0
                    };
                    assert!(
                        (spreads[k] - spread).abs() <= 1e-6 * all,
                        "{what}: {} {spread}",
                        spreads[k]
                    );
                    excess += beyond(counts, (f64::from(level) - 0.5) * step).2;
                }
                let got = kernels.excess(&pieces, end, step, 0, 40);
                assert!(
                    (got - excess).abs() <= 1e-9 * (excess + all),
                    "{side} {step}: {got} {excess}"
                );
            }
        }
    }
}

/// Mass, bins and `n ln(n)` beyond each bin, and zeros.
fn sums_beyond(counts: &[f64], zeros: usize) -> [Vec<f64>; 3] {
    let of = |f: fn(f64) -> f64| {
        let mut sums = vec![0.0; counts.len() + zeros];
        for i in (0..counts.len()).rev() {
            sums[i] = sums[i + 1] + if counts[i] > 0.0 { f(counts[i]) } else { 0.0 };
        }
        sums
    };
    [of(|n| n), of(|_| 1.0), of(|n| n * n.ln())]
}

#[test]
fn runs_lose_what_they_lose() {
    let generic = kernels::by_name("generic").expect("always present");
    for counts in sides() {
        for width in [0, 1, 2, 5, 17] {
            let sums = sums_beyond(&counts, width + 3);
            let lost = |kernels: &dyn Kernels| {
                let mut lost = vec![f32::NAN; counts.len() + 2];
                kernels.lose(sums.each_ref().map(Vec::as_slice), width, &mut lost);
                lost
            };
            let all: f64 = counts.iter().sum();
            for (i, lost) in lost(generic).iter().enumerate() {
                let run: Vec<f64> = counts
                    .iter()
                    .skip(i)
                    .take(width)
                    .copied()
                    .filter(|n| *n > 0.0)
                    .collect();
                let mass: f64 = run.iter().sum();
                let even = mass / f64::from(u32::try_from(run.len().max(1)).expect("small"));
                let want: f64 = run.iter().map(|n| n * (n / even).ln()).sum();
                assert!(
                    (f64::from(*lost) - want).abs() <= 1e-6 * want + 1e-11 * all,
                    "{i} {width}: {lost} {want}"
                );
            }
            for kernels in kernels::available() {
                assert_eq!(lost(kernels), lost(generic), "{} {width}", kernels.name());
            }
        }
    }
}

#[test]
fn cells_lie_between_their_corners() {
    let generic = kernels::by_name("generic").expect("always present");
    // A function of both ends that is linear in each.
    let f = |i: f64, j: f64| 3.0 * i - 2.0 * j + 0.25 * i * j;
    for bins in [1usize, 40, 300] {
        for step in [1.0, 1.3, 2.5, 7.999_999, 8.0, 13.37] {
            let width = step as usize;
            let corners: Vec<Corners> = [width + 1, width]
                .into_iter()
                .flat_map(|width| {
                    (0..=bins).map(move |i| {
                        let (i, j) = (i as f64, (i + width) as f64);
                        Corners([f(i, j), f(i + 1.0, j), f(i, j + 1.0), f(i + 1.0, j + 1.0)].map(|v| v as f32))
                    })
                })
                .collect();
            let tables = Tables {
                corners: &corners,
                wide: 0,
                narrow: bins + 1,
                bins: bins + 1,
            };
            for (first, count) in [(1, 0), (1, 7), (1, 16), (2, 100), (9, 33)] {
                let cells = |kernels: &dyn Kernels| {
                    let mut out = vec![f32::NAN; count];
                    kernels.interpolate(&tables, step, first, &mut out);
                    out
                };
                for (k, got) in (first..).zip(cells(generic)) {
                    let (inner, outer) = ((k as f64 - 0.5) * step, (k as f64 + 0.5) * step);
                    if inner < bins as f64 {
                        let want = f(inner, outer);
                        assert!(
                            (f64::from(got) - want).abs() <= 1e-5 * (1.0 + outer * outer),
                            "{k} {step}: {got} {want}"
                        );
                    }
                }
                for kernels in kernels::available() {
                    assert_eq!(cells(kernels), cells(generic), "{} {step}", kernels.name());
                }
            }
        }
    }
}

#[test]
fn cells_are_added_up_to_a_limit() {
    let generic = kernels::by_name("generic").expect("always present");
    let corners: Vec<Corners> = (0..700u32)
        .map(|i| Corners([3, 5, 7, 11].map(|by| (i * by % 13) as f32)))
        .collect();
    let tables = Tables {
        corners: &corners,
        wide: 350,
        narrow: 20,
        bins: 301,
    };
    for step in [1.0, 1.25, 3.5, 9.75] {
        for count in (0..=35).chain([63, 64, 65, 130, 255]) {
            let mut cells = vec![0.0; count];
            generic.interpolate(&tables, step, 1, &mut cells);
            let sum = |count: usize| cells[..count].iter().map(|cell| f64::from(*cell)).sum::<f64>();
            for limit in [0.0, 150.0, 500.0, f32::INFINITY] {
                let got = generic.add_up(&tables, step, count, limit);
                let ends = (0..count).step_by(64).chain([count]).skip(1);
                let end = ends.clone().find(|end| sum(*end) > f64::from(limit)).unwrap_or(count);
                let what = format!("{count} cells of {step}, limit {limit}");
                assert!(
                    (f64::from(got) - sum(end)).abs() <= 1e-5 * sum(count),
                    "{what}: {got} {}",
                    sum(end)
                );
                for kernels in kernels::available() {
                    let bits = kernels.add_up(&tables, step, count, limit).to_bits();
                    assert_eq!(bits, got.to_bits(), "{what}: {}", kernels.name());
                }
            }
        }
    }
}
