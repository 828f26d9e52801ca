//! The inner loops of GPTQ, once for each instruction set that has its own.
//!
//! All kernels give the same bits, because each operation on reals and its order are fixed here. A new kernel is a file
//! and a line in the registry, under the name of the set in [`crate::kernels`] that it belongs to.

use super::generic_feedback;

/// Rows of a panel of a triangular factor.
pub const PANEL: usize = 12;

/// Rows of weights that are quantized side by side.
pub const LANES: usize = 16;

/// What the error of a column adds to each later one: row j, from element j + 1 on, has the factors of column j.
#[derive(Debug, Clone, Copy)]
pub struct Factors<'a> {
    /// From the first element of the first row on.
    pub values: &'a [f32],
    /// Distance of the rows.
    pub stride: usize,
}

/// Some neighbouring columns of [`LANES`] rows of weights, to be quantized one after another.
#[derive(Debug)]
pub struct Columns<'a> {
    /// Weights; become the errors of their integers.
    pub weights: &'a mut [[f32; LANES]],
    /// What the errors of earlier columns add to each, and to some columns after them.
    pub carried: &'a mut [[f32; LANES]],
    /// From the first of the columns on.
    pub factors: Factors<'a>,
    /// The integers.
    pub codes: &'a mut [[u8; LANES]],
}

/// The grids of [`LANES`] rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct LaneGrids {
    /// Distances of neighbouring integers.
    pub scale: [f32; LANES],
    /// `1 / scale`, or 0 where the scale is.
    pub inverse: [f32; LANES],
    /// Integers that stand for 0.
    pub zero_point: [f32; LANES],
}

/// The part of GPTQ that depends on the instruction set.
pub trait FeedbackKernel: Send + Sync {
    /// The name of the set that it belongs to, as `REQUANT_ISA` takes it.
    fn name(&self) -> &'static str;

    /// Takes the product of panels `left` and `right`, `[k][PANEL]` each, from `out [PANEL][PANEL]`: for each k in turn
    /// `out[j][i] = fma(-left[k][i], right[k][j], out[j][i])`.
    fn subtract(&self, left: &[[f64; PANEL]], right: &[[f64; PANEL]], out: &mut [[f64; PANEL]; PANEL]);

    /// Solves `X D^T = S` for `PANEL` rows of X, in place, `[columns][PANEL]`; D is lower triangular,
    /// `[columns][columns]`. For each column j, for each i below it in turn, `x[j] = fma(-x[i], d[j][i], x[j])`, and
    /// then `x[j] / d[j][j]`.
    fn solve(&self, triangle: &[f64], x: &mut [[f64; PANEL]]);

    /// Quantizes columns: for each j in turn, with `t = weight[j] + carried[j]`, the integer
    /// `round(clamp(t * inverse + zero_point))`, ties away from zero, on the grid `grids[blocks[j]]`; then with
    /// `e = weight[j] - real` of it, for each later column `carried = fma(e, factor, carried)`.
    fn quantize(&self, columns: Columns<'_>, grids: &[LaneGrids], blocks: &[u32], limits: (f32, f32));

    /// Writes to `carried` what is added to each weight while no column is rounded: for each j in turn, with
    /// `e = -carried[j]`, for each later column `carried = fma(e, factor, carried)`.
    fn relax(&self, carried: &mut [[f32; LANES]], factors: Factors<'_>);
}

registry_of_inner_loops! { FeedbackKernel,
    #[cfg(target_arch = "x86_64")]
    super::x86_64::avx2_feedback::probe,
    generic_feedback::probe,
}
