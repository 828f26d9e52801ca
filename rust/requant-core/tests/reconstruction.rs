//! Rounding by the layer's output, against sums written out.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests know their numbers"
)]

use proptest::prelude::*;
use requant_core::{
    Error,
    reconstruction::{Bounds, Gain, Moments, reconstruct},
};

const FREE: Bounds = Bounds {
    magnitude: 127,
    pair: None,
};
const SAFE: Bounds = Bounds {
    magnitude: 127,
    pair: Some(128),
};

/// `(s q - w)^T H (s q - w)`.
fn power(q: &[i8], scale: f32, w: &[f32], h: &[f32]) -> f64 {
    let e: Vec<f64> = q
        .iter()
        .zip(w)
        .map(|(&q, &w)| f64::from(q) * f64::from(scale) - f64::from(w))
        .collect();
    let k = w.len();
    (0..k * k).map(|at| e[at / k] * f64::from(h[at]) * e[at % k]).sum()
}

/// `X^T X` of rows of small integers, exact in f32.
fn moments(rows: &[Vec<i8>], k: usize) -> Vec<f32> {
    let mut h = vec![0.0; k * k];
    for x in rows {
        for at in 0..k * k {
            h[at] += f32::from(x[at / k]) * f32::from(x[at % k]);
        }
    }
    h
}

fn solved(w: &[f32], h: &[f32], scales: &[f32], bounds: Bounds, search: bool) -> (Vec<i8>, Vec<f32>, Gain) {
    let k = w.len() / scales.len();
    let (mut q, mut scales) = (vec![0; w.len()], scales.to_vec());
    let moments = Moments::new(h, h.len() / (k * k), k).unwrap();
    let gain = reconstruct(w, moments, &mut scales, bounds, search, 1, &mut q).unwrap();
    (q, scales, gain)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()))
}

proptest! {
    #[test]
    fn every_integer_is_a_neighbour_and_no_single_move_gains(
        w in prop::collection::vec(-60.0f32..60.0, 5),
        rows in prop::collection::vec(prop::collection::vec(-9i8..9, 5), 1..12),
    ) {
        let h = moments(&rows, 5);
        let (q, _, gain) = solved(&w, &h, &[1.0], FREE, false);
        let nearest: Vec<i8> = w.iter().map(|w| w.round_ties_even() as i8).collect();
        prop_assert!(close(gain.nearest, power(&nearest, 1.0, &w, &h)));
        prop_assert!(close(gain.chosen, power(&q, 1.0, &w, &h)));
        prop_assert!(gain.chosen <= gain.nearest);
        for j in 0..5 {
            prop_assert!((f64::from(q[j]) - f64::from(w[j])).abs() < 1.0);
            for d in [-1, 1] {
                let mut other = q.clone();
                other[j] += d;
                let neighbour = (f64::from(other[j]) - f64::from(w[j])).abs() < 1.0;
                prop_assert!(!neighbour || power(&other, 1.0, &w, &h) >= gain.chosen - 1e-6 * (1.0 + gain.chosen));
            }
        }
    }

    #[test]
    fn bounds_hold_and_no_row_gets_worse(
        w in prop::collection::vec(-4.0f32..4.0, 3 * 7),
        rows in prop::collection::vec(prop::collection::vec(-9i8..9, 7), 1..12),
        search: bool,
    ) {
        let h = moments(&rows, 7);
        // As safe scales are: the largest sum of a pair of one sign is 127 steps.
        let scales: Vec<f32> = w.chunks(7).map(|row| {
            let largest = row.chunks(2).map(|p| {
                let (up, down): (f32, f32) = p.iter().fold((0.0, 0.0), |(u, d), &x| (u + x.max(0.0), d + (-x).max(0.0)));
                up.max(down)
            });
            largest.fold(f32::MIN_POSITIVE, f32::max) / 127.0
        }).collect();
        let (q, found, gain) = solved(&w, &h, &scales, SAFE, search);
        let total: f64 = (0..3).map(|r| power(&q[7 * r..7 * r + 7], found[r], &w[7 * r..7 * r + 7], &h)).sum();
        prop_assert!(close(gain.chosen, total));
        prop_assert!(gain.chosen <= gain.nearest);
        for row in q.chunks(7) {
            for pair in row.chunks(2) {
                let [a, b] = [pair[0], *pair.get(1).unwrap_or(&0)].map(i16::from);
                prop_assert!(a * b <= 0 || (a + b).abs() <= 128, "{pair:?}");
                prop_assert!(a.abs() <= 127 && b.abs() <= 127);
            }
        }
        for (found, given) in found.iter().zip(&scales) {
            prop_assert!(*found <= *given && *found >= 0.49 * given);
            prop_assert!(search || found == given);
        }
    }
}

