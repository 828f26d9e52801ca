//! The scale of a block that leaves the least weighted squared error, searched.
//!
//! A block is `x[i] ~ scale * level[i] - min`, with levels `0 ..= n`, or `x[i] ~ scale * level[i]` with levels
//! `-n .. n`. For given levels the best scale and min solve a linear least-squares problem, so a search only tries some
//! ways of rounding: with steps a little wider and narrower than those that spread the levels over the range. They are
//! the searches of llama.cpp's reference quantizers (`ggml-quants.c`: `make_qkx3_quants`, `make_qx_quants`,
//! `make_q3_quants`, `make_qp_quants`), but for one thing: [`affine`] does not add up the error that each try leaves,
//! since the sums that solve the problem tell how much of the squares it explains. Q3_K and Q6_K without importance
//! come out as llama.cpp's, to the byte. [`super::integers`] searches where all values weigh the same.

use super::lanes::{V, level};

/// Smaller blocks are zero.
pub(super) const LEAST: f32 = 1e-15;

/// Share of the squared levels that their variance has to be for a scale and a min to follow from them: rounding of the
/// sums alone can make a hundredth of it.
const LEAST_SPREAD: f32 = 1.0 / 4096.0;

/// Roundings that are tried: those with `(FIRST + i * STEP + n) / range` for `i` of `0 ..= COUNT`, where the range is
/// from the lowest value, or what the best rounding so far has in its place, to the highest. They are llama.cpp's.
const FIRST: f32 = -0.9;
const STEP: f32 = 0.05;
const COUNT: u8 = 36;

/// Scale and min of blocks.
#[derive(Clone, Copy)]
pub(super) struct Affine<const LANES: usize> {
    pub(super) scale: V<LANES>,
    /// What is taken away: never negative.
    pub(super) min: V<LANES>,
    /// The mean of the levels that these are best for, by the weights of values.
    pub(super) mean_level: V<LANES>,
}

/// The best of the tried scales and mins for levels `0 ..= n`.
#[inline(always)]
pub(super) fn affine<const N: usize, const LANES: usize>(
    x: &[V<LANES>; N],
    weights: &[V<LANES>; N],
    n: f32,
) -> Affine<LANES> {
    let zero = V::all(0.0);
    let (mut low, mut high) = (zero, x[0]);
    for &x in x {
        (low, high) = (low.min(x), high.max(x));
    }
    // Sums of what values exceed the lowest by: sums of squares that are not much more than the error keep its digits.
    let (mut above, mut sum_w, mut sum_x) = ([zero; N], zero, zero);
    for ((above, &x), &w) in above.iter_mut().zip(x).zip(weights) {
        *above = x - low;
        sum_w += w;
        sum_x += w * *above;
    }
    let range = high - low;
    let (mut scale, mut offset, mut most) = (range / V::all(n), zero, V::all(f32::NEG_INFINITY));
    let mut levels = zero;
    for i in 0..=COUNT {
        let factor = V::all(FIRST + STEP * f32::from(i) + n) / (range - offset);
        let (mut sum_l, mut sum_ll, mut sum_xl) = (zero, zero, zero);
        for (&x, &w) in above.iter().zip(weights) {
            let l = (factor * (x - offset)).level(0.0, n);
            let wl = w * l;
            sum_l += wl;
            sum_ll += wl * l;
            sum_xl += wl * x;
        }
        let (product, square) = (sum_w * sum_ll, sum_l * sum_l);
        let determinant = product - square;
        let best_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let best_offset = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
        // A min that would be negative is 0, and so is one that nearly equal levels do not tell.
        let through_zero = (sum_xl + low * sum_l) / sum_ll;
        let told = (product * V::all(LEAST_SPREAD)).if_greater(determinant, V::all(f32::INFINITY), best_offset + low);
        let tried_scale = told.if_greater(zero, through_zero, best_scale);
        let tried_offset = told.if_greater(zero, zero - low, best_offset);
        let linear = tried_scale * sum_xl + tried_offset * sum_x;
        let quadratic = tried_scale * (tried_scale * sum_ll + tried_offset * sum_l)
            + tried_offset * (tried_scale * sum_l + tried_offset * sum_w);
        let explained = linear + linear - quadratic;
        scale = explained.if_greater(most, tried_scale, scale);
        offset = explained.if_greater(most, tried_offset, offset);
        levels = explained.if_greater(most, sum_l, levels);
        most = most.max(explained);
    }
    Affine {
        scale: range.if_greater(zero, scale, zero),
        min: zero - (low + range.if_greater(zero, offset, zero)),
        mean_level: levels / sum_w,
    }
}

/// The best of 19 scales for levels `-n .. n`.
#[inline(always)]
pub(super) fn symmetric<const N: usize, const LANES: usize>(
    x: &[V<LANES>; N],
    weights: &[V<LANES>; N],
    n: f32,
) -> V<LANES> {
    let (largest, magnitude) = largest(x);
    let zero = V::all(0.0);
    let (mut scale, mut best) = (zero, zero);
    for i in [0i8, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9] {
        let factor = V::all(-(n + 0.1 * f32::from(i))) / largest;
        let (mut sum_xl, mut sum_ll) = (V::all(0.0), V::all(0.0));
        for (&x, &w) in x.iter().zip(weights) {
            let l = (factor * x).level(-n, n - 1.0);
            let wl = w * l;
            sum_xl += w * x * l;
            sum_ll += wl * l;
        }
        let solved = sum_xl / sum_ll;
        let (square, bound) = (sum_xl * sum_xl, best * sum_ll);
        // Without any level there is nothing to gain.
        let bound = sum_ll.if_greater(zero, bound, V::all(f32::INFINITY));
        best = square.if_greater(bound, solved * sum_xl, best);
        scale = square.if_greater(bound, solved, scale);
    }
    V::all(LEAST).if_greater(magnitude, zero, scale)
}

