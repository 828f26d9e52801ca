//! Super-blocks one value after another, from the definition of the formats and of llama.cpp's search: no lanes, no
//! shared helper, levels as integers, blocks taken apart bit by bit.

/// Half to even.
fn nearest(v: f32, lo: i32, hi: i32) -> i32 {
    (v.round_ties_even() as i32).clamp(lo, hi)
}

/// Scale and min of a block for levels `0 ..= n`, and the mean of the levels.
pub(crate) fn affine(x: &[f32], n: i32) -> (f32, f32, f32) {
    let low = x.iter().copied().fold(f32::INFINITY, f32::min).min(0.0);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = high - low;
    if range < 1e-15 {
        return (0.0, -low, 0.0);
    }
    let unit = 4096.0 / range;
    let values: Vec<i32> = x.iter().map(|v| ((v - low) * unit).round_ties_even() as i32).collect();
    let (count, origin) = (x.len() as f32, -(low * unit));
    let total = values.iter().sum::<i32>() as f32;
    let off = total - count * origin;
    // What the best try takes from the squared error and its scale, both times the divisor; its levels, and whether it
    // begins at 0. Quotients are compared by products with the other's divisor.
    let (mut most, mut divisor, mut numerator, mut sum, mut pinned) = (f32::NEG_INFINITY, 1f32, 0f32, 0f32, false);
    for (half_steps, starts) in [(-1, [-7, -6, -5]), (0, [-2, 0, 2]), (1, [1, 2, 4])] {
        let eighths = 8 * n + 4 * half_steps;
        for start in starts {
            let shift = start * 4096 / eighths;
            // Half up.
            let levels = values
                .iter()
                .map(|v| ((v - shift) * eighths + (1 << 14)).div_euclid(1 << 15).clamp(0, n));
            let (mut l1, mut l2, mut la) = (0, 0, 0);
            for (l, v) in levels.zip(&values) {
                l1 += l;
                l2 += l * l;
                la += l * v;
            }
            let (l1, l2, la) = (l1 as f32, l2 as f32, la as f32);
            let spread = count * l2 - l1 * l1;
            let along = count * la - l1 * total;
            let rest = la - origin * l1;
            let at_zero = spread <= 0.0 || off * spread > along * l1;
            let (gain, over, scale) = if at_zero {
                (count * rest * rest - off * off * l2, l2, rest)
            } else {
                (along * along, spread, along)
            };
            if gain * divisor > most * over {
                (most, divisor, numerator, sum, pinned) = (gain, over, scale, l1, at_zero);
            }
        }
    }
    let scale = numerator / divisor;
    let begin = if pinned { origin } else { (total - scale * sum) / count };
    let mean = if pinned { 0.0 } else { sum / count };
    (scale * (range / 4096.0), -(low + begin * (range / 4096.0)), mean)
}

fn largest(x: &[f32]) -> f32 {
    let mut largest = 0f32;
    for &v in x {
        if v.abs() > largest.abs() {
            largest = v;
        }
    }
    largest
}

/// Scale of a block for levels `-n .. n`, weights `x^2`.
pub(crate) fn symmetric(x: &[f32], n: i32) -> f32 {
    let largest = largest(x);
    if largest.abs() < 1e-15 {
        return 0.0;
    }
    let (mut scale, mut best) = (0f32, 0f32);
    for i in [0].into_iter().chain(-9..=-1).chain(1..=9) {
        let factor = -(n as f32 + 0.1 * i as f32) / largest;
        let (mut xl, mut ll) = (0f32, 0f32);
        for &v in x {
            let l = nearest(factor * v, -n, n - 1) as f32;
            xl += v * v * v * l;
            ll += v * v * l * l;
        }
        if ll > 0.0 && xl * xl > best * ll {
            scale = xl / ll;
            best = scale * xl;
        }
    }
    scale
}

