//! Weights of few bits, in blocks along the rows of a matrix `[N, K]`, as onnxruntime's MatMulNBits stores them.
//!
//! Each block has a grid, a scale and a zero point: the integer `q` stands for `(q - zero_point) * scale`. An
//! [`Algorithm`] is a file with a `NAME` and a function that chooses a block's grid, and a line in [`ALGORITHMS`];
//! [`quantize`] then rounds every value to the nearest integer of its grid. [`Gptq`] chooses integers one column
//! after another instead, so that later ones make up for the errors of earlier ones.
//!
//! ```text
//! data         u8  [N, blocks, block_size * bits / 8]      the first integer in the low bits; 3 bits are stored as 4
//! scales       f32 [N, blocks]
//! zero_points  u8  [N, ceil(blocks * bits / 8)]            packed alike; none where the scheme is symmetric
//! ```

mod choose;
mod gptq;
mod hqq;
mod kquant;
mod mse;
mod rows;
mod rtn;
mod scheme;
mod storage;

pub use gptq::Gptq;
pub use rows::{Layout, Rows};
pub use scheme::{BlockScheme, Grid, RowGrids};
pub use storage::{BlockView, BlockViewMut, BlockWeights};

use std::sync::atomic::{AtomicBool, Ordering};

use choose::{Block, Chooser};

use crate::{
    Error, Result,
    error::check_length,
    kernels::low_bit::{self, LowBitKernel},
    threads,
};

/// A rule that chooses a block's grid.
#[derive(Debug, Clone, Copy)]
pub struct Algorithm {
    /// Its name, in the words of the command line.
    pub name: &'static str,
    /// Improves on the grid that spreads the integers over all values; none for that grid itself.
    search: Option<fn(&Block<'_>, Grid) -> Grid>,
}

/// All algorithms that need no data, simplest first.
pub const ALGORITHMS: &[Algorithm] = &[
    Algorithm {
        name: rtn::NAME,
        search: None,
    },
    Algorithm {
        name: mse::NAME,
        search: Some(mse::search),
    },
    Algorithm {
        name: hqq::NAME,
        search: Some(hqq::search),
    },
    Algorithm {
        name: kquant::NAME,
        search: Some(kquant::search),
    },
];

impl Algorithm {
    /// The algorithm of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn by_name(name: &str) -> Result<Self> {
        let found = ALGORITHMS.iter().find(|a| a.name == name);
        found.copied().ok_or_else(|| Error::UnknownName {
            what: "algorithm",
            name: name.to_owned(),
            known: ALGORITHMS.iter().map(|a| a.name).collect::<Vec<_>>().join(", "),
        })
    }
}

/// Quantizes `rows`: chooses a grid for each block by `algorithm`, and rounds to it.
///
/// `importance` weighs the squared errors of each column, as second moments of what the weights are multiplied with do;
/// `rtn` has no use for it. All instruction sets and any number of threads (0: all cores) give the same bits.
///
/// ```
/// use requant_core::weights::{Algorithm, BlockScheme, Layout, Rows, quantize};
/// let scheme = BlockScheme::new(4, 32, true)?;
/// let rows = Rows::new(&[0.8, -0.4, 0.1], (1, 3), Layout::Rows)?;
/// let weights = quantize(rows, scheme, Algorithm::by_name("rtn")?, None, 1)?;
/// assert_eq!(weights.scales(), [-0.1]); // the largest magnitude lies at -8
/// assert_eq!(weights.dequantize(), [0.8, -0.4, 0.1]);
/// # Ok::<(), requant_core::Error>(())
/// ```
///
/// # Errors
/// A value that is not finite, an importance that is negative, not finite or of another length.
pub fn quantize(
    rows: Rows<'_>,
    scheme: BlockScheme,
    algorithm: Algorithm,
    importance: Option<&[f32]>,
    threads: usize,
) -> Result<BlockWeights> {
    quantize_with(low_bit::current(), rows, scheme, algorithm, importance, threads)
}

/// [`quantize`] by a kernel; see [`low_bit::available`].
///
/// # Errors
/// As [`quantize`].
pub fn quantize_with(
    kernel: &'static dyn LowBitKernel,
    rows: Rows<'_>,
    scheme: BlockScheme,
    algorithm: Algorithm,
    importance: Option<&[f32]>,
    threads: usize,
) -> Result<BlockWeights> {
    let mut weights = BlockWeights::zeros(scheme, rows.n(), rows.k());
    fill(kernel, rows, algorithm, importance, weights.view_mut(), threads)?;
    Ok(weights)
}

/// [`quantize`] into memory that is there already, whatever it holds.
///
/// # Errors
/// As [`quantize`], and lengths that do not fit.
pub fn quantize_into(
    rows: Rows<'_>,
    algorithm: Algorithm,
    importance: Option<&[f32]>,
    out: BlockViewMut<'_>,
    threads: usize,
) -> Result<()> {
    check_length("rows", out.n, rows.n())?;
    check_length("a row", out.k, rows.k())?;
    out.check()?;
    fill(low_bit::current(), rows, algorithm, importance, out, threads)
}

/// Values whose grids are chosen before they are rounded: few enough that they and the next, which are fetched
/// meanwhile, stay in the first-level cache.
const PIECE: usize = 1024;

fn fill(
    kernel: &'static dyn LowBitKernel,
    rows: Rows<'_>,
    algorithm: Algorithm,
    importance: Option<&[f32]>,
    out: BlockViewMut<'_>,
    threads: usize,
) -> Result<()> {
    check_importance(importance, rows.k())?;
    let scheme = out.scheme;
    let (size, limits) = (scheme.block_size(rows.k()), scheme.real_limits());
    let together = PIECE.div_ceil(size).next_multiple_of(scheme.per_byte());
    let finite = AtomicBool::new(true);
    threads::for_each(threads, out.strips(rows.together()), |mut strip| {
        let (mut space, mut grids) = (Vec::new(), RowGrids::default());
        let mut chooser = Chooser::new(kernel, scheme, algorithm, importance);
        for (i, row) in rows.piece(kernel, strip.rows.clone(), &mut space).enumerate() {
            for (piece, x) in row.chunks(together * size).enumerate() {
                let first = piece * together;
                if !chooser.choose(x, size, first, &mut grids) {
                    finite.store(false, Ordering::Relaxed);
                    return;
                }
                let data = strip.data(i, first..first + x.len().div_ceil(size));
                kernel.encode(x, grids.grids(size, limits), scheme.stored_bits(), data);
                strip.set_grids(kernel, (i, first), &grids.scale, &grids.zero_point);
            }
            strip.pad(i);
        }
    });
    if !finite.into_inner() {
        rows.check_finite()?;
    }
    Ok(())
}

fn check_importance(importance: Option<&[f32]>, k: usize) -> Result<()> {
    let Some(weights) = importance else { return Ok(()) };
    check_length("importance", k, weights.len())?;
    match weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
        Some(index) => Err(Error::Importance {
            value: weights[index],
            index,
        }),
        None => Ok(()),
    }
}
