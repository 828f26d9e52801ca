//! Blocks, threads and the memory they work in.

use std::{cell::Cell, num::NonZeroUsize, ops::Range, sync::OnceLock, thread};

use super::{
    Call,
    finish::{Rows, Strip, Sums, Target},
};
use crate::{Error, Result, kernels::gemm::Tile, threads};

/// Packed rows of A that are multiplied by all of B before the next are packed: half of a 512 KiB second-level cache, so
/// that a panel of B still fits beside them.
const BLOCK_BYTES: usize = 256 << 10;

/// Multiplications that are worth a thread: about 60 us of AVX2, where waking a thread takes 5 to 50.
const WORK: usize = 4 << 20;

/// Pieces to a thread, so that one that is held up is helped.
const PIECES: usize = 4;

/// Multiplies, on as many threads as it takes. `target` names a region of `out` and what is to be made of the sums.
pub(super) fn run<'o, T: Send>(
    call: &Call<'o>,
    out: &'o mut [T],
    target: impl Fn(Rows<'o, T>) -> Target<'o> + Sync,
) -> Result<()> {
    let shape = [call.a.rows(), call.b.k(), call.b.n()];
    split(out, shape, call.b.kernel().tile(), call.threads, |rows, m, n| {
        multiply(call, m, n, &mut target(rows));
    })
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
    if out.len() != expected {
        let got = out.len();
        return Err(Error::Length {
            what: "output",
            expected,
            got,
        });
    }
    if expected == 0 {
        return Ok(());
    }
    let work = expected.saturating_mul(k);
    let threads = match threads {
        0 => (work / WORK).min(cores()),
        n => n,
    };
    let whole = |data, first| Rows::Whole { data, stride: n, first };
    if threads <= 1 {
        multiply(whole(out, 0), 0..m, 0..n);
        return Ok(());
    }
    let pieces = threads.saturating_mul(PIECES);
    if m.div_ceil(rows) >= pieces {
        // Enough tiles for each piece to have rows of its own.
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

/// Asked once: it takes longer than a small product.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(1, NonZeroUsize::get))
}

/// What a call needs beside its operands; kept by each thread for the next one.
#[derive(Default)]
struct Workspace {
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

/// The rows `m` of C in the columns `n`, which begin at a panel.
fn multiply(call: &Call<'_>, m: Range<usize>, n: Range<usize>, target: &mut Target<'_>) {
    let (kernel, k) = (call.b.kernel(), call.b.k());
    let Tile { rows, columns, group } = kernel.tile();
    let groups = k.div_ceil(group);
    let height = (BLOCK_BYTES / 4 / groups.max(1) / rows).max(1) * rows;
    let mut space = WORKSPACE.take();
    for top in m.clone().step_by(height) {
        let block = top..m.end.min(top + height);
        let tiles = || {
            block
                .clone()
                .step_by(rows)
                .map(|first| first..block.end.min(first + rows))
        };
        let a = prepared(&mut space.a, groups * block.len());
        for (tile, a) in tiles().zip(a.chunks_mut((groups * rows).max(1))) {
            kernel.pack_rows(call.a, tile, a);
        }
        space.a_sums.clear();
        if !call.correction.b_zero_point.is_empty() {
            let offset = call.correction.a_offset.wrapping_mul(i32::try_from(k).unwrap_or(0));
            let sums = block
                .clone()
                .map(|row| kernel.sum(call.a.row(row)).wrapping_add(offset));
            space.a_sums.extend(sums);
        }
        let sums = prepared(&mut space.sums, block.len() * columns);
        for first in n.clone().step_by(columns) {
            let panel = call.b.panel(first / columns);
            for (tile, sums) in tiles().zip(sums.chunks_mut(rows * columns)) {
                let start = (tile.start - top) * groups;
                let a = &space.a[start..start + tile.len() * groups];
                kernel.multiply(tile.len(), a, panel, sums);
            }
            kernel.finish(Strip {
                sums: Sums {
                    data: sums,
                    width: columns,
                    rows: block.clone(),
                    columns: first..n.end.min(first + columns),
                    a_sums: &space.a_sums,
                    correction: call.correction,
                },
                target,
            });
        }
    }
    WORKSPACE.set(space);
}

/// The first `length` elements, there being at least so many.
fn prepared(buffer: &mut Vec<i32>, length: usize) -> &mut [i32] {
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    &mut buffer[..length]
}
