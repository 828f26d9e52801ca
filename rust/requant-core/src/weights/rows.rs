//! Matrices of weights as callers have them.

use std::ops::Range;

use crate::{
    Error, Result,
    error::check_length,
    kernels::low_bit::{Columns, LowBitKernel},
};

/// Floats to a cache line.
const LINE: usize = 16;

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
        check_length("rows", n.saturating_mul(k), values.len())?;
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

    /// How many rows to work on at a time: of columns in memory several lines, as each lies in a page of its own.
    pub(super) fn together(&self) -> usize {
        match self.layout {
            Layout::Rows => LINE,
            Layout::Columns => 4 * LINE,
        }
    }

    /// Some rows, turned by `kernel` into `space` where each does not lie in one piece.
    pub(super) fn piece<'s>(
        &'s self,
        kernel: &dyn LowBitKernel,
        rows: Range<usize>,
        space: &'s mut Vec<f32>,
    ) -> impl Iterator<Item = &'s [f32]> {
        let (n, k) = (self.n, self.k);
        let (values, pitch) = match self.layout {
            Layout::Rows => (&self.values[rows.start * k..rows.end * k], k),
            Layout::Columns => {
                // Rows a power of two apart would share their lines of the cache.
                let pitch = k + LINE;
                space.resize(rows.len() * pitch, 0.0);
                let columns = Columns {
                    values: self.values.get(rows.start..).unwrap_or_default(),
                    pitch: n,
                    rows: k,
                    columns: rows.len(),
                };
                kernel.turn(columns, pitch, space);
                (&space[..], pitch)
            }
        };
        values.chunks_exact(pitch.max(1)).map(move |row| &row[..k])
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
