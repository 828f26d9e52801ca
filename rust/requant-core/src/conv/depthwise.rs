//! The convolution of each channel with a filter of its own.
//!
//! A multiply-add takes two taps, so two rows of the image are laid into each other, widened, and less their zero point:
//! what is outside of the image is 0. Rows `2q` and `2q + 1` of a strip make pair row `q`, which serves every output row
//! that meets one of them; an output row that begins at an odd row has its weights moved down by one:
//!
//! ```text
//!                    even output row            odd output row
//! pair row 0   row 0  w0  row 1  w1        row 0  0   row 1  w0
//! pair row 1   row 2  w2  row 3  0         row 2  w1  row 3  w2
//! ```
//!
//! Within a pair row the pixels are sorted by their column modulo the stride, into planes, so that neighbouring outputs
//! read neighbouring pixels whatever the stride. Channels are taken [`LANES`] at a time, and as many output rows as keep their
//! pair rows in the second-level cache.

use std::{cell::Cell, ops::Range};

use super::{Filters, Images, Window};
use crate::{
    Result,
    gemm::{Rows, Strip, Sums, Target, Work, worth},
    kernels::depthwise::{DepthwiseKernel, LANES, Pairs, pair},
    threads,
};

/// Pair rows of a strip: more rows share more pairs, and the second-level cache is fast enough. On Zen 3, 112x112x32 takes
/// 1.32 of its time with strips of one row, 1.03 with four, which fit the first-level cache.
const STRIP_BYTES: usize = 64 << 10;

/// Sums that are turned into results together, if more than a row's: half of a 32 KiB first-level cache.
const SUMS_BYTES: usize = 16 << 10;

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
                        packed.push(std::array::from_fn(|i| {
                            pair(of(first + i, 2 * q), of(first + i, 2 * q + 1))
                        }));
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
                let pair = self.phases[0][place][c % LANES];
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

/// How the pixels of a pair row are sorted.
struct Planes {
    columns: Window,
    count: usize,
    /// Pixels of each.
    length: usize,
    /// Whether several taps read one plane.
    shared: bool,
}

impl Planes {
    /// For output rows of `places`.
    fn new(columns: Window, places: usize) -> Self {
        let Window {
            size, stride, dilation, ..
        } = columns;
        // Taps that are this far apart are a multiple of the stride apart.
        let period = stride / gcd(stride, dilation);
        let (count, length) = (period.min(size), places + (size - 1) * dilation / stride);
        // Taps too far apart to meet the same pixels get a plane each.
        let shared = count * length <= size * places;
        Self {
            columns,
            count: if shared { count } else { size },
            length: if shared { length } else { places },
            shared,
        }
    }

    /// Pixels of a pair row.
    fn row(&self) -> usize {
        self.count * self.length
    }

    /// The column, counted from the padding's edge, of the first pixel of a plane.
    fn begin(&self, plane: usize) -> usize {
        let column = plane * self.columns.dilation;
        if self.shared {
            column % self.columns.stride
        } else {
            column
        }
    }

