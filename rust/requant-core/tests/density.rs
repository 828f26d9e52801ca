//! What the calibration search looks up: every set of kernels gives the bits of the generic one, and that one what it says.

use requant_core::kernels::{self, Kernels, Piece, Tail};

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