/// The same by changing single levels.
pub(crate) fn descend(x: &[f32], n: i32) -> f32 {
    let largest = largest(x);
    if largest.abs() < 1e-15 {
        return 0.0;
    }
    let factor = -n as f32 / largest;
    let mut levels: Vec<i32> = x.iter().map(|v| nearest(factor * v, -n, n - 1)).collect();
    let (mut xl, mut ll) = (0f32, 0f32);
    for (v, &l) in x.iter().zip(&levels) {
        xl += v * v * v * l as f32;
        ll += v * v * l as f32 * l as f32;
    }
    for _ in 0..5 {
        let before = levels.clone();
        for (v, l) in x.iter().zip(&mut levels) {
            let w = v * v;
            let (rest_xl, rest_ll) = (xl - w * v * *l as f32, ll - w * *l as f32 * *l as f32);
            if rest_xl <= 0.0 {
                continue;
            }
            let other = nearest(v * rest_ll / rest_xl, -n, n - 1);
            let (other_xl, other_ll) = (
                rest_xl + w * v * other as f32,
                rest_ll + w * other as f32 * other as f32,
            );
            if other != *l && other_ll > 0.0 && other_xl * other_xl * ll > xl * xl * other_ll {
                (*l, xl, ll) = (other, other_xl, other_ll);
            }
        }
        if before == levels {
            break;
        }
    }
    if ll > 0.0 { xl / ll } else { 0.0 }
}

/// A float16 as it is stored.
pub(crate) fn half(v: f32) -> f32 {
    if v == 0.0 {
        return v;
    }
    let exponent = (v.abs().log2().floor() as i32).max(-14) - 10;
    let unit = 2f64.powi(exponent);
    ((f64::from(v) / unit).round_ties_even() * unit) as f32
}

/// What the values of a super-block become, by type.
pub(crate) fn rounded(dtype: &str, x: &[f32]) -> Vec<f32> {
    match dtype {
        "q2_k" => with_mins(x, 16, 3, 15, |x| affine(x, 3)),
        "q4_k" => with_mins(x, 32, 15, 63, |x| affine(x, 15)),
        "q5_k" => with_mins(x, 32, 31, 63, |x| affine(x, 31)),
        "q3_k" => centred(x, 4, 32, |x| descend(x, 4)),
        "q6_k" => centred(x, 32, 128, |x| symmetric(x, 32)),
        other => unreachable!("{other} has no super-blocks"),
    }
}

fn with_mins(x: &[f32], size: usize, n: i32, most: i32, search: impl Fn(&[f32]) -> (f32, f32, f32)) -> Vec<f32> {
    let found: Vec<_> = x.chunks(size).map(search).collect();
    let integers = |values: &[f32]| -> (f32, Vec<i32>) {
        let largest = values.iter().copied().fold(0f32, f32::max);
        let inverse = if largest > 0.0 { most as f32 / largest } else { 0.0 };
        let integers = values.iter().map(|v| nearest(inverse * v, 0, most)).collect();
        (largest / most as f32, integers)
    };
    let (d, scales) = integers(&found.iter().map(|f| f.0).collect::<Vec<_>>());
    // The best min beside a scale that was rounded.
    let beside = found.iter().zip(&scales).map(|(&(scale, min, mean), s)| {
        let moved = d * *s as f32 - scale;
        if min > 0.0 { min + moved * mean } else { 0.0 }
    });
    let (dmin, mins) = integers(&beside.collect::<Vec<_>>());
    let (d, dmin) = (half(d), half(dmin));
    let mut out = Vec::new();
    for (i, block) in x.chunks(size).enumerate() {
        let (d, m) = (d * scales[i] as f32, dmin * mins[i] as f32);
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        out.extend(block.iter().map(|v| d * nearest((v + m) * inverse, 0, n) as f32 - m));
    }
    out
}

fn centred(x: &[f32], n: i32, most: i32, search: impl Fn(&[f32]) -> f32) -> Vec<f32> {
    let scales: Vec<f32> = x.chunks(16).map(search).collect();
    let factor = -most as f32 / largest(&scales);
    if !factor.is_finite() {
        return vec![0.0; x.len()];
    }
    let d = half(1.0 / factor);
    let mut out = Vec::new();
    for (i, block) in x.chunks(16).enumerate() {
        let d = d * nearest(factor * scales[i], -most, most - 1) as f32;
        out.extend(block.iter().map(|v| {
            d * if d == 0.0 {
                0.0
            } else {
                nearest(v / d, -n, n - 1) as f32
            }
        }));
    }
    out
}
