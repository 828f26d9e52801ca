//! Blocks of A, and the memory that they are worked on in.

use std::{cell::Cell, ops::Range};

use super::{Activations, Call};
use crate::kernels::{
    blocked_activations::{Quantized, Rows},
    blocked_gemm::{OCTET, QuantizedTile},
    finish,
    gemm::Tile,
};

/// Packed rows of A that are multiplied by all of B before the next are packed: half of a 512 KiB second-level cache,
/// so that a panel of B still fits beside them.
const BLOCK_BYTES: usize = 256 << 10;

/// Tiles of A to a block at most; where it is as high, a block is not as long as K may be.
const TILES: usize = 32;

/// Rows of dequantized B that are used by all tiles while they are in the first-level cache.
const SLAB: usize = 256;

/// What a call needs beside its operands; kept by each thread for the next one.
#[derive(Default)]
struct Workspace {
    /// Packed rows of A, as integers or as reals, with scales and corrections.
    groups: Vec<i32>,
    scales: Vec<f32>,
    corrections: Vec<i32>,
    reals: Vec<f32>,
    /// Dequantized B.
    slab: Vec<f32>,
    /// Sums of a block of A with a panel of B.
    sums: Vec<f32>,
}

thread_local! {
    static WORKSPACE: Cell<Workspace> = Cell::default();
}

/// The rows `m` of C in the columns `n`, which begin at a panel.
pub(super) fn multiply(call: &Call<'_>, out: &mut finish::Rows<'_, f32>, m: Range<usize>, n: Range<usize>) {
    let (b, Tile { rows, columns, .. }) = (call.b, call.b.kernel().tile());
    let height = m.len().min(TILES * rows);
    let value = if call.activations == Activations::Float { 4 } else { 1 };
    let length = (BLOCK_BYTES / value / height.max(1) / b.block_size()).max(1);
    let mut space = WORKSPACE.take();
    for top in m.clone().step_by(height.max(1)) {
        let block = top..m.end.min(top + height);
        // A K of 0 has no blocks, but results.
        for first in (0..b.blocks().max(1)).step_by(length) {
            let part = Part {
                call,
                rows: block.clone(),
                blocks: first..b.blocks().min(first + length),
            };
            part.pack(&mut space);
            let (begins, ends) = (first == 0, part.blocks.end == b.blocks());
            for left in n.clone().step_by(columns) {
                let across = left..n.end.min(left + columns);
                space.sums.clear();
                space.sums.resize(block.len() * columns, 0.0);
                let lines = || block.clone().zip(0..).map(|(row, i)| (row, i * columns));
                if !begins {
                    for (row, at) in lines() {
                        let partial = out.get(row, across.clone());
                        copy(partial, &mut space.sums[at..]);
                    }
                }
                part.accumulate(left / columns, &mut space);
                for (row, at) in lines() {
                    let line = out.get(row, across.clone());
                    copy(&space.sums[at..at + columns], line);
                    if ends && !call.bias.is_empty() {
                        for (sum, bias) in line.iter_mut().zip(&call.bias[across.clone()]) {
                            *sum += bias;
                        }
                    }
                }
            }
        }
    }
    WORKSPACE.set(space);
}

/// Some rows of A, cut to some blocks of K.
struct Part<'a, 'c> {
    call: &'c Call<'a>,
    rows: Range<usize>,
    blocks: Range<usize>,
}

impl Part<'_, '_> {
    /// The columns of A.
    fn depth(&self) -> Range<usize> {
        let size = self.call.b.block_size();
        self.blocks.start * size..self.call.b.k().min(self.blocks.end * size)
    }

    fn tiles(&self) -> impl Iterator<Item = Range<usize>> {
        let (end, rows) = (self.rows.end, self.call.b.kernel().tile().rows);
        self.rows
            .clone()
            .step_by(rows)
            .map(move |first| first..end.min(first + rows))
    }

