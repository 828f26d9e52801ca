//! Round to nearest: the grid that spreads the integers over all values of a block, to the bits of onnxruntime's
//! quantizer for MatMulNBits.
//!
//! ```text
//! asymmetric   scale = (hi - lo) / (2^bits - 1)  with lo <= 0 <= hi        zero_point = round(-lo / scale)
//! symmetric    scale = -m / 2^(bits - 1)                                   zero_point = 2^(bits - 1)
//! ```
//!
//! Symmetric grids reach one step further to the negative side: `m`, the value of the largest magnitude, lies on that
//! end, so that the scale is negative where `m` is positive. All is rounded half away from zero.
//!
//! A range that f32 cannot hold is divided before it is subtracted, and a scale that has no reciprocal becomes 0: there
//! onnxruntime stores infinities and arbitrary integers.

use super::{BlockScheme, Grid};

pub(super) const NAME: &str = "rtn";

/// The grid for values from `lo` to `hi`.
#[inline(always)]
pub(super) fn grid(scheme: BlockScheme, lo: f32, hi: f32) -> Grid {
    let (least, most) = scheme.real_limits();
    if scheme.symmetric() {
        let m = if hi.abs() > lo.abs() { hi } else { lo };
        let centre = f32::from(scheme.centre());
        return Grid::new(-m / (centre - least), centre);
    }
    let (lo, hi) = (lo.min(0.0), hi.max(0.0));
    let width = hi - lo;
    let scale = if width.is_finite() {
        width / most
    } else {
        hi / most - lo / most
    };
    let grid = Grid::new(scale, 0.0);
    let zero_point = if grid.scale == 0.0 { 0.0 } else { 0.0 - lo / scale };
    Grid {
        zero_point: zero_point.round().clamp(0.0, most),
        ..grid
    }
}
