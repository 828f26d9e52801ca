//! Blocks, threads and the memory they work in.

use std::{cell::Cell, num::NonZeroUsize, ops::Range, sync::OnceLock, thread};

use super::{PackedWeights, Work};
use crate::{
    QuantType, Result,
    arrays::Matrix,
    error::check_length,
    kernels::{
        finish::{Correction, Rows, Strip, Sums, Target},
        gemm::{GemmKernel, Tile},
    },
    threads,
};

/// Packed rows of A that are multiplied by all of B before the next are packed: half of a 512 KiB second-level cache,
/// so that a panel of B still fits beside them.
const BLOCK_BYTES: usize = 256 << 10;

/// Multiplications that are worth a thread: about 60 us of AVX2, where waking a thread takes 5 to 50.
const WORK: usize = 4 << 20;

/// Pieces to a thread, so that one that is held up is helped.
const PIECES: usize = 4;

/// Steps along K after which sums become results of as many bytes: so many that what this takes at its beginning does
/// not matter, and so few that results are on their way to memory while the next are summed. Bytes do not fill the way.
const STRIP: usize = 256;

/// Where rows of A come from: a matrix as it lies, or rows that are put together when they are wanted.
pub(crate) trait Source: Sync {
    /// How many rows.
    fn rows(&self) -> usize;

    /// int8 or uint8.
    fn dtype(&self) -> QuantType;

    /// A matrix that holds `rows`, and which rows of it they are. `group` counts the weights, each of which may have an
    /// A of its own.
    fn gather<'s>(
        &'s self,
        kernel: &dyn GemmKernel,
        group: usize,
        rows: Range<usize>,
        space: &'s mut Gathered,
    ) -> (Matrix<'s>, Range<usize>);
}

/// Memory for rows that are put together.
#[derive(Default)]
pub(crate) struct Gathered {
    pub(crate) u8: Vec<u8>,
    pub(crate) i8: Vec<i8>,
}

impl Source for Matrix<'_> {
    fn rows(&self) -> usize {
        self.rows()
    }

    fn dtype(&self) -> QuantType {
        self.dtype()
    }

    fn gather<'s>(
        &'s self,
        _: &dyn GemmKernel,
        _: usize,
        rows: Range<usize>,
        _: &'s mut Gathered,
    ) -> (Matrix<'s>, Range<usize>) {
        (*self, rows)
    }
}

/// The checked operands of one call.
pub(crate) struct Product<'a, S> {
    pub(crate) a: S,
    /// `[1]` or `[M]`.
    pub(crate) a_zero_point: &'a [i32],
    /// Side by side in C, all of one K and N; several have an A each.
    pub(crate) b: &'a [PackedWeights],
    pub(crate) threads: usize,
}

impl<S: Source> Work for Product<'_, S> {
    fn run<'o, T: Send>(&'o self, out: &'o mut [T], target: impl Fn(Rows<'o, T>) -> Target<'o> + Sync) -> Result<()> {
        let Some(b) = self.b.first() else {
            return Ok(());
        };
        let mut tile = b.kernel().tile();
        if self.b.len() > 1 {
            tile.columns = usize::MAX; // panels of several weights are not cut anew
        }
        let shape = [self.a.rows(), b.k(), b.n() * self.b.len()];
        split(out, shape, tile, self.threads, |rows, m, n| {
            self.multiply(m, n, &mut target(rows));
        })
    }
}

/// Cuts C between tiles into regions, and has each multiplied by its rows and columns, on as many threads as it takes.
pub(super) fn split<'o, T: Send>(
    out: &'o mut [T],
    [m, k, n]: [usize; 3],
    Tile { rows, columns, .. }: Tile,
    threads: usize,
    multiply: impl Fn(Rows<'o, T>, Range<usize>, Range<usize>) + Sync,
) -> Result<()> {
    let expected = m.saturating_mul(n);
    check_length("output", expected, out.len())?;
    if expected == 0 {
        return Ok(());
    }
    let threads = worth(threads, expected.saturating_mul(k));
    let whole = |data, first| Rows::Whole { data, stride: n, first };
    if threads <= 1 {
        multiply(whole(out, 0), 0..m, 0..n);
        return Ok(());
    }
    let pieces = threads.saturating_mul(PIECES);
    if m.div_ceil(rows) >= pieces || columns >= n {
        // Rows for each piece: enough tiles of them, or nothing else to cut.
        let height = m.div_ceil(rows).div_ceil(pieces) * rows;
        let cut = out.chunks_mut(height * n).zip((0..m).step_by(height));
        threads::for_each(threads, cut.collect(), |(data, first)| {
            let part = first..first + data.len() / n;
            multiply(whole(data, first), part, 0..n);
        });
    } else {
        let width = n.div_ceil(columns).div_ceil(pieces) * columns;
        let mut cut: Vec<_> = (0..n)
            .step_by(width)
            .map(|first| (Vec::with_capacity(m), first))
            .collect();
        for row in out.chunks_mut(n) {
            for (part, (rows, _)) in row.chunks_mut(width).zip(&mut cut) {
                rows.push(part);
            }
        }
        threads::for_each(threads, cut, |(rows, first)| {
            let part = first..n.min(first + width);
            multiply(Rows::Cut { rows, first }, 0..m, part);
        });
    }
    Ok(())
}

