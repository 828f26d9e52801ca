//! The convolution of each channel with a filter of its own.
//!
//! A multiply-add takes two taps, so two rows of the image are laid into each other, widened, and less their zero
//! point: what is outside of the image is 0. Rows `2q` and `2q + 1` of a strip make pair row `q`, which serves every
//! output row that meets one of them; an output row that begins at an odd row has its weights moved down by one:
//!
//! ```text
//!                    even output row            odd output row
//! pair row 0   row 0  w0  row 1  w1        row 0  0   row 1  w0
//! pair row 1   row 2  w2  row 3  0         row 2  w1  row 3  w2
//! ```
//!
//! Within a pair row the pixels are sorted by their column modulo the stride, into planes, so that neighbouring outputs
//! read neighbouring pixels whatever the stride. Channels are taken [`LANES`] at a time, [`BLOCKS`] times for each
//! output row. Only the pair rows that an output row meets are kept, each in the place of one that no row meets any
//! more, so that they stay in the first-level cache.

use std::{cell::Cell, ops::Range};

use super::{
    Filters, Images, Window,
    planes::{Inside, Planes},
};
use crate::{
    Result,
    arrays::BytesMut,
    gemm::{Work, worth},
    kernels::{
        depthwise::{DepthwiseKernel, LANES, ORDER, Pairs, Row, pair},
        finish::{Rows, Strip, Sums, Target},
    },
    requantize::{Columns, Multipliers},
    threads,
};

/// Lanes of channels whose output rows are computed in turn: a cache line, so that it is read and written once. On Zen
/// 3, 14x14x256 takes 1.08 of its time with one.
const BLOCKS: usize = 4;

/// The largest magnitude of a product of 8-bit integers less their zero points.
const MAX_PRODUCT: usize = 255 * 255;

/// What a conversion to i32 surely holds.
const MAX_SCALED: f64 = (1 << 30) as f64;

/// Strips to a thread at least, so that one that is held up is helped.
const PIECES: usize = 4;

/// The weights, less their zero point, for output rows that begin at an even and at an odd row of their strip.
pub(super) struct Weights {
    kernel: &'static dyn DepthwiseKernel,
    channels: usize,
    /// `[ceil(channels / LANES)][pair rows][columns]`
    phases: [Vec<Pairs>; 2],
}

/// Pair rows that an output row meets, by its phase.
fn pair_rows(height: usize) -> [usize; 2] {
    [height.div_ceil(2), height / 2 + 1]
}

impl Weights {
    /// Of filters `[channels, 1, height, width]`.
    pub(super) fn new(kernel: &'static dyn DepthwiseKernel, filters: Filters<'_>) -> Self {
        let [channels, _, height, width] = filters.shape;
        let zero_point = |c| filters.zero_point[if filters.zero_point.len() == 1 { 0 } else { c }];
        // The weight of a row in a phase, which is none outside of the filter.
        let weight = |c: usize, row: Option<usize>, column: usize| match row {
            Some(row) if row < height && c < channels => {
                filters.data.get((c * height + row) * width + column) - zero_point(c)
            }
            _ => 0,
        };
        let phases = [0, 1].map(|phase| {
            let mut packed = Vec::new();
            for first in (0..channels).step_by(LANES) {
                for q in 0..pair_rows(height)[phase] {
                    for x in 0..width {
                        let of = |c, row: usize| weight(c, row.checked_sub(phase), x);
                        packed.push(ORDER.map(|i| pair(of(first + i, 2 * q), of(first + i, 2 * q + 1))));
                    }
                }
            }
            packed
        });
        Self {
            kernel,
            channels,
            phases,
        }
    }

    pub(super) fn kernel(&self) -> &'static dyn DepthwiseKernel {
        self.kernel
    }

    /// Writes the bits of the filters.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the low byte is what was given"
    )]
    pub(super) fn unpack(&self, [height, width]: [usize; 2], zero_point: &[i32], out: &mut [u8]) {
        for (c, filter) in out.chunks_mut(height * width).enumerate() {
            let zero_point = zero_point[if zero_point.len() == 1 { 0 } else { c }];
            for (tap, out) in filter.iter_mut().enumerate() {
                let (row, column) = (tap / width, tap % width);
                let place = (c / LANES * pair_rows(height)[0] + row / 2) * width + column;
                let lane = ORDER
                    .iter()
                    .position(|&i| i == c % LANES)
                    .expect("an order of all lanes");
                let pair = self.phases[0][place][lane];
                *out = ((pair >> (16 * (row % 2))) + zero_point) as u8;
            }
        }
    }
}