/// The scale for levels `-n .. n`, which are improved one by one while that lowers the error; the weights are `x^2`.
#[inline(always)]
pub(super) fn descend<const N: usize, const LANES: usize>(x: &[V<LANES>; N], n: f32) -> V<LANES> {
    const ROUNDS: usize = 5;
    let (largest, magnitude) = largest(x);
    let zero = V::all(0.0);
    let factor = V::all(-n) / largest;
    let mut levels = [V::all(0.0); N];
    let (mut sum_xl, mut sum_ll) = (V::all(0.0), V::all(0.0));
    for (l, &x) in levels.iter_mut().zip(x) {
        *l = (factor * x).level(-n, n - 1.0);
        let w = x * x;
        sum_xl += w * x * *l;
        sum_ll += w * *l * *l;
    }
    for _ in 0..ROUNDS {
        let mut changed = false;
        for (l, &x) in levels.iter_mut().zip(x) {
            let w = x * x;
            let (rest_xl, rest_ll) = (sum_xl - w * x * *l, sum_ll - w * *l * *l);
            let other = (x * rest_ll / rest_xl).level(-n, n - 1.0);
            let (other_xl, other_ll) = (rest_xl + w * x * other, rest_ll + w * other * other);
            // No gain where the level stays, though its sums may differ in the last bit; where the others do not point
            // this way; where all levels would be 0.
            let (square, bound) = (other_xl * other_xl * sum_ll, sum_xl * sum_xl * other_ll);
            let square = rest_xl.if_greater(zero, square, zero);
            let square = other_ll.if_greater(zero, square, zero);
            let square = (other - *l).abs().if_greater(zero, square, zero);
            let moved = square.if_greater(bound, other, *l);
            changed |= moved != *l;
            *l = moved;
            sum_xl = square.if_greater(bound, other_xl, sum_xl);
            sum_ll = square.if_greater(bound, other_ll, sum_ll);
        }
        if !changed {
            break;
        }
    }
    let scale = sum_ll.if_greater(zero, sum_xl / sum_ll, zero);
    V::all(LEAST).if_greater(magnitude, zero, scale)
}

/// The scale for levels `0 ..= n` of values; negative ones get level 0.
pub(super) fn positive<const N: usize>(x: V<N>, weights: V<N>, n: f32) -> f32 {
    const ROUNDS: usize = 5;
    let (x, weights) = (x.0, weights.0);
    let largest = x.iter().fold(0f32, |a, &b| a.max(b));
    if largest < LEAST {
        return 0.0;
    }
    let levels_of = |factor: f32| x.map(|x| level(factor * x, 0.0, n));
    let error = |factor: f32| {
        let scale = 1.0 / factor;
        let levels = levels_of(factor);
        let terms = (0..N).map(|i| weights[i] * (x[i] - scale * levels[i]) * (x[i] - scale * levels[i]));
        terms.fold(0f32, |sum, term| sum + term)
    };
    let mut factor = n / largest;
    let mut least = error(factor);
    for i in [-4i8, -3, -2, -1, 1, 2, 3, 4] {
        let tried = (0.1 * f32::from(i) + n) / largest;
        let e = error(tried);
        if e < least {
            (least, factor) = (e, tried);
        }
    }
    let mut levels = levels_of(factor);
    let (mut sum_xl, mut sum_ll) = (0f32, 0f32);
    for ((&x, &w), &l) in x.iter().zip(&weights).zip(&levels) {
        sum_xl += w * x * l;
        sum_ll += w * l * l;
    }
    for _ in 0..ROUNDS {
        let mut changed = false;
        for ((&x, &w), l) in x.iter().zip(&weights).zip(&mut levels) {
            let (rest_xl, rest_ll) = (sum_xl - w * x * *l, sum_ll - w * *l * *l);
            if !(rest_xl > 0.0 && rest_ll > 0.0) {
                continue;
            }
            let other = level(x * rest_ll / rest_xl, 0.0, n);
            let (other_xl, other_ll) = (rest_xl + w * x * other, rest_ll + w * other * other);
            if other != *l && other_xl * other_xl * sum_ll > sum_xl * sum_xl * other_ll {
                (*l, sum_xl, sum_ll, changed) = (other, other_xl, other_ll, true);
            }
        }
        if !changed {
            break;
        }
    }
    if sum_ll > 0.0 { sum_xl / sum_ll } else { 0.0 }
}

/// The value of largest magnitude, the first of equals, and that magnitude.
#[inline(always)]
fn largest<const N: usize, const LANES: usize>(x: &[V<LANES>; N]) -> (V<LANES>, V<LANES>) {
    let (mut largest, mut magnitude) = (V::all(0.0), V::all(0.0));
    for &x in x {
        largest = x.abs().if_greater(magnitude, x, largest);
        magnitude = magnitude.max(x.abs());
    }
    (largest, magnitude)
}
