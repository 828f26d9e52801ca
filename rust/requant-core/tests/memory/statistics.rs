//! Summaries, histograms, sums and tables of bytes, and what calibration searches with.

use requant_core::kernels::{self, BINS, Corners, Counters, Kernels, Piece, Tables, Tail, Terms, WAYS};

use crate::{bits, compare, noise, reals};

#[test]
fn statistics() {
    for length in [0, 7, 33, 131] {
        for odd in [0.0, f32::NAN] {
            let mut x = reals(length);
            x.iter_mut().take(1).for_each(|v| *v += odd);
            compare(kernels::available(), |k: &dyn Kernels| {
                let mut counters: Box<Counters> = Box::new([[0; BINS]; WAYS]);
                let summary = k.tally(&x, 8.0, 1, &mut counters);
                let counted: u32 = counters.as_flattened().iter().sum();
                let (mut lo, mut hi) = (vec![0.0; length], vec![1.0; length]);
                let widened = k.widen(&x, &mut lo, &mut hi);
                (summary, counted, k.extrema(&x), widened, bits(&lo), bits(&hi))
            });
        }
        let bytes = noise(length);
        let table = std::array::from_fn(|i| i as u8 ^ 0x5a);
        for signed in [false, true] {
            let (a, b, constant) = (0.7, -0.3, 20.0);
            let (min, max) = if signed { (-128, 127) } else { (0, 255) };
            let terms = Terms {
                a,
                b,
                constant,
                min,
                max,
                signed,
            };
            compare(kernels::available(), |k: &dyn Kernels| {
                let (mut sum, mut mapped) = (vec![0; length], vec![0; length]);
                k.add(&bytes, &bytes, &terms, &mut sum);
                k.look_up(&table, &bytes, &mut mapped);
                (sum, mapped)
            });
        }
    }
}

#[test]
fn densities() {
    let tails: Vec<Tail> = (0..=20u32)
        .map(|i| Tail {
            mass: f64::from((20 - i).pow(2)),
            bins: f64::from(20 - i),
        })
        .collect();
    let piece = |i: u32| f64::from(20 - i);
    let pieces: Vec<Piece> = (0..20)
        .map(|i| Piece {
            density: 1.0,
            beyond: piece(i),
            excess: piece(i).powi(2),
            excess_sq: piece(i).powi(3),
        })
        .collect();
    let corners: Vec<Corners> = (0..40)
        .map(|i| Corners([1.0, 2.0, 3.0, 4.0].map(|v| v * i as f32)))
        .collect();
    let sums: Vec<f64> = (0..40).rev().map(f64::from).collect();
    for count in [0, 1, 4, 9, 19] {
        compare(kernels::available(), |k: &dyn Kernels| {
            let (mut edges, mut spreads) = (vec![tails[0]; count + 1], vec![0.0; count]);
            k.cut(&tails, 1.3, 1, &mut edges, &mut spreads);
            let (mut lost, mut cells) = (vec![0.0; count], vec![0.0; count]);
            k.lose(
                [&sums[..count + 2], &sums[..count + 2], &sums[..count + 2]],
                2,
                &mut lost,
            );
            let tables = Tables {
                corners: &corners,
                wide: 0,
                narrow: 20,
                bins: 20,
            };
            k.interpolate(&tables, 1.3, 1, &mut cells);
            let lost_to = [10.0, f32::INFINITY].map(|limit| k.add_up(&tables, 1.3, count, limit).to_bits());
            let excess = k.excess(&pieces, 19.5, 1.3, 0, count);
            (edges, spreads, bits(&lost), bits(&cells), lost_to, excess.to_bits())
        });
    }
}
