//! The grids of a row, block by block.

use super::{Algorithm, BlockScheme, Grid, RowGrids, rtn};
use crate::kernels::low_bit::{Fit, LowBitKernel, Split, Weighted};

/// What chooses the grids of one row after another.
pub(super) struct Chooser<'a> {
    pub(super) kernel: &'static dyn LowBitKernel,
    pub(super) scheme: BlockScheme,
    pub(super) algorithm: Algorithm,
    pub(super) importance: Option<&'a [f32]>,
    space: Space,
}

/// Memory for one block.
#[derive(Default)]
struct Space {
    lo: Vec<f32>,
    hi: Vec<f32>,
    x: Vec<[f32; 8]>,
    weights: Vec<[f32; 8]>,
}

impl<'a> Chooser<'a> {
    pub(super) fn new(
        kernel: &'static dyn LowBitKernel,
        scheme: BlockScheme,
        algorithm: Algorithm,
        importance: Option<&'a [f32]>,
    ) -> Self {
        Self {
            kernel,
            scheme,
            algorithm,
            importance,
            space: Space::default(),
        }
    }

    /// The grids of the blocks of `x`, which are those from `first` on of a row. False, and they are of no use,
    /// where a value is not finite.
    pub(super) fn choose(&mut self, x: &[f32], size: usize, first: usize, grids: &mut RowGrids) -> bool {
        let blocks = x.len().div_ceil(size);
        let Space { lo, hi, .. } = &mut self.space;
        for ends in [&mut *lo, &mut *hi] {
            ends.clear();
            ends.resize(blocks, 0.0);
        }
        if !self.kernel.ranges(x, size, lo, hi) {
            return false;
        }
        for ((x, lo), hi) in x.chunks(size).zip(&mut *lo).zip(&mut *hi) {
            // Of zeros the sign of the first decides that of the scale.
            if *lo == 0.0 && *hi == 0.0 {
                (*lo, *hi) = (x[0], x[0]);
            }
        }
        self.kernel.spread(self.scheme, lo, hi, grids);
        let Some(search) = self.algorithm.search else {
            return true;
        };
        for (at, x) in x.chunks(size).enumerate() {
            let range = (self.space.lo[at], self.space.hi[at]);
            if range != (0.0, 0.0) {
                let weights = self.importance.map(|all| &all[(first + at) * size..][..x.len()]);
                grids.set(at, self.search(search, x, weights, range));
            }
        }
        true
    }

    /// Searches with the largest magnitude brought to 1..2 by a power of two, so that squares neither overflow nor
    /// vanish.
    fn search(
        &mut self,
        search: fn(&Block<'_>, Grid) -> Grid,
        x: &[f32],
        weights: Option<&[f32]>,
        (lo, hi): (f32, f32),
    ) -> Grid {
        let unit = power_of_two_below(hi.abs().max(lo.abs()));
        fill(&mut self.space.x, x.iter().map(|x| x / unit));
        match weights {
            None => fill(&mut self.space.weights, x.iter().map(|_| 1.0)),
            Some(w) => {
                let most = power_of_two_below(w.iter().fold(0.0, |most: f32, w| most.max(*w)));
                fill(&mut self.space.weights, w.iter().map(|w| w / most));
            }
        }
        let block = Block {
            kernel: self.kernel,
            scheme: self.scheme,
            values: Weighted {
                x: &self.space.x,
                weights: &self.space.weights,
            },
            important: weights.is_some(),
            len: x.len(),
            range: (lo / unit, hi / unit),
        };
        let start = rtn::grid(self.scheme, lo / unit, hi / unit);
        let found = search(&block, start);
        Grid::new(found.scale * unit, found.zero_point)
    }
}

/// In whole vectors, padded with zeros.
fn fill(vectors: &mut Vec<[f32; 8]>, values: impl ExactSizeIterator<Item = f32>) {
    vectors.clear();
    vectors.resize(values.len().div_ceil(8), [0.0; 8]);
    for (to, v) in vectors.as_flattened_mut().iter_mut().zip(values) {
        *to = v;
    }
}

/// The largest power of two that is not above `x`; 1 for numbers that have none among the normal ones.
fn power_of_two_below(x: f32) -> f32 {
    let exponent = x.to_bits() & 0x7f80_0000;
    if exponent == 0 { 1.0 } else { f32::from_bits(exponent) }
}

/// What an algorithm may look at.
pub(super) struct Block<'a> {
    kernel: &'static dyn LowBitKernel,
    pub(super) scheme: BlockScheme,
    /// Values with their weights, all 1 where nothing is known.
    pub(super) values: Weighted<'a>,
    /// Whether weights were given.
    pub(super) important: bool,
    /// How many values there are.
    pub(super) len: usize,
    /// Smallest and largest value.
    pub(super) range: (f32, f32),
}

impl Block<'_> {
    /// The sums on each grid, of the values with other weights.
    pub(super) fn fits<const N: usize>(&self, values: Weighted<'_>, grids: &[Grid; N]) -> [Fit; N] {
        let mut fits = [Fit::default(); N];
        self.kernel.fit(values, grids, self.scheme.real_limits(), &mut fits);
        fits
    }

    /// The sums of a half-quadratic step.
    pub(super) fn split(&self, grid: Grid, beta: f32) -> Split {
        self.kernel.split(self.values, grid, beta, self.scheme.real_limits())
    }

    /// The sum of all weights.
    pub(super) fn weight(&self) -> f32 {
        self.values.weights.as_flattened().iter().sum()
    }

    /// The grid of the least error; the first of equal ones.
    pub(super) fn best<const N: usize>(&self, grids: &[Grid; N]) -> Grid {
        let mut errors = [0.0; N];
        self.kernel
            .errors(self.values, grids, self.scheme.real_limits(), &mut errors);
        let least = |best: usize, i: usize| if errors[i] < errors[best] { i } else { best };
        grids[(1..N).fold(0, least)]
    }
}
