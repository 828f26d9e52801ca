//! The triangular factor of a Hessian.
//!
//! `H = L L^T` by columns of panels, looking left: a block of columns takes in all products with the columns before it,
//! its diagonal is factored, and the rest is solved for.
//!
//! ```text
//! panel p   f64 [12 (p + 1)][12]     rows 12 p .. 12 p + 12, column by column, to the diagonal
//! ```
//!
//! Both operands of a product are panels as they lie.

use crate::{
    kernels::feedback::{FeedbackKernel, PANEL},
    threads,
};

/// Panels to a block of columns.
const BLOCK: usize = 8;

/// Columns of panels that are multiplied while they are in the cache.
const DEPTH: usize = 128;

/// A pivot below this share of its diagonal element is rounding error of a matrix that is not positive.
const LEAST_PIVOT: f64 = 1e-11;

type Panel = Vec<[f64; PANEL]>;

/// A lower triangular matrix.
pub(super) struct Factor {
    panels: Vec<Panel>,
}

impl Factor {
    /// The factor of the symmetric matrix of `k` rows whose lower triangle `element(i, j)` gives; none where it is not
    /// positive definite.
    pub(super) fn new(
        kernel: &dyn FeedbackKernel,
        k: usize,
        element: impl Fn(usize, usize) -> f64 + Sync,
        threads: usize,
    ) -> Option<Self> {
        let padded = |i: usize, j: usize| match () {
            () if i < k && j <= i => element(i, j),
            () if i == j => 1.0,
            () => 0.0,
        };
        let mut panels = vec![Panel::new(); k.div_ceil(PANEL)];
        threads::for_each(threads, panels.iter_mut().enumerate().collect(), |(p, panel)| {
            let column = |j| std::array::from_fn(|i| padded(p * PANEL + i, j));
            *panel = (0..(p + 1) * PANEL).map(column).collect();
        });
        for first in (0..panels.len()).step_by(BLOCK) {
            let count = BLOCK.min(panels.len() - first);
            let (above, below) = panels.split_at_mut(first + count);
            let own = first * PANEL..(first + count) * PANEL;
            let whole: Vec<f64> = own.map(|i| padded(i, i)).collect();
            let triangle = diagonal(kernel, &mut above[first..], first * PANEL, &whole)?;
            let above = &above[first..];
            threads::for_each(threads, below.chunks_mut(BLOCK).collect(), |panels| {
                subtract(kernel, panels, above, first * PANEL);
                for panel in panels {
                    kernel.solve(&triangle, &mut panel[first * PANEL..][..count * PANEL]);
                }
            });
        }
        Some(Self { panels })
    }

    /// Its element, `j <= i`.
    pub(super) fn get(&self, i: usize, j: usize) -> f64 {
        self.panels[i / PANEL][j][i % PANEL]
    }
}

/// Takes from the columns of `above`, which begin at `start`, of `panels` the products of all columns before them.
fn subtract(kernel: &dyn FeedbackKernel, panels: &mut [Panel], above: &[Panel], start: usize) {
    for depth in (0..start).step_by(DEPTH) {
        let depth = depth..start.min(depth + DEPTH);
        for panel in &mut *panels {
            let (left, out) = panel.split_at_mut(start);
            for (right, out) in above.iter().zip(out.as_chunks_mut::<PANEL>().0) {
                kernel.subtract(&left[depth.clone()], &right[depth.clone()], out);
            }
        }
    }
}

/// Factors the panels of a block on the diagonal, whose columns begin at `start`: the triangle, row-major. `whole` are
/// its diagonal elements before any product was taken from them.
fn diagonal(kernel: &dyn FeedbackKernel, panels: &mut [Panel], start: usize, whole: &[f64]) -> Option<Vec<f64>> {
    let size = panels.len() * PANEL;
    for p in 0..panels.len() {
        let (above, rest) = panels.split_at_mut(p);
        let (panel, _) = rest.split_at_mut(1);
        subtract(kernel, panel, above, start);
        let (left, out) = panel[0].split_at_mut(start);
        if let Some(out) = out.as_chunks_mut::<PANEL>().0.last_mut() {
            kernel.subtract(left, left, out);
        }
    }
    let mut triangle = vec![0.0; size * size];
    for i in 0..size {
        let panel = &panels[i / PANEL];
        for j in 0..=i {
            let (before, row) = triangle.split_at(i * size);
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b);
            let element = panel[start + j][i % PANEL];
            triangle[i * size + j] = if i == j {
                let pivot = element - dot(&row[..i], &row[..i]);
                let positive = pivot > LEAST_PIVOT * whole[i]; // not so where it is NaN
                if !positive {
                    return None;
                }
                pivot.sqrt()
            } else {
                (element - dot(&row[..j], &before[j * size..][..j])) / before[j * size + j]
            };
        }
    }
    for (p, panel) in panels.iter_mut().enumerate() {
        for (j, column) in panel[start..].iter_mut().enumerate() {
            *column = std::array::from_fn(|i| triangle[(p * PANEL + i) * size + j]);
        }
    }
    Some(triangle)
}
