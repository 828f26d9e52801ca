//! How little weighted squared error scales without any rounding of their own leave: many scales and mins, each
//! followed by least squares until its levels stay, errors added up one by one in f64.

const SCALES: i32 = 80;
const ROUNDS: usize = 8;

/// The weighted squared error of `got`.
pub(crate) fn error(x: &[f32], got: &[f32], weights: &[f32]) -> f64 {
    let terms = x.iter().zip(got).zip(weights);
    terms
        .map(|((x, got), w)| f64::from(*w) * (f64::from(*x) - f64::from(*got)).powi(2))
        .sum()
}

/// The least error of a block that was found, with `x ~ scale * level + start`, and `start` 0 without `mins`.
pub(crate) fn least(x: &[f32], weights: &[f32], (lo, hi): (i32, i32), mins: bool) -> f64 {
    let x: Vec<f64> = x.iter().copied().map(f64::from).collect();
    let weights: Vec<f64> = weights.iter().copied().map(f64::from).collect();
    let low = x.iter().copied().fold(0.0, f64::min);
    let high = x.iter().copied().fold(0.0, f64::max);
    let spread = if mins { high - low } else { 2.0 * high.max(-low) };
    let mut best = f64::INFINITY;
    for step in 1..=SCALES {
        for sign in [1.0, -1.0] {
            let mut scale = sign * spread / f64::from(hi - lo) * (0.5 + f64::from(step) / f64::from(SCALES));
            let mut start = if mins { low } else { 0.0 };
            for _ in 0..ROUNDS {
                let levels: Vec<f64> = x
                    .iter()
                    .map(|x| ((x - start) / scale).round().clamp(f64::from(lo), f64::from(hi)))
                    .collect();
                (scale, start) = fitted(&x, &weights, &levels, mins).unwrap_or((scale, start));
                let terms = x.iter().zip(&levels).zip(&weights);
                let error: f64 = terms.map(|((x, l), w)| w * (x - scale * l - start).powi(2)).sum();
                best = best.min(error);
            }
            if mins {
                break;
            }
        }
    }
    best
}

/// Weighted least squares, by the deviations from the means.
fn fitted(x: &[f64], weights: &[f64], levels: &[f64], mins: bool) -> Option<(f64, f64)> {
    let total: f64 = weights.iter().sum();
    let mean = |values: &[f64]| values.iter().zip(weights).map(|(v, w)| v * w).sum::<f64>() / total;
    let (mean_x, mean_l) = if mins { (mean(x), mean(levels)) } else { (0.0, 0.0) };
    let (mut along, mut square) = (0.0, 0.0);
    for ((x, l), w) in x.iter().zip(levels).zip(weights) {
        along += w * (x - mean_x) * (l - mean_l);
        square += w * (l - mean_l) * (l - mean_l);
    }
    let scale = along / square;
    (scale.is_finite() && scale != 0.0).then_some((scale, mean_x - scale * mean_l))
}
