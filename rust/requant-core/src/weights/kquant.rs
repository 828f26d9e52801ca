//! The search of k-quants (llama.cpp's `make_qkx2_quants` and `make_qx_quants`) for one plain block: of scales around
//! that of round to nearest, each improved by weighted least squares, the one with the least weighted squared error.
//!
//! ```text
//! asymmetric   scale = (hi - lo) / (2^bits - 1 + t)  for t from -1 to 1 by 0.1; then least squares for scale and zero
//!              point, which is rounded, and again for the scale
//! symmetric    scale = -m / (2^(bits - 1) + t)       for t from -0.9 to 0.9 by 0.1; then least squares for the scale
//! ```
//!
//! Errors weigh `sqrt(mean(x^2)) + |x|`, or `importance * sqrt(mean(x^2) + x^2)` where that is known: large weights
//! matter more. k-quants share 6-bit scales between blocks of a super-block; MatMulNBits stores a float scale for each.

use super::{Grid, choose::Block};
use crate::kernels::low_bit::{Fit, Weighted};

pub(super) const NAME: &str = "kquant";

/// Scales to try besides the first.
const STEPS: usize = 20;

pub(super) fn search(block: &Block<'_>, start: Grid) -> Grid {
    let weights = weights(block);
    let values = Weighted {
        weights: &weights,
        ..block.values
    };
    let fits = |grids: &[Grid; STEPS + 1]| block.fits(values, grids);
    let (lo, hi) = (block.range.0.min(0.0), block.range.1.max(0.0));
    let (least, most) = block.scheme.real_limits();
    let symmetric = block.scheme.symmetric();
    let mut grids: [Grid; STEPS + 1] = std::array::from_fn(|i| {
        let t = (i as f32 - (STEPS / 2) as f32) / 10.0;
        if symmetric {
            let m = if hi.abs() > lo.abs() { hi } else { lo };
            Grid::new(-m / (start.zero_point - least + t), start.zero_point)
        } else {
            let scale = (hi - lo) / (most + t);
            Grid::new(scale, -lo / scale)
        }
    });
    let mut tried = fits(&grids);
    if !symmetric {
        let (weight, sum) = (
            total(&weights, |_, w| w),
            total(&weights, |at, w| w * values.x[at / 8][at % 8]),
        );
        for (grid, fit) in grids.iter_mut().zip(tried) {
            let spread = weight * fit.ll - fit.l * fit.l;
            let scale = (weight * fit.lx - fit.l * sum) / spread;
            let zero_point = grid.zero_point - (sum - scale * fit.l) / weight / scale;
            *grid = usable(scale, zero_point.round().clamp(least, most)).unwrap_or(start);
        }
        tried = fits(&grids);
    }
    let mut best = (start, block.fits(values, &[start])[0].error);
    let mut consider = |grids: &[Grid], fits: &[Fit]| {
        for (grid, fit) in grids.iter().zip(fits) {
            if fit.error < best.1 && grid.zero_point.fract() == 0.0 {
                best = (*grid, fit.error);
            }
        }
    };
    consider(&grids, &tried);
    for (grid, fit) in grids.iter_mut().zip(tried) {
        *grid = usable(fit.lx / fit.ll, grid.zero_point).unwrap_or(start);
    }
    consider(&grids, &fits(&grids));
    best.0
}

/// The grid, if its numbers are.
fn usable(scale: f32, zero_point: f32) -> Option<Grid> {
    let grid = Grid::new(scale, zero_point);
    (scale.is_finite() && zero_point.is_finite() && grid.inverse != 0.0).then_some(grid)
}

fn weights(block: &Block<'_>) -> Vec<[f32; 8]> {
    let values = block.values;
    let square = total(values.x, |_, x| x * x) / block.len as f32;
    let weigh = |x: f32, w: f32| {
        if block.important {
            w * (square + x * x).sqrt()
        } else {
            w * (square.sqrt() + x.abs())
        }
    };
    let vectors = values.x.iter().zip(values.weights);
    vectors
        .map(|(x, w)| std::array::from_fn(|i| weigh(x[i], w[i])))
        .collect()
}

/// The sum of a function of places and values.
fn total(vectors: &[[f32; 8]], f: impl Fn(usize, f32) -> f32) -> f32 {
    vectors.as_flattened().iter().enumerate().map(|(at, v)| f(at, *v)).sum()
}
