//! The way through the columns.

use std::{iter, ops::Range};

use super::{super::choose::Chooser, Gptq, factor::Factor};
use crate::{
    kernels::{
        blocked_gemm::{self, BlockedKernel},
        feedback::{self, Columns, Factors, FeedbackKernel, LANES, LaneGrids},
        low_bit,
    },
    threads,
    weights::{Algorithm, BlockScheme, BlockWeights, RowGrids, Rows},
};

/// Columns that are worked on between two products; a multiple of every block size but the largest.
const WIDTH: usize = 128;

/// Errors that are multiplied while they are in the first-level cache.
const DEPTH: usize = 256;

/// Panels of rows that share factors in the second-level cache.
const TOGETHER: usize = 8;

/// What is the same for all columns.
pub(super) struct Sweep<'a> {
    rows: Rows<'a>,
    scheme: BlockScheme,
    algorithm: Algorithm,
    importance: Vec<f32>,
    /// The columns in the order in which they are quantized.
    order: Vec<usize>,
    /// The block of each, in that order.
    blocks: Vec<u32>,
    static_groups: bool,
    kernel: &'static dyn FeedbackKernel,
    products: &'static dyn BlockedKernel,
}

/// [`LANES`] rows, columns in the order in which they are quantized.
struct Panel {
    /// Weights; errors of those that are quantized.
    weights: Vec<[f32; LANES]>,
    codes: Vec<[u8; LANES]>,
    /// Of each block of the rows.
    grids: Vec<LaneGrids>,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(
        gptq: &Gptq,
        rows: Rows<'a>,
        scheme: BlockScheme,
        order: Vec<usize>,
        importance: Vec<f32>,
    ) -> Self {
        let size = scheme.block_size(rows.k());
        #[expect(
            clippy::cast_possible_truncation,
            reason = "as many floats of a row as memory holds, by 16"
        )]
        let blocks = order.iter().map(|column| (column / size) as u32).collect();
        Self {
            rows,
            scheme,
            algorithm: gptq.algorithm,
            importance,
            order,
            blocks,
            // A block that has all columns is reached before anything has changed.
            static_groups: gptq.static_groups || size >= rows.k(),
            kernel: feedback::current(),
            products: products(),
        }
    }

    /// Quantizes all columns.
    pub(super) fn run(&self, factor: &Factor, threads: usize) -> BlockWeights {
        let (k, size) = (self.rows.k(), self.scheme.block_size(self.rows.k()));
        let mut panels = self.panels(threads);
        let width = if self.static_groups { WIDTH } else { WIDTH.max(size) };
        for first in (0..k).step_by(width) {
            let part = Part::new(self, factor, first..k.min(first + width), threads);
            let groups = panels.chunks_mut(TOGETHER).collect();
            threads::for_each(threads, groups, |panels: &mut [Panel]| part.quantize(panels));
        }
        self.store(&panels, threads)
    }

    fn chooser(&self) -> Chooser<'_> {
        Chooser::new(low_bit::current(), self.scheme, self.algorithm, Some(&self.importance))
    }

    /// The rows, with grids where these do not depend on what becomes of the weights.
    fn panels(&self, threads: usize) -> Vec<Panel> {
        let (n, k) = (self.rows.n(), self.rows.k());
        let mut panels: Vec<Option<Panel>> = (0..n.div_ceil(LANES)).map(|_| None).collect();
        threads::for_each(threads, panels.iter_mut().enumerate().collect(), |(at, panel)| {
            let mut space = Vec::new();
            let mut made = Panel {
                weights: vec![[0.0; LANES]; k],
                codes: vec![[0; LANES]; k],
                grids: vec![LaneGrids::default(); self.scheme.blocks(k)],
            };
            let mut chooser = self.chooser();
            let rows = at * LANES..n.min((at + 1) * LANES);
            for (lane, row) in self.rows.piece(chooser.kernel, rows, &mut space).enumerate() {
                for (weights, column) in made.weights.iter_mut().zip(&self.order) {
                    weights[lane] = row[*column];
                }
                if self.static_groups {
                    self.choose(&mut chooser, row, 0, lane, &mut made.grids);
                }
            }
            *panel = Some(made);
        });
        panels.into_iter().flatten().collect()
    }

    /// Chooses the grids of the blocks of `x`, from `first` on, of one lane.
    fn choose(&self, chooser: &mut Chooser<'_>, x: &[f32], first: usize, lane: usize, grids: &mut [LaneGrids]) {
        let mut found = RowGrids::default();
        // Finite weights can become so large by what is added to them that they are not; the grid is then 0.
        if !chooser.choose(x, self.scheme.block_size(self.rows.k()), first, &mut found) {
            return;
        }
        for (i, grids) in grids[first..].iter_mut().enumerate().take(found.scale.len()) {
            grids.scale[lane] = found.scale[i];
            grids.inverse[lane] = found.inverse[i];
            grids.zero_point[lane] = found.zero_point[i];
        }
    }

    /// The integers and grids, as they are stored.
    fn store(&self, panels: &[Panel], threads: usize) -> BlockWeights {
        let (n, k) = (self.rows.n(), self.rows.k());
        let (kernel, mut weights) = (low_bit::current(), BlockWeights::zeros(self.scheme, n, k));
        let strips = weights.view_mut().strips(LANES).into_iter().zip(panels).collect();
        threads::for_each(threads, strips, |(mut strip, panel)| {
            let mut codes = vec![0; k];
            for lane in 0..strip.rows.len() {
                for (code, column) in panel.codes.iter().zip(&self.order) {
                    codes[*column] = code[lane];
                }
                strip.set_codes(lane, &codes);
                let each = |f: fn(&LaneGrids) -> &[f32; LANES]| -> Vec<f32> {
                    panel.grids.iter().map(|grids| f(grids)[lane]).collect()
                };
                strip.set_grids(kernel, (lane, 0), &each(|g| &g.scale), &each(|g| &g.zero_point));
            }
        });
        weights
    }
}

