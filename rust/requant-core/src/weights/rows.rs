//! Matrices of weights as callers have them.

use std::ops::Range;

use crate::{Error, Result};

/// Floats to a cache line.
const SIDE: usize = 16;

/// A matrix of weights, an output channel to a row.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    values: &'a [f32],
    n: usize,
    k: usize,
    layout: Layout,
}

/// How a matrix lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[N, K]`: each row in one piece.
    Rows,
    /// `[K, N]`, as ONNX MatMul has its weights.
    Columns,
}

impl<'a> Rows<'a> {
    /// `n` rows of `k` values.
    ///
    /// # Errors
    /// Another number of values.
    pub fn new(values: &'a [f32], (n, k): (usize, usize), layout: Layout) -> Result<Self> {
        let expected = n.saturating_mul(k);
        if values.len() != expected {
            let (what, got) = ("rows", values.len());
            return Err(Error::Length { what, expected, got });
        }
        Ok(Self { values, n, k, layout })
    }

    /// How many.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Values to a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Some rows in one piece, written to `space` where they do not lie so.
    pub(super) fn piece<'s>(&self, rows: Range<usize>, space: &'s mut Vec<f32>) -> &'s [f32]
    where
        'a: 's,
    {
        if self.layout == Layout::Rows {
            return &self.values[rows.start * self.k..rows.end * self.k];
        }
        space.clear();
        space.resize(rows.len() * self.k, 0.0);
        // Squares of whole cache lines, as rows lie so far apart that their lines drive each other out.
        let mut square = [[0f32; SIDE]; SIDE];
        for first in (0..self.k).step_by(SIDE) {
            let depth = first..self.k.min(first + SIDE);
            for left in (0..rows.len()).step_by(SIDE) {
                let width = SIDE.min(rows.len() - left);
                for (k, line) in depth.clone().zip(&mut square) {
                    let from = k * self.n + rows.start + left;
                    line[..width].copy_from_slice(&self.values[from..from + width]);
                }
                for row in 0..width {
                    let to = &mut space[(left + row) * self.k + first..][..depth.len()];
                    for (to, line) in to.iter_mut().zip(&square) {
                        *to = line[row];
                    }
                }
            }
        }
        space
    }

    /// The error for the first value that is not finite.
    pub(super) fn check_finite(&self) -> Result<()> {
        let Some(at) = self.values.iter().position(|v| !v.is_finite()) else {
            return Ok(());
        };
        let index = match self.layout {
            Layout::Rows => vec![at / self.k, at % self.k],
            Layout::Columns => vec![at % self.n, at / self.n],
        };
        let value = self.values[at];
        Err(Error::NonFinite { value, index })
    }
}