/// The checked operands of one call.
pub(super) struct Depthwise<'a> {
    images: Images<'a>,
    windows: [Window; 2],
    /// Rows and columns of the output.
    places: [usize; 2],
    planes: Planes,
    weights: &'a Weights,
    threads: usize,
}

/// What a call needs beside its operands; kept by each thread for the next one.
#[derive(Default)]
struct Workspace {
    /// `[blocks][slots][planes][pixels]`: pair row `q` lies in slot `q % slots`.
    pairs: Vec<i32>,
    /// Of an output row.
    sums: Vec<i32>,
    /// Where in the slots each tap of the first output begins: `[slot of its first pair row][taps]`.
    taps: Vec<usize>,
    /// Of each plane.
    inside: Vec<Inside>,
}

thread_local! {
    static WORKSPACE: Cell<Workspace> = Cell::default();
}

/// Some output rows of an image.
struct Piece {
    image: usize,
    rows: Range<usize>,
}

impl<'a> Depthwise<'a> {
    pub(super) fn new(
        images: Images<'a>,
        windows: [Window; 2],
        places: [usize; 2],
        weights: &'a Weights,
        threads: usize,
    ) -> Self {
        Self {
            images,
            windows,
            places,
            planes: Planes::new(windows[1], places[1].max(1)),
            weights,
            threads,
        }
    }

    /// Computes a piece of the output.
    fn piece(&self, piece: &Piece, target: &mut Target<'_>) {
        let mut space = WORKSPACE.take();
        let [window, across] = self.windows;
        let (channels, width, stride) = (self.weights.channels, self.places[1], self.planes.row());
        let slots = pair_rows(window.size)[1];
        let most = slots * across.size;
        space.taps.clear();
        for first in 0..slots {
            for q in 0..slots {
                let begin = (first + q) % slots * stride;
                space
                    .taps
                    .extend((0..across.size).map(|tap| begin + self.planes.tap(tap)));
            }
        }
        let columns = self.images.shape()[2];
        space.inside.clear();
        space
            .inside
            .extend((0..self.planes.count).map(|plane| self.planes.inside(plane, columns)));
        let all = slots * stride;
        let pairs = aligned(&mut space.pairs, self.blocks() * all);
        // What is outside of the image stays so.
        pairs.fill([0; LANES]);
        let sums = aligned(&mut space.sums, width);
        for first in (0..channels).step_by(BLOCKS * LANES) {
            let blocks = (first..channels).step_by(LANES).take(BLOCKS);
            let columns: [_; BLOCKS] = std::array::from_fn(|block| self.columns(target, first + block * LANES));
            let mut made = 0;
            for row in 0..piece.rows.len() {
                let (phase, top) = (row * window.stride % 2, row * window.stride / 2);
                let height = pair_rows(window.size)[phase];
                for q in made.max(top)..top + height {
                    let slot = q % slots * stride;
                    for (first, pairs) in blocks.clone().zip(pairs.chunks_mut(all)) {
                        self.interleave(piece, q, first, &space.inside, &mut pairs[slot..][..stride]);
                    }
                }
                made = top + height;
                let count = height * across.size;
                for ((first, pairs), columns) in blocks.clone().zip(pairs.chunks(all)).zip(&columns) {
                    let operands = Row {
                        x: pairs,
                        taps: &space.taps[top % slots * most..][..count],
                        weights: &self.weights.phases[phase][first / LANES * count..][..count],
                    };
                    self.row(operands, row, first, columns.as_ref(), sums, target);
                }
            }
        }
        WORKSPACE.set(space);
    }

    /// Blocks of channels that are computed in turn.
    fn blocks(&self) -> usize {
        self.weights.channels.div_ceil(LANES).min(BLOCKS)
    }

    /// What becomes of the channels from `first` on, where the kernel can do it without writing down their sums.
    fn columns(&self, target: &Target<'_>, first: usize) -> Option<Columns<f32, LANES>> {
        let (Target::U8(_, requantizer) | Target::I8(_, requantizer)) = target else {
            return None;
        };
        let Multipliers::Float(multipliers) = requantizer.multipliers() else {
            return None;
        };
        if self.weights.channels - first.min(self.weights.channels) < LANES {
            return None;
        }
        let columns = requantizer.columns(multipliers, first);
        let [rows, across] = self.windows;
        let sum = (rows.size * across.size * MAX_PRODUCT) as f64 + f64::from(requantizer.bias_magnitude());
        let largest = columns.multipliers.into_iter().fold(0.0, f32::max);
        (sum * f64::from(largest) < MAX_SCALED).then_some(columns)
    }

