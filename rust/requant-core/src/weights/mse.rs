//! Round to nearest on a clipped range: of ranges shrunk towards zero, the one with the least weighted squared error.
//!
//! ```text
//! minimize over p   sum over i of w[i] * (x[i] - real(code(x[i])))^2      on the grid of p * lo .. p * hi
//! ```
//!
//! `p` falls from 1 in steps of 1/64, and also rises a little, so that the shorter end of a symmetric grid may hold the
//! largest value. Of equal errors the widest range wins, so that the error is never above that of round to nearest. The
//! search is that of OCTAV's and AWQ's clipping, over a list instead of by iteration.

use super::{Grid, choose::Block, rtn};

pub(super) const NAME: &str = "mse";

/// Shrunk ranges to try, down to 1 - 40/64.
const SHRUNK: usize = 40;

/// Stretched ranges to try.
const STRETCHED: usize = 10;

pub(super) fn search(block: &Block<'_>, start: Grid) -> Grid {
    let (lo, hi) = block.range;
    let mut grids = [start; 1 + SHRUNK + STRETCHED];
    for (i, grid) in grids[1..].iter_mut().enumerate() {
        let steps = if i < SHRUNK {
            -(i as f32) - 1.0
        } else {
            (i - SHRUNK) as f32 + 1.0
        };
        let p = 1.0 + steps / 64.0;
        *grid = rtn::grid(block.scheme, p * lo, p * hi);
    }
    block.best(&grids)
}
