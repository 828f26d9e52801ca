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
//! step.
//!
//! The sums are convex in `D`, since `U` and `V` are convex and the largest of convex functions is. So between two
//! steps the sum is at most what lies between theirs, which bounds the error of all steps between them. Intervals that
//! may hold a better step are halved.
//!
//! (Minimum-MSE clipping: Sung et al. 2015, "Resiliency of deep neural networks under quantization"; Banner et al.
//! 2019, "Post training 4-bit quantization", for Gaussian and Laplacian data. Here the data's own histogram is used.)

use super::{
    Request, Window,
    model::{FINE, Model},
};
use crate::{Range, kernels::density::to_f64};

pub(super) const NAME: &str = "mse";

pub(super) fn range(request: &Request) -> Range {
    let window = Window::new(request);
    let (mut search, steps) = (Search::new(request.model, &window), window.steps());
    let (mut intervals, mut outer) = (Vec::new(), None);
    for i in (1..=steps).rev() {
        if window.step(i) <= FINE {
            search.evaluate(i);
        } else if (steps - i).is_multiple_of(STRIDE) || window.step(i - 1) <= FINE {
            let inner = search.evaluate(i);
            intervals.extend(outer.map(|outer| search.between(inner, outer)));
            outer = Some(inner);
        }
    }
    // The most promising first.
    intervals.sort_by(|a, b| b.least.total_cmp(&a.least));
    while let Some(Interval { inner, outer, least }) = intervals.pop() {
        if outer.i - inner.i > 1 && least <= search.best.error {
            let middle = search.evaluate(inner.i.midpoint(outer.i));
            intervals.extend([search.between(inner, middle), search.between(middle, outer)]);
        }
    }
    window.range(request, window.step(search.best.i), search.best_split)
}

/// Steps from one to the next of those that are evaluated first.
const STRIDE: usize = 256;
/// What is taken off a bound for its rounding: a share of the squares of all values.
const ROUNDING: f64 = 1e-11;

/// A step, by its number, and its error with the best split.
#[derive(Clone, Copy)]
struct Node {
    i: usize,
    error: f64,
}

/// The steps between two, and what each of them errs at least.
struct Interval {
    inner: Node,
    outer: Node,
    least: f64,
}

struct Search<'a> {
    model: &'a Model,
    window: &'a Window,
    /// The error of the step 0, without clipping: all squares.
    all: f64,
    best: Node,
    /// The levels below and above zero of the best, and of the last that was evaluated.
    best_split: (usize, usize),
    last_split: (usize, usize),
}

impl<'a> Search<'a> {
    fn new(model: &'a Model, window: &'a Window) -> Self {
        let nothing = Node {
            i: 0,
            error: f64::INFINITY,
        };
        Self {
            model,
            window,
            all: model.negative.excess_sq(0.0) + model.positive.excess_sq(0.0),
            best: nothing,
            best_split: (0, 0),
            last_split: (0, 0),
        }
    }

    /// The error of a step. Of steps with equal errors the widest is the best.
    fn evaluate(&mut self, i: usize) -> Node {
        let (window, step) = (self.window, self.window.step(i));
        let split = window
            .split
            .unwrap_or_else(|| best_split(self.model, step, window.levels, self.last_split.1));
        let (negative, positive) = (&self.model.negative, &self.model.positive);
        let error = negative.squared_error(step, split.0) + positive.squared_error(step, split.1);
        let node = Node { i, error };
        if error < self.best.error || error <= self.best.error && i > self.best.i {
            (self.best, self.best_split) = (node, split);
        }
        self.last_split = split;
        node
    }

    fn between(&self, inner: Node, outer: Node) -> Interval {
        let [from, to] = [inner, outer].map(|node| self.window.step(node.i));
        let sum = |node: Node, step: f64| (self.all - node.error) / (2.0 * step);
        let slope = (sum(outer, to) - sum(inner, from)) / (to - from);
        let origin = sum(inner, from) - slope * from;
        // all - 2D (origin + slope D) is convex in D, as `slope` is not positive.
        let step = (-origin / (2.0 * slope)).max(from).min(to);
        let least = self.all - 2.0 * step * (origin + slope * step) - ROUNDING * self.all;
        Interval { inner, outer, least }
    }
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
