//! Summaries, histograms, sums and tables of bytes, and what calibration searches with.

use requant_core::kernels::{self, BINS, Bins, Counters, Kernels, Piece, STEPS, Tail, Terms, WAYS, WINDOW};

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
    let runs: Vec<f32> = (0..WINDOW + 4)
        .map(|i| if i < 4 { i as f32 + 1.0 } else { 0.0 })
        .collect();
    let steps: [f64; STEPS] = std::array::from_fn(|lane| 1.0 + lane as f64 / 32.0);
    let sums: Vec<f64> = (0..40).rev().map(f64::from).collect();
    for count in [0, 1, 4, 9, 19] {
        compare(kernels::available(), |k: &dyn Kernels| {
            let (mut edges, mut spreads) = (vec![tails[0]; count + 1], vec![0.0; count]);
            k.cut(&tails, 1.3, 1, &mut edges, &mut spreads);
            let (mut lost, mut clipped) = (vec![0.0; count], vec![0.0; count]);
            k.lose(
                [&sums[..count + 2], &sums[..count + 2], &sums[..count + 2]],
                2,
                &mut lost,
            );
            let mut cells = vec![[0.0; STEPS]; count];
            k.add_up([&runs; 4], &steps, 1, &[0.0; STEPS], &mut cells);
            let bins = Bins {
                fewest: &sums[1..=count],
                n_log_n: &sums[1..=count],
                beyond: &sums[..=count],
                fullest: &sums[..count],
                total: 200.0,
            };
            k.clip(&bins, 2, &mut clipped);
            let mut logs = vec![0.0; count];
            k.n_log_n(&sums[..count], &mut logs);
            let excess = k.excess(&pieces, 19.5, 1.3, 0, count);
            (
                edges,
                spreads,
                bits(&lost),
                bits(cells.as_flattened()),
                (clipped, logs),
                excess.to_bits(),
            )
        });
    }
}
