//! The range with the least mean squared error, rounding and clipping together.
//!
//! For each step `D` the error falls apart into two sums, one for each side of zero (see [`model`](super::model)):
//!
//! ```text
//! error(D, below, above) = const - 2D * (sum of U(m_k), k = 1..above  +  sum of V(m_k), k = 1..below),  m_k = (k - 1/2) D
//! ```
//!
//! `U` and `V` fall with `k`. So the best split of the levels into `below` and `above` takes the largest terms of both,
//! and is found by bisection. All steps and all zero points are thus searched with about `levels` evaluations for each
//! step. (Minimum-MSE clipping: Sung et al. 2015, "Resiliency of deep neural networks under quantization"; Banner et al.
//! 2019, "Post training 4-bit quantization", for Gaussian and Laplacian data. Here the data's own histogram is used.)

use super::{Request, Window, model::Model};
use crate::{Range, kernels::density::to_f64};

pub(super) const NAME: &str = "mse";

pub(super) fn range(request: &Request) -> Range {
    let (window, model) = (Window::new(request), &request.model);
    let mut best = (f64::INFINITY, 0.0, (0, 0));
    let mut split = (0, 0);
    for step in window.steps() {
        split = window
            .split
            .unwrap_or_else(|| best_split(model, step, window.levels, split.1));
        // Clipping alone rules out most of the narrow ranges.
        let (negative, positive) = (&model.negative, &model.positive);
        let clipping = positive.overload(step, split.1).0;
        if negative.overload(step, split.0).0 + clipping < best.0 {
            let below = negative.squared_error(step, split.0, best.0 - clipping);
            let error = below + positive.squared_error(step, split.1, best.0 - below);
            if error < best.0 {
                best = (error, step, split);
            }
        }
    }
    window.range(request, best.1, best.2)
}

/// How many levels to put below and above zero; `near` is a guess at the latter.
fn best_split(model: &Model, step: f64, levels: usize, near: usize) -> (usize, usize) {
    if model.positive.is_empty() {
        return (levels, 0);
    }
    let midpoint = |k: usize| (to_f64(k) - 0.5) * step;
    // Level k above zero is worth more than the one below zero that it displaces, for all k up to `above`.
    let worth_it = |k: usize| model.positive.excess(midpoint(k)) >= model.negative.excess(midpoint(levels + 1 - k));
    let (mut above, mut beyond) = (0, levels + 1);
    // From the guess by strides that double, until the answer lies between two, and then by halves.
    let (mut k, mut stride) = (near.clamp(1, levels), 1);
    while beyond - above > 1 {
        if worth_it(k) {
            above = k;
            k = if beyond > levels {
                (above + stride).min(levels)
            } else {
                above.midpoint(beyond)
            };
        } else {
            beyond = k;
            k = if above == 0 {
                beyond.saturating_sub(stride).max(1)
            } else {
                above.midpoint(beyond)
            };
        }
        stride *= 2;
    }
    (levels - above, above)
}
