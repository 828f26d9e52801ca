//! What the calibration search looks up: every set of kernels gives the bits of the generic one, and that one what it
//! says.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "tests know their numbers"
)]

use requant_core::kernels::{self, Bins, Kernels, Piece, STEPS, Tail, WINDOW};

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

const WIDTHS: [f64; 6] = [0.126, 1.0, 1.3, 2.5, 13.37, 400.0];

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
            for step in WIDTHS {
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
            for step in WIDTHS {
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

/// Entries for runs of widths from `width - 1` to `width + 2`, and zeros.
fn runs(bins: usize, width: usize, of: impl Fn(f64, f64) -> f64) -> [Vec<f32>; 4] {
    [0, 1, 2, 3].map(|more| {
        let entry = |i: usize| of(i as f64, (i + width + more) as f64 - 1.0) as f32;
        (0..bins)
            .map(entry)
            .chain(std::iter::repeat_n(0.0, WINDOW + 1))
            .collect()
    })
}

/// Neighbouring steps with edges that lie as far apart as given, on the grid.
fn neighbours(narrowest: f64, apart: f64, last: usize) -> [f64; STEPS] {
    let apart = (apart / last as f64 * 2f64.powi(39)).floor() / 2f64.powi(39);
    std::array::from_fn(|lane| (narrowest + lane as f64 * apart).min(narrowest.floor() + 1.0 - 2f64.powi(-39)))
}

#[test]
fn cells_lie_between_their_corners() {
    let generic = kernels::by_name("generic").expect("always present");
    // A function of both ends that is linear in each.
    let f = |i: f64, j: f64| 1e3 + 3.0 * i - 2.0 * j + 0.25 * i * j;
    for bins in [1usize, 40, 300, 2000] {
        for narrowest in [1.0, 1.25, 2.5, 7.999, 8.0, 13.375] {
            let runs = runs(bins, narrowest as usize, f);
            let runs = [&runs[0][..], &runs[1], &runs[2], &runs[3]];
            for (first, count) in [(1, 0), (1, 7), (1, 16), (2, 100), (9, 33), (1, 255)] {
                for apart in [0.0, 0.3, 0.98, 1.89] {
                    let steps = neighbours(narrowest, apart, first + count);
                    let from: [f32; STEPS] = std::array::from_fn(|lane| lane as f32);
                    let sums = |kernels: &dyn Kernels| {
                        let mut sums = vec![[f32::NAN; STEPS]; count];
                        kernels.add_up(runs, &steps, first, &from, &mut sums);
                        sums
                    };
                    let got = sums(generic);
                    for (lane, step) in steps.iter().enumerate() {
                        let (mut want, mut size) = (f64::from(from[lane]), 1.0);
                        for (k, sums) in (first..).zip(&got) {
                            let (inner, outer) = ((k as f64 - 0.5) * step, (k as f64 + 0.5) * step);
                            if inner + 1.0 >= bins as f64 {
                                break; // some corners are the zeros
                            }
                            want += f(inner, outer);
                            size += f(inner, outer).abs() + outer * outer;
                            assert!(
                                (f64::from(sums[lane]) - want).abs() <= 1e-5 * size,
                                "{k} {step}: {} {want}",
                                sums[lane]
                            );
                        }
                    }
                    for kernels in kernels::available() {
                        let what = format!("{} {narrowest} {apart} {bins} {count}", kernels.name());
                        assert_eq!(sums(kernels), got, "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn clipping_costs_at_least_what_it_says() {
    let generic = kernels::by_name("generic").expect("always present");
    for counts in sides() {
        let len = counts.len();
        let before = |i: usize| counts[i].min(counts[i.saturating_sub(1)]);
        let fewest: Vec<f64> = (0..len).map(before).collect();
        let [beyond, ..] = sums_beyond(&counts, 1);
        let fullest: Vec<f64> = (0..len)
            .map(|i| counts[i..].iter().copied().fold(0.0, f64::max))
            .collect();
        let logs = |kernels: &dyn Kernels| {
            let mut logs = vec![f64::NAN; len];
            kernels.n_log_n(&fewest, &mut logs);
            logs
        };
        for (log, n) in logs(generic).iter().zip(&fewest) {
            let want = if *n > 0.0 { n * n.ln() } else { 0.0 };
            assert!((log - want).abs() <= 1e-14 * want.abs(), "{n}: {log} {want}");
        }
        let n_log_n = logs(generic);
        for (width, total) in [(1, beyond[0]), (4, 1.5 * beyond[0]), (16, 9.0 * beyond[0])] {
            let bins = Bins {
                fewest: &fewest,
                n_log_n: &n_log_n,
                beyond: &beyond,
                fullest: &fullest,
                total,
            };
            let least = |kernels: &dyn Kernels| {
                let mut least = vec![f64::NAN; len];
                kernels.clip(&bins, width, &mut least);
                least
            };
            let got = least(generic);
            for (i, least) in got.iter().enumerate() {
                let (outer, inner) = (beyond[i + 1], beyond[i].min(total / 4.0));
                if outer > inner {
                    assert_eq!(*least, f64::INFINITY, "{i}");
                    continue;
                }
                // With all that may be clipped in this bin, the least of many.
                let (q, m) = (fullest[i.saturating_sub(width + 2)], fewest[i] / 2.0);
                let x = 2.0 * inner / total;
                let share = (2.0 - x) / (2.0 - 2.0 * x);
                let n_log_n = |n: f64| if n > 0.0 { n * n.ln() } else { 0.0 };
                let cost = |part: u32| {
                    let t = outer + (inner - outer) * f64::from(part) / 1e3;
                    n_log_n(m + t) - n_log_n(m) - t * (q.ln() + share)
                };
                let want = (0..=1000).map(cost).fold(f64::INFINITY, f64::min);
                assert!(
                    *least <= want + 1e-9 * (q + want.abs()) && *least >= want - 1e-3 * (q + want.abs()),
                    "{i}: {least} {want}"
                );
            }
            for kernels in kernels::available() {
                assert_eq!(logs(kernels), n_log_n, "{}", kernels.name());
                assert_eq!(least(kernels), got, "{} {width}", kernels.name());
            }
        }
    }
}