    /// Where in packed rows a tile begins and ends, when each row has `length` elements.
    fn place(&self, tile: &Range<usize>, length: usize) -> Range<usize> {
        (tile.start - self.rows.start) * length..(tile.end - self.rows.start) * length
    }

    fn groups(&self) -> usize {
        2 * self.depth().len().div_ceil(OCTET)
    }

    fn pack(&self, space: &mut Workspace) {
        let (call, depth) = (self.call, self.depth());
        let (height, blocks) = (self.rows.len(), self.blocks.len());
        let of = |tile| Rows {
            a: call.a,
            k: call.b.k(),
            rows: tile,
            columns: depth.clone(),
            block_size: call.b.block_size(),
            activations: call.activations,
        };
        if call.activations == Activations::Float {
            let reals = prepared(&mut space.reals, height * depth.len());
            for tile in self.tiles() {
                of(tile.clone()).transpose(&mut reals[self.place(&tile, depth.len())]);
            }
            return;
        }
        let factor = match call.b.zero_point() {
            Some(common) => -i32::from(common),
            None => -1,
        };
        let groups = prepared(&mut space.groups, height * self.groups());
        let scales = prepared(&mut space.scales, height * blocks);
        let corrections = prepared(&mut space.corrections, height * blocks);
        for tile in self.tiles() {
            let to = Quantized {
                groups: &mut groups[self.place(&tile, self.groups())],
                scales: &mut scales[self.place(&tile, blocks)],
                corrections: &mut corrections[self.place(&tile, blocks)],
                factor,
            };
            call.b.kernel().quantize(of(tile), to);
        }
    }

    /// Adds the product with a panel to the sums.
    fn accumulate(&self, panel: usize, space: &mut Workspace) {
        let (b, kernel) = (self.call.b, self.call.b.kernel());
        let columns = kernel.tile().columns;
        if self.call.activations != Activations::Float {
            let panel = b.panel(panel, self.blocks.clone());
            for tile in self.tiles() {
                let blocks = self.place(&tile, self.blocks.len());
                let a = QuantizedTile {
                    groups: &space.groups[self.place(&tile, self.groups())],
                    scales: &space.scales[blocks.clone()],
                    corrections: &space.corrections[blocks],
                };
                let sums = &mut space.sums[self.place(&tile, columns)];
                kernel.multiply_int8(tile.len(), a, panel, sums);
            }
            return;
        }
        let (depth, blocks) = (self.depth(), (SLAB / b.block_size()).max(1));
        for first in self.blocks.clone().step_by(blocks) {
            let part = Part {
                blocks: first..self.blocks.end.min(first + blocks),
                rows: self.rows.clone(),
                call: self.call,
            };
            let (start, length) = (part.depth().start - depth.start, part.depth().len());
            let slab = prepared(&mut space.slab, length.next_multiple_of(OCTET) * columns);
            kernel.dequantize(b.panel(panel, part.blocks.clone()), slab);
            for tile in self.tiles() {
                let a = &space.reals[self.place(&tile, depth.len())];
                let a = &a[start * tile.len()..(start + length) * tile.len()];
                let sums = &mut space.sums[self.place(&tile, columns)];
                kernel.multiply_f32(tile.len(), a, slab, sums);
            }
        }
    }
}

/// Copies as many as fit, 16 at a time: a call for each row would cost more.
fn copy(from: &[f32], to: &mut [f32]) {
    for (from, to) in from.chunks(16).zip(to.chunks_mut(16)) {
        match (from.first_chunk::<16>(), to.first_chunk_mut::<16>()) {
            (Some(from), Some(to)) => *to = *from,
            _ => to.iter_mut().zip(from).for_each(|(to, from)| *to = *from),
        }
    }
}

/// The first `length` elements, there being at least so many.
fn prepared<T: Copy + Default>(buffer: &mut Vec<T>, length: usize) -> &mut [T] {
    if buffer.len() < length {
        buffer.resize(length, T::default());
    }
    &mut buffer[..length]
}