    /// Where in a pair row the first output finds a tap.
    fn tap(&self, tap: usize) -> usize {
        let places = if self.shared {
            tap * self.columns.dilation / self.columns.stride
        } else {
            0
        };
        tap % self.count * self.length + places
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What a call needs beside its operands; kept by each thread for the next one.
#[derive(Default)]
struct Workspace {
    /// `[pair rows][planes][pixels]`
    pairs: Vec<i32>,
    /// Of some output rows.
    sums: Vec<i32>,
    /// Where in `pairs` each tap of the first output begins.
    taps: Vec<usize>,
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

    /// Pair rows that `rows` output rows meet.
    fn pair_rows(&self, rows: usize) -> usize {
        let [window, _] = self.windows;
        ((rows - 1) * window.stride + window.size).div_ceil(2)
    }

    /// Output rows that are computed from the same pair rows: one where taps are not neighbours, for then their pairs
    /// serve no other row.
    fn strip_rows(&self) -> usize {
        let [rows, _] = self.windows;
        let kept = STRIP_BYTES / (self.planes.row() * size_of::<Pairs>());
        let taken = (2 * kept).saturating_sub(rows.size) / rows.stride + 1;
        if rows.dilation == 1 {
            taken.min(self.places[0])
        } else {
            1
        }
    }

    /// Computes a piece of the output.
    fn piece(&self, piece: &Piece, target: &mut Target<'_>) {
        let mut space = WORKSPACE.take();
        let [window, columns] = self.windows;
        let (kernel, width, stride) = (self.weights.kernel, self.places[1], self.planes.row());
        space.taps.clear();
        for q in 0..pair_rows(window.size)[1] {
            let taps = (0..columns.size).map(|tap| q * stride + self.planes.tap(tap));
            space.taps.extend(taps);
        }
        let pairs = aligned(&mut space.pairs, self.pair_rows(piece.rows.len()) * stride);
        let together = (SUMS_BYTES / size_of::<Pairs>() / width).clamp(1, piece.rows.len());
        let sums = aligned(&mut space.sums, together * width);
        for (block, first) in (0..self.weights.channels).step_by(LANES).enumerate() {
            for (q, pairs) in pairs.chunks_mut(stride).enumerate() {
                self.interleave(piece, q, first, pairs);
            }
            for top in (0..piece.rows.len()).step_by(together) {
                let rows = top..piece.rows.len().min(top + together);
                for (row, sums) in rows.clone().zip(sums.chunks_mut(width)) {
                    let (phase, skip) = (row * window.stride % 2, row * window.stride / 2 * stride);
                    let count = pair_rows(window.size)[phase] * columns.size;
                    let weights = &self.weights.phases[phase][block * count..][..count];
                    kernel.multiply(&pairs[skip..], &space.taps[..count], weights, sums);
                }
                kernel.finish(Strip {
                    sums: Sums {
                        data: sums.as_flattened(),
                        width: LANES,
                        rows: rows.start * width..rows.end * width,
                        columns: first..self.weights.channels.min(first + LANES),
                        origin: 0,
                        a_sums: &[],
                        correction: None,
                    },
                    target,
                });
            }
        }
        WORKSPACE.set(space);
    }

    /// Makes pair row `q` of a piece, for the channels from `first` on.
    fn interleave(&self, piece: &Piece, q: usize, first: usize, out: &mut [Pairs]) {
        let [_, height, width, channels] = self.images.shape();
        let [rows, columns] = self.windows;
        // Counted from the top of the padding.
        let line = |i: usize| {
            let y = piece.rows.start * rows.stride + i * rows.dilation;
            y.checked_sub(rows.pads[0])
                .filter(|&y| y < height)
                .map(|y| self.images.pixel(piece.image, y, 0) + first)
        };
        let lines = [line(2 * q), line(2 * q + 1)];
        for (plane, out) in out.chunks_mut(self.planes.length).enumerate() {
            // Pixel `i` is column `begin + i * stride`, the first `pads[0]` being outside.
            let begin = self.planes.begin(plane);
            let pixel = |column: usize| {
                (column + columns.pads[0])
                    .saturating_sub(begin)
                    .div_ceil(columns.stride)
            };
            let end = pixel(width).min(out.len());
            let start = pixel(0).min(end);
            out[..start].fill([0; LANES]);
            out[end..].fill([0; LANES]);
            if start < end {
                let column = begin + start * columns.stride - columns.pads[0];
                let lines = lines.map(|line| line.map(|line| self.images.data().after(line + column * channels)));
                self.weights.kernel.interleave(
                    lines,
                    columns.stride * channels,
                    self.images.zero_point(),
                    &mut out[start..end],
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
        let rows = self
            .strip_rows()
            .min(self.images.shape()[0].saturating_mul(height).div_ceil(strips));
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
