//! The range whose quantized distribution is closest to the original, by Kullback-Leibler divergence.
//!
//! TensorRT's construction (Migacz 2017, "8-bit inference with TensorRT"), on this crate's levels. For a step and a split
//! of the levels, each level's cell is half a step to either side of it. With `n_i` the count of bin `i`:
//!
//! * `P` is the original within the cells, the values clipped at an end added to the last bin inside that end (the one
//!   that holds the point half a bin inside, as far as it lies inside);
//! * `Q` is what the levels keep of the values within the cells: in each cell its mass `M`, spread evenly over the
//!   cell's bins that are not empty in `P`. Their number is `s`; bins cut by a cell's edge count in proportion;
//! * the divergence of the two, both divided by their sums, is the cost of the candidate.
//!
//! Written out, with `N` values of which `T` are clipped,
//!
//! ```text
//! N KL(P || Q) = sum over cells of [sum n ln n - M ln(M / s)]  +  the two ends  +  N ln((N - T) / N)
//! end          = (m + t) ln((m + t) / l) - m ln(m / l) - t ln(M / s)
//! ```
//!
//! where `t` values are clipped at the end, `m` is the mass of its bin inside it, `l` the length of that part, and `M` and
//! `s` are of its cell. So prefix sums make a cell cost one logarithm, and each side of zero a running sum over its cells. All steps at least
//! one bin wide, and all zero points, are candidates, except those that put no level where there are values, clip more
//! than a quarter of all values at one end, or clip at one end while the other lies beyond the data. Where none is left
//! (16-bit types) the full range is the answer.
//!
//! Two points differ from common practice:
//!
//! * Exact zeros are no part of any cell: they are represented without error, in `P` and `Q` alike. The spike that ReLU
//!   leaves at zero therefore does not blur the cell it falls in, and does not pull the range together.
//! * Histograms have over 2,048 bins where all values have one sign. With 128 bins for 128 levels, onnxruntime's default,
//!   one candidate exists, and the method is minmax.
//!
//! Candidates are ruled out by what their clipping costs at least, before their cells are looked at; that never changes
//! the result.

mod cells;

use std::ops::RangeInclusive;

use super::{Request, Window, logarithm::Logarithm};
use crate::Range;
use cells::Cells;

pub(super) const NAME: &str = "entropy";

pub(super) fn range(request: &Request) -> Range {
    let (window, model, log) = (Window::new(request), &request.model, Logarithm::new());
    let widest = window.steps().next().unwrap_or(0.0);
    let mut negative = Cells::new(&model.negative, model.total, widest, &log);
    let mut positive = Cells::new(&model.positive, model.total, widest, &log);
    // Differences below this are rounding.
    let resolution = 1e-12 * model.total;
    let mut best = (f64::INFINITY, request.widened(request.stats.min(), request.stats.max()));
    for step in window.steps().filter(|step| *step >= 1.0) {
        negative.rule_out(best.0 + positive.slack);
        positive.rule_out(best.0 + negative.slack);
        let Some(splits) = splits(&window, negative.levels(step), positive.levels(step)) else {
            continue;
        };
        let centre = cells::centre(&negative, &positive, step, &log);
        let budget = best.0 - centre + negative.slack + positive.slack;
        let below = negative.costs(
            step,
            window.levels - splits.end()..=window.levels - splits.start(),
            budget,
            &log,
        );
        let above = positive.costs(step, splits.clone(), budget, &log);
        for ((levels, above), below) in splits.zip(above).zip(below.iter().rev()) {
            let (cost, clipped) = (centre + above.cost + below.cost, above.clipped + below.clipped);
            if cost - cells::CHORD * clipped < best.0 {
                let cost = cost + model.total * log.of(1.0 - clipped / model.total);
                if cost < best.0 - resolution {
                    best = (cost, window.range(request, step, (window.levels - levels, levels)));
                }
            }
        }
    }
    best.1
}

/// How many levels to put above zero, given the least that each side takes and the most that it has a use for.
fn splits(window: &Window, below: (usize, usize), above: (usize, usize)) -> Option<RangeInclusive<usize>> {
    let last = window.levels.checked_sub(below.0)?;
    let (first, last) = match window.split {
        Some((_, fixed)) => (fixed.max(above.0), fixed.min(last)),
        None => {
            // Clipping at one end while the other end lies beyond the data is a waste.
            let last = last.min(above.1);
            (window.levels.saturating_sub(below.1).min(last).max(above.0), last)
        }
    };
    (first <= last).then_some(first..=last)
}
