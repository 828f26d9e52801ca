//! Half-quadratic quantization (Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"):
//! scale and zero point for the least `sum of w * |x - real|^p` with `p < 1`, which heeds outliers less than squares
//! do.
//!
//! ```text
//! e       = shrink(x - s * (q - z), beta)                what is taken for outliers, in closed form
//! s, z    = argmin of sum over i of w * (x - e - s * (q - z))^2
//! shrink  = sign(d) * max(|d| - |d|^(p - 1) / beta, 0)    with d in steps
//! ```
//!
//! and again with the integers `q` of the new grid and `beta` grown by 1 %. The paper's `p` is 0.7; here it is 3/4,
//! whose powers are square roots, so that every machine gives the same bits. Zero points are integers in what runs
//! this, which leaves little to gain by them alone: so the scale, which the paper fixes, is solved for too, and each
//! iterate counts with its zero point rounded. The best one is kept, the grid of round to nearest among them.

use super::{Grid, choose::Block};

pub(super) const NAME: &str = "hqq";

const ITERATIONS: usize = 20;
const BETA: f32 = 10.0;
const KAPPA: f32 = 1.01;

pub(super) fn search(block: &Block<'_>, start: Grid) -> Grid {
    let (least, most) = block.scheme.real_limits();
    let weight = block.weight();
    let (mut best, mut beta, mut grid) = (start, BETA, start);
    let mut sums = block.split(start, beta);
    let mut norm = sums.norm;
    for _ in 0..ITERATIONS {
        let (mut scale, mut zero_point) = (sums.lt / sums.ll, grid.zero_point);
        if !block.scheme.symmetric() {
            let spread = weight * sums.ll - sums.l * sums.l;
            scale = (weight * sums.lt - sums.l * sums.t) / spread;
            let shift = (sums.t - scale * sums.l) / weight;
            zero_point = (zero_point - shift / scale).clamp(least, most);
        }
        grid = Grid::new(scale, zero_point);
        // Where all integers are the same, there is nothing to solve for.
        if !(grid.inverse.is_finite() && grid.inverse != 0.0 && zero_point.is_finite()) {
            break;
        }
        beta *= KAPPA;
        sums = block.split(grid, beta);
        let rounded = Grid {
            zero_point: zero_point.round(),
            ..grid
        };
        let candidate = if rounded == grid {
            sums.norm
        } else {
            block.split(rounded, beta).norm
        };
        if candidate < norm {
            (best, norm) = (rounded, candidate);
        }
    }
    best
}