    /// Computes a row of a piece in the channels from `first` on.
    fn row(
        &self,
        operands: Row<'_>,
        row: usize,
        first: usize,
        columns: Option<&Columns<f32, LANES>>,
        sums: &mut [Pairs],
        target: &mut Target<'_>,
    ) {
        let (kernel, width, channels) = (self.weights.kernel, self.places[1], self.weights.channels);
        let begin = row * width * channels + first;
        let pixels = begin..begin + (width - 1) * channels + LANES;
        match (columns, &mut *target) {
            (Some(columns), Target::U8(Rows::Whole { data, .. }, _)) => {
                kernel.requantize(operands, columns, BytesMut::U8(&mut data[pixels]), channels);
            }
            (Some(columns), Target::I8(Rows::Whole { data, .. }, _)) => {
                kernel.requantize(operands, columns, BytesMut::I8(&mut data[pixels]), channels);
            }
            _ => {
                kernel.multiply(operands, sums);
                kernel.finish(Strip {
                    sums: Sums {
                        data: sums.as_flattened(),
                        width: LANES,
                        rows: row * width..(row + 1) * width,
                        columns: first..channels.min(first + LANES),
                        origin: 0,
                        a_sums: &[],
                        correction: None,
                    },
                    target,
                });
            }
        }
    }

    /// Makes pair row `q` of a piece, for the channels from `first` on.
    fn interleave(&self, piece: &Piece, q: usize, first: usize, inside: &[Inside], out: &mut [Pairs]) {
        let [_, height, _, channels] = self.images.shape();
        let [rows, columns] = self.windows;
        // Counted from the top of the padding.
        let line = |i: usize| {
            let y = piece.rows.start * rows.stride + i * rows.dilation;
            y.checked_sub(rows.pads[0])
                .filter(|&y| y < height)
                .map(|y| self.images.pixel(piece.image, y, 0) + first)
        };
        let lines = [line(2 * q), line(2 * q + 1)];
        for (plane, Inside { pixels, column }) in inside.iter().enumerate() {
            let out = &mut out[plane * self.planes.length..][..self.planes.length];
            if !pixels.is_empty() {
                let lines = lines.map(|line| line.map(|line| self.images.data().after(line + column * channels)));
                self.weights.kernel.interleave(
                    lines,
                    columns.stride * channels,
                    self.images.zero_point(),
                    &mut out[pixels.clone()],
                );
            }
        }
    }
}

impl Work for Depthwise<'_> {
    fn run<'o, T: Send>(&'o self, out: &'o mut [T], target: impl Fn(Rows<'o, T>) -> Target<'o> + Sync) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let ([height, width], channels) = (self.places, self.weights.channels);
        let taps = self.windows[0].size * self.windows[1].size;
        let threads = worth(self.threads, out.len().saturating_mul(taps));
        let strips = if threads <= 1 {
            1
        } else {
            threads.saturating_mul(PIECES)
        };
        let rows = self.images.shape()[0].saturating_mul(height).div_ceil(strips);
        // Where taps are not neighbours, their pairs serve no other row.
        let rows = if self.windows[0].dilation == 1 {
            rows.min(height)
        } else {
            1
        };
        let images = out.chunks_mut(height * width * channels).enumerate();
        let pieces = images.flat_map(|(image, out)| {
            let strips = out.chunks_mut(rows * width * channels).zip((0..height).step_by(rows));
            strips.map(move |(data, first)| {
                let rows = first..first + data.len() / (width * channels);
                (Piece { image, rows }, data)
            })
        });
        let run = |(piece, data): (Piece, _)| {
            let (stride, first) = (channels, 0);
            self.piece(&piece, &mut target(Rows::Whole { data, stride, first }));
        };
        if threads <= 1 {
            pieces.for_each(run);
        } else {
            threads::for_each(threads, pieces.collect(), run);
        }
        Ok(())
    }
}

/// The first `length` groups of lanes from a cache line on.
fn aligned(buffer: &mut Vec<i32>, length: usize) -> &mut [[i32; LANES]] {
    if buffer.len() < (length + 1) * LANES {
        buffer.resize((length + 1) * LANES, 0);
    }
    let start = buffer.as_ptr().align_offset(64).min(LANES);
    &mut buffer[start..].as_chunks_mut().0[..length]
}