/// How many threads to take for so many multiplications, where 0 asks for as many as they are worth.
pub(crate) fn worth(threads: usize, multiplications: usize) -> usize {
    match threads {
        0 => (multiplications / WORK).min(cores()),
        n => n,
    }
}

/// Asked once: it takes longer than a small product.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, NonZeroUsize::get))
}

/// What a call needs beside its operands; kept by each thread for the next one.
#[derive(Default)]
struct Workspace {
    gathered: Gathered,
    /// Packed rows of A.
    a: Vec<i32>,
    /// Their sums.
    a_sums: Vec<i32>,
    /// Sums of products of a block with a panel.
    sums: Vec<i32>,
}

thread_local! {
    static WORKSPACE: Cell<Workspace> = Cell::default();
}

impl<S: Source> Product<'_, S> {
    /// The rows `m` of C in the columns `n`, which begin at a panel.
    fn multiply(&self, m: Range<usize>, n: Range<usize>, target: &mut Target<'_>) {
        let mut space = WORKSPACE.take();
        let mut origin = 0;
        for (group, b) in self.b.iter().enumerate() {
            let own = n.start.saturating_sub(origin)..n.end.saturating_sub(origin).min(b.n());
            self.multiply_group((group, b, origin), m.clone(), own, &mut space, target);
            origin += b.n();
        }
        WORKSPACE.set(space);
    }

    /// The same for one of the weights, whose columns begin at `origin` in C; `n` counts its own.
    fn multiply_group(
        &self,
        (group, b, origin): (usize, &PackedWeights, usize),
        m: Range<usize>,
        n: Range<usize>,
        space: &mut Workspace,
        target: &mut Target<'_>,
    ) {
        let (kernel, k) = (b.kernel(), b.k());
        let Tile {
            rows,
            columns,
            group: neighbours,
        } = kernel.tile();
        let correction = Correction {
            a_zero_point: self.a_zero_point,
            a_offset: kernel.offset(self.a.dtype().signed()),
            b_sums: b.sums(),
            b_zero_point: b.shifted_zero_point(),
        };
        let a_offset = correction.a_offset.wrapping_mul(i32::try_from(k).unwrap_or(0));
        let depth = k.div_ceil(neighbours);
        let height = (BLOCK_BYTES / 4 / depth.max(1) / rows).max(1) * rows;
        for top in m.clone().step_by(height) {
            let block = top..m.end.min(top + height);
            let a = prepared(&mut space.a, depth * block.len());
            space.a_sums.clear();
            for (tile, a) in cut(&block, rows).zip(a.chunks_mut((depth * rows).max(1))) {
                let (matrix, tile) = self.a.gather(kernel, group, tile, &mut space.gathered);
                if !correction.b_zero_point.is_empty() {
                    let sums = tile
                        .clone()
                        .map(|row| kernel.sum(matrix.row(row)).wrapping_add(a_offset));
                    space.a_sums.extend(sums);
                }
                kernel.pack_rows(matrix, tile, a);
            }
            let strip = match target {
                Target::I32(_) | Target::F32(..) => (STRIP / depth.max(1)).max(1) * rows,
                Target::U8(..) | Target::I8(..) => height,
            };
            let sums = prepared(&mut space.sums, block.len().min(strip) * columns);
            for first in n.clone().step_by(columns) {
                let panel = b.panel(first / columns);
                for lines in block.clone().step_by(strip) {
                    let lines = lines..block.end.min(lines + strip);
                    let sums = &mut sums[..lines.len() * columns];
                    for (tile, sums) in cut(&lines, rows).zip(sums.chunks_mut(rows * columns)) {
                        let start = (tile.start - top) * depth;
                        let a = &space.a[start..start + tile.len() * depth];
                        kernel.multiply(tile.len(), a, panel, sums);
                    }
                    let a_sums = space.a_sums.get(lines.start - top..lines.end - top);
                    kernel.finish(Strip {
                        sums: Sums {
                            data: sums,
                            width: columns,
                            rows: lines,
                            columns: first..n.end.min(first + columns),
                            origin,
                            a_sums: a_sums.unwrap_or_default(),
                            correction: Some(correction),
                        },
                        target,
                    });
                }
            }
        }
    }
}

/// Rows as tiles of `height`, of which the last may be lower.
fn cut(rows: &Range<usize>, height: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let Range { start, end } = *rows;
    (start..end)
        .step_by(height)
        .map(move |first| first..end.min(first + height))
}

/// The first `length` elements, there being at least so many.
pub(crate) fn prepared(buffer: &mut Vec<i32>, length: usize) -> &mut [i32] {
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    &mut buffer[..length]
}
