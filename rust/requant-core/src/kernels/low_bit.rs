//! The inner loops of low-bit weight quantization, once for each instruction set that has its own.
//!
//! What is worked on are rows of f32 cut into runs, each with a grid: an integer `q` stands for
//! `(q - zero_point) * scale`. [`crate::weights`] chooses grids. All kernels give the same bits. A new kernel is a file
//! and a line in the registry, under the name of the set in [`crate::kernels`] that it belongs to.

use super::generic_low_bit;
use crate::weights::{BlockScheme, Grid, RowGrids};

/// Grids of neighbouring runs, a struct of arrays of equal length.
#[derive(Debug, Clone, Copy)]
pub struct Grids<'a> {
    /// How many neighbours share a grid; the last run of a call may be shorter.
    pub run: usize,
    /// `1 / scale`, or 0 where the scale is.
    pub inverse: &'a [f32],
    /// Integers that stand for 0.
    pub zero_point: &'a [f32],
    /// Smallest and largest integer in use, within 0..=255.
    pub limits: (f32, f32),
}

/// Some neighbouring columns of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// From the first value of the first of them on.
    pub values: &'a [f32],
    /// How far apart rows begin.
    pub pitch: usize,
    /// Values to a column.
    pub rows: usize,
    /// How many columns.
    pub columns: usize,
}

/// Values of one block with their weights, in whole vectors of 8: what is added has weight 0.
#[derive(Debug, Clone, Copy)]
pub struct Weighted<'a> {
    /// Finite.
    pub x: &'a [[f32; 8]],
    /// Finite and not negative.
    pub weights: &'a [[f32; 8]],
}

/// Weighted sums over a block, of values `x` and their distances `l = q - zero_point` on a grid.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Fit {
    /// Sum of `l`.
    pub l: f32,
    /// Sum of `l * l`.
    pub ll: f32,
    /// Sum of `l * x`.
    pub lx: f32,
    /// Sum of `(x - l * scale)^2`.
    pub error: f32,
}

/// Weighted sums over a block of a half-quadratic step: of distances `l = q - zero_point` on a grid, and of
/// `t = x - e`, what is left of values without their outliers `e`; [`LowBitKernel::split`] says which these are.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Split {
    /// Sum of `l`.
    pub l: f32,
    /// Sum of `l * l`.
    pub ll: f32,
    /// Sum of `l * t`.
    pub lt: f32,
    /// Sum of `t`.
    pub t: f32,
    /// Sum of `|x - l * scale|^(3/4)`.
    pub norm: f32,
}

/// The part of low-bit weight quantization that depends on the instruction set.
pub trait LowBitKernel: Send + Sync {
    /// The name of the set that it belongs to, as `REQUANT_ISA` takes it.
    fn name(&self) -> &'static str;

    /// Writes columns as rows, which begin `pitch` apart in `to`; what lies between them is left as it is.
    fn turn(&self, from: Columns<'_>, pitch: usize, to: &mut [f32]);

    /// Smallest and largest value of each run. False, and they are of no use, where one is NaN or infinite.
    fn ranges(&self, x: &[f32], run: usize, lo: &mut [f32], hi: &mut [f32]) -> bool;

    /// The integer of each value, `round(clamp(x * inverse + zero_point))` with ties away from zero, of 2, 4 or 8 bits,
    /// several to a byte, the first in the low bits. `out` has the bytes that they take; what is left of the last is 0.
    fn encode(&self, x: &[f32], grids: Grids<'_>, bits: u32, out: &mut [u8]);

    /// The grids of round to nearest on ranges from `lo` to `hi`, for as many as there are, as [`RowGrids`] has them. A
    /// kernel overrides this to have the same code compiled for its instruction set.
    fn spread(&self, scheme: BlockScheme, lo: &[f32], hi: &[f32], to: &mut RowGrids) {
        to.spread(scheme, lo, hi);
    }

    /// [`Fit::error`] on each grid.
    fn errors(&self, block: Weighted<'_>, grids: &[Grid], limits: (f32, f32), out: &mut [f32]);

    /// The sums of a block on each grid, whose integers are as [`Self::encode`] has them, but for ties.
    fn fit(&self, block: Weighted<'_>, grids: &[Grid], limits: (f32, f32), out: &mut [Fit]);

    /// The sums of a block on one grid. With `d = (x - l * scale) / |scale|`, which is in steps, the outlier is
    /// `e = sign(d) * max(|d| - |d|^(-1/4) / beta, 0) * |scale|`.
    fn split(&self, block: Weighted<'_>, grid: Grid, beta: f32, limits: (f32, f32)) -> Split;
}

registry_of_inner_loops! { LowBitKernel,
    #[cfg(target_arch = "x86_64")]
    super::x86_64::avx512_low_bit::probe,
    #[cfg(target_arch = "x86_64")]
    super::x86_64::avx2_low_bit::probe,
    generic_low_bit::probe,
}