/// A kernel whose panels have as many columns as there are lanes.
fn products() -> &'static dyn BlockedKernel {
    let current = blocked_gemm::current();
    let mut all = iter::once(current).chain(blocked_gemm::available());
    all.find(|kernel| kernel.tile().columns == LANES).unwrap_or(current)
}

/// Some neighbouring columns, and what errors before and among them add to each.
struct Part<'a> {
    sweep: &'a Sweep<'a>,
    columns: Range<usize>,
    /// Of the columns before: `[tile of columns][before][rows of the tile]`.
    before: Vec<f32>,
    /// `[columns][columns]`, above the diagonal.
    among: Vec<f32>,
}

impl<'a> Part<'a> {
    fn new(sweep: &'a Sweep<'a>, factor: &Factor, columns: Range<usize>, threads: usize) -> Self {
        let (last, first, width) = (sweep.rows.k() - 1, columns.start, columns.len());
        // `R[i][j] / R[j][j]`, which is of the factor in reverse.
        #[expect(clippy::cast_possible_truncation, reason = "rounded to f32")]
        let share = |i: usize, j: usize| (factor.get(last - i, last - j) / factor.get(last - j, last - j)) as f32;
        let tile = sweep.products.tile().rows;
        let mut before = vec![0.0; first * width];
        let tiles = before.chunks_mut((first * tile).max(1)).enumerate().collect();
        threads::for_each(threads, tiles, |(at, factors): (usize, &mut [f32])| {
            let begin = first + at * tile;
            let rows = tile.min(columns.end - begin);
            for (i, factors) in factors.chunks_exact_mut(rows).enumerate() {
                for (j, factor) in factors.iter_mut().enumerate() {
                    *factor = share(i, begin + j);
                }
            }
        });
        let mut among = vec![0.0; width * width];
        for i in 0..width {
            for j in i + 1..width {
                among[i * width + j] = share(first + i, first + j);
            }
        }
        Self {
            sweep,
            columns,
            before,
            among,
        }
    }

    /// Quantizes its columns of some panels.
    fn quantize(&self, panels: &mut [Panel]) {
        let (width, tile) = (self.columns.len(), self.sweep.products.tile().rows);
        let first = self.columns.start;
        let mut carried = vec![vec![[0f32; LANES]; width]; panels.len()];
        for depth in (0..first).step_by(DEPTH) {
            let depth = depth..first.min(depth + DEPTH);
            for (panel, carried) in panels.iter().zip(&mut carried) {
                let errors = panel.weights[depth.clone()].as_flattened();
                let tiles = self.before.chunks(first * tile).zip(carried.chunks_mut(tile));
                for (factors, carried) in tiles {
                    let rows = carried.len();
                    let factors = &factors[depth.start * rows..depth.end * rows];
                    self.sweep
                        .products
                        .multiply_f32(rows, factors, errors, carried.as_flattened_mut());
                }
            }
        }
        let size = if self.sweep.static_groups {
            width
        } else {
            self.sweep.scheme.block_size(self.sweep.rows.k())
        };
        let mut chooser = self.sweep.chooser();
        for (panel, carried) in panels.iter_mut().zip(&mut carried) {
            for group in (0..width).step_by(size) {
                let group = group..width.min(group + size);
                if !self.sweep.static_groups {
                    self.choose(&mut chooser, panel, carried, group.clone());
                }
                let place = first + group.start..first + group.end;
                let columns = Columns {
                    weights: &mut panel.weights[place.clone()],
                    carried: &mut carried[group.start..],
                    factors: self.factors(group.start),
                    codes: &mut panel.codes[place.clone()],
                };
                let limits = self.sweep.scheme.real_limits();
                self.sweep
                    .kernel
                    .quantize(columns, &panel.grids, &self.sweep.blocks[place], limits);
            }
        }
    }

    /// Chooses the grids of a block from what the columns before it made of its weights: what they would be if it was
    /// not rounded.
    fn choose(&self, chooser: &mut Chooser<'_>, panel: &mut Panel, carried: &[[f32; LANES]], group: Range<usize>) {
        let mut relaxed = carried[group.clone()].to_vec();
        self.sweep.kernel.relax(&mut relaxed, self.factors(group.start));
        let begin = self.columns.start + group.start;
        let block = self.sweep.blocks[begin] as usize;
        let weights = &panel.weights[begin..][..group.len()];
        for lane in 0..LANES {
            let x: Vec<f32> = weights
                .iter()
                .zip(&relaxed)
                .map(|(w, add)| w[lane] + add[lane])
                .collect();
            self.sweep.choose(chooser, &x, block, lane, &mut panel.grids);
        }
    }

    /// Those of the columns from one of this part on.
    fn factors(&self, from: usize) -> Factors<'_> {
        let stride = self.columns.len();
        Factors {
            values: &self.among[from * stride + from..],
            stride,
        }
    }
}