#[test]
fn groups_have_moments_of_their_own_and_threads_change_nothing() {
    let w: Vec<f32> = (0..8 * 6).map(|i| ((i * 37 % 101) as f32 - 50.0) / 3.0).collect();
    let h: Vec<f32> = (0..4)
        .flat_map(|g| moments(&[vec![1, 2, g as i8, -1, 0, 3], vec![g as i8, 1, 1, 1, -2, 0]], 6))
        .collect();
    let (whole, _, gain) = solved(&w, &h, &[0.2; 8], SAFE, true);
    let mut parts = Vec::new();
    for g in 0..4 {
        let (q, ..) = solved(&w[12 * g..12 * g + 12], &h[36 * g..36 * g + 36], &[0.2; 2], SAFE, true);
        parts.extend(q);
    }
    assert_eq!(whole, parts);
    let (mut q, mut scales) = (vec![0; 48], vec![0.2; 8]);
    let threads = reconstruct(&w, Moments::new(&h, 4, 6).unwrap(), &mut scales, SAFE, true, 3, &mut q).unwrap();
    assert_eq!((q, threads), (whole, gain));
}

#[test]
fn one_large_pair_is_clipped_for_the_others() {
    let mut w = vec![0.5; 64];
    w[0] = 100.0; // meets next to nothing
    let mut h: Vec<f32> = (0..64 * 64).map(|at| if at % 65 == 0 { 1.0 } else { 0.0 }).collect();
    h[0] = 1e-9;
    let (q, scales, gain) = solved(&w, &h, &[100.0 / 127.0], FREE, true);
    assert!(scales[0] < 0.6 && q[0] == 127);
    assert!(gain.chosen < 0.5 * gain.nearest, "{gain:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    assert!(matches!(
        Moments::new(&[1.0; 3], 1, 2),
        Err(Error::Length {
            expected: 4,
            got: 3,
            ..
        })
    ));
    let wrong = |data| Moments::new(data, 1, 2).map(|_| ()).unwrap_err().to_string();
    let expected = "at [0, 1, 1]; second moments are finite, and at least 0 on the diagonal";
    assert_eq!(wrong(&[1.0, 0.0, 0.0, f32::NAN]), format!("moments has NaN {expected}"));
    assert_eq!(wrong(&[1.0, 0.0, 0.0, -1.0]), format!("moments has -1 {expected}"));
    let moments = Moments::new(&[1.0, 2.0], 2, 1).unwrap();
    let refused = |w: &[f32], scales: &mut [f32]| {
        let mut q = vec![0; scales.len()];
        reconstruct(w, moments, scales, FREE, false, 1, &mut q).unwrap_err()
    };
    assert!(matches!(
        refused(&[1.0; 3], &mut [1.0; 2]),
        Error::Length { what: "weights", .. }
    ));
    assert!(matches!(refused(&[1.0; 3], &mut [1.0; 3]), Error::Shape { .. }));
    assert!(matches!(
        refused(&[1.0, f32::INFINITY], &mut [1.0; 2]),
        Error::NonFinite { .. }
    ));
    assert!(matches!(
        refused(&[1.0; 2], &mut [1.0, 0.0]),
        Error::Scale { index: 1, .. }
    ));
}
