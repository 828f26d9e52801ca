//! Tiles, threads and the memory they work in.

use std::ops::Range;

use super::layout::TILE;
use crate::{
    arrays::{Cut, IntegersMut},
    kernels::elementwise::{Divisors, ElementwiseKernel, Slices},
    threads,
};

/// Elements to a piece, of which each is worth a thread: 25 us at least, where waking a thread takes 5 to 50.
const PIECE: usize = 64 * TILE;

/// Calls `work(first, part, scratch)` for parts of `io`, each a tile long, the last one shorter. `threads` is 0 for as
/// many as are worth it.
pub(super) fn for_each_tile<P: Cut + Send>(io: P, threads: usize, work: impl Fn(usize, P, &mut Scratch) + Send + Sync) {
    let len = io.len();
    if len == 0 {
        return;
    }
    let piece = len.div_ceil(threads.max(1)).min(PIECE).next_multiple_of(TILE);
    let pieces = cut(io, piece);
    let threads = if pieces.len() > 1 { threads } else { 1 };
    threads::for_each(threads, pieces.into_iter().enumerate().collect(), |(i, io)| {
        let mut scratch = Scratch::default();
        let (mut first, mut rest) = (i * piece, io);
        while rest.len() > 0 {
            let len = TILE.min(rest.len());
            let (tile, others) = rest.cut(len);
            work(first, tile, &mut scratch);
            (first, rest) = (first + len, others);
        }
    });
}

fn cut<P: Cut>(io: P, piece: usize) -> Vec<P> {
    let mut pieces = Vec::with_capacity(io.len() / piece + 1);
    let mut rest = io;
    while rest.len() > piece {
        let (head, tail) = rest.cut(piece);
        pieces.push(head);
        rest = tail;
    }
    pieces.push(rest);
    pieces
}

/// What a thread keeps from tile to tile.
#[derive(Default)]
pub(super) struct Scratch {
    /// A tile that is read or written in f32.
    pub(super) reals: Vec<f32>,
    /// A tile that is written in f32, where another is read.
    pub(super) results: Vec<f32>,
    /// A tile of integers that are to be packed, or were.
    pub(super) held: Held,
    pub(super) prepared: Prepared,
}

/// Memory for integers of either sign.
#[derive(Default)]
pub(super) struct Held {
    signed: Vec<i8>,
    unsigned: Vec<u8>,
}

impl Held {
    pub(super) fn integers(&mut self, signed: bool, len: usize) -> IntegersMut<'_> {
        if signed {
            IntegersMut::I8(first(&mut self.signed, len))
        } else {
            IntegersMut::U8(first(&mut self.unsigned, len))
        }
    }
}

/// The first `len` elements of a buffer, which is made long enough.
pub(super) fn first<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

/// What dividing by the scales of a window of slices takes.
#[derive(Default)]
pub(super) struct Prepared {
    window: Range<usize>,
    inverse: Vec<f32>,
    min: Vec<f32>,
    max: Vec<f32>,
    ordinary: bool,
}

impl Prepared {
    /// Makes the window `window`, whose slices are given, if it is another one.
    pub(super) fn prepare(&mut self, kernel: &dyn ElementwiseKernel, window: &Range<usize>, slices: Slices<'_>) {
        if self.window == *window {
            return;
        }
        self.window = window.clone();
        let [inverse, min, max] = [&mut self.inverse, &mut self.min, &mut self.max].map(|b| first(b, window.len()));
        self.ordinary = kernel.prepare(slices, inverse, min, max);
    }

    /// Those of `slices`, which are the slices `range`, all in the window.
    pub(super) fn divisors<'a>(&'a self, slices: Slices<'a>, range: Range<usize>) -> Divisors<'a> {
        let inside = range.start - self.window.start..range.end - self.window.start;
        Divisors {
            slices,
            inverse: &self.inverse[inside.clone()],
            min: &self.min[inside.clone()],
            max: &self.max[inside],
            ordinary: self.ordinary,
        }
    }
}
