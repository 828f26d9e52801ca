//! The pixels under a window, as rows of a matrix.

use std::ops::Range;

use super::{Images, Window};
use crate::{
    QuantType,
    arrays::{Bytes, Integer, Matrix},
    gemm::{Gathered, Source},
    kernels::gemm::{GemmKernel, Pieces},
};

/// A row for each place of the window, in the order of the output; taps in the order height, width, channel. Group `g`
/// has the channels from `g * channels` on.
pub(super) struct Patches<'a> {
    images: Images<'a>,
    windows: [Window; 2],
    /// Rows and columns of the output.
    places: [usize; 2],
    /// Channels of a group.
    channels: usize,
}

impl<'a> Patches<'a> {
    pub(super) fn new(images: Images<'a>, windows: [Window; 2], places: [usize; 2], channels: usize) -> Self {
        Self {
            images,
            windows,
            places,
            channels,
        }
    }

    fn taps(&self) -> usize {
        let [rows, columns] = self.windows;
        rows.size * columns.size * self.channels
    }

    /// Writes the rows one after another.
    fn copy<T: Integer>(&self, kernel: &dyn GemmKernel, image: &[T], group: usize, rows: Range<usize>, out: &mut [T]) {
        let ([height, width], mut out, mut row) = (self.places, out, rows.start);
        while row < rows.end {
            let (line, x) = (row / width, row % width);
            let count = (width - x).min(rows.end - row);
            let (part, rest) = out.split_at_mut(count * self.taps());
            self.copy_line(kernel, image, group, [line / height, line % height], x..x + count, part);
            (out, row) = (rest, row + count);
        }
    }

    /// Writes the rows of neighbouring places, all on one line.
    fn copy_line<T: Integer>(
        &self,
        kernel: &dyn GemmKernel,
        image: &[T],
        group: usize,
        [n, y]: [usize; 2],
        places: Range<usize>,
        out: &mut [T],
    ) {
        let [_, height, _, all] = self.images.shape();
        let ([rows, columns], channels, taps) = (self.windows, self.channels, self.taps());
        let length = columns.size * channels;
        let whole = self.whole();
        let whole = whole.start.max(places.start)..whole.end.min(places.end);
        for tap in 0..rows.size {
            if whole.is_empty() || !rows.inside(y, height).contains(&tap) {
                continue;
            }
            let first = self.images.pixel(n, rows.at(y, tap), columns.at(whole.start, 0)) + group * channels;
            let to = (whole.start - places.start) * taps + tap * length;
            let end = to + (whole.len() - 1) * taps + length;
            kernel.copy(Pieces {
                from: T::borrowed(&image[first..]),
                from_step: columns.stride * all,
                to: T::borrowed_mut(&mut out[to..end]),
                to_step: taps,
                length,
            });
        }
        for (x, out) in places.zip(out.chunks_exact_mut(taps)) {
            self.copy_one(image, group, [n, y, x], whole.contains(&x), out);
        }
    }

    /// Places whose taps all lie inside and follow each other in the image: all but those at the edges, usually.
    fn whole(&self) -> Range<usize> {
        let ([_, _, width, all], [_, columns]) = (self.images.shape(), self.windows);
        if columns.dilation > 1 || self.channels < all {
            return 0..0;
        }
        let end = (width + columns.pads[0] + 1).saturating_sub(columns.size);
        columns.pads[0].div_ceil(columns.stride)..end.div_ceil(columns.stride)
    }

    /// Writes a row; of a whole one what lies outside.
    fn copy_one<T: Integer>(&self, image: &[T], group: usize, [n, y, x]: [usize; 3], whole: bool, out: &mut [T]) {
        let [_, height, width, all] = self.images.shape();
        let ([rows, columns], channels) = (self.windows, self.channels);
        let outside = T::narrow(self.images.zero_point());
        let inside = rows.inside(y, height);
        if whole && inside.len() == rows.size {
            return;
        }
        let across = columns.inside(x, width);
        for (tap, out) in out.chunks_mut(columns.size * channels).enumerate() {
            if !inside.contains(&tap) || across.is_empty() {
                out.fill(outside);
                continue;
            }
            if whole {
                continue;
            }
            let (left, rest) = out.split_at_mut(across.start * channels);
            let (middle, right) = rest.split_at_mut(across.len() * channels);
            left.fill(outside);
            right.fill(outside);
            let first = self.images.pixel(n, rows.at(y, tap), columns.at(x, across.start)) + group * channels;
            if columns.dilation == 1 && channels == all {
                middle.copy_from_slice(&image[first..first + middle.len()]);
            } else {
                let pixels = image[first..].chunks(columns.dilation * all);
                for (out, pixel) in middle.chunks_mut(channels).zip(pixels) {
                    out.copy_from_slice(&pixel[..channels]);
                }
            }
        }
    }
}

impl Source for Patches<'_> {
    fn rows(&self) -> usize {
        let [count, ..] = self.images.shape();
        count * self.places[0] * self.places[1]
    }

    fn dtype(&self) -> QuantType {
        self.images.dtype()
    }

    fn gather<'s>(
        &'s self,
        kernel: &dyn GemmKernel,
        group: usize,
        rows: Range<usize>,
        space: &'s mut Gathered,
    ) -> (Matrix<'s>, Range<usize>) {
        let (count, length) = (rows.len(), rows.len() * self.taps());
        let bytes = match self.images.data() {
            Bytes::U8(image) => {
                space.u8.resize(length, 0);
                self.copy(kernel, image, group, rows, &mut space.u8);
                Bytes::U8(&space.u8)
            }
            Bytes::I8(image) => {
                space.i8.resize(length, 0);
                self.copy(kernel, image, group, rows, &mut space.i8);
                Bytes::I8(&space.i8)
            }
        };
        (Matrix::packed(bytes, count, self.taps()), 0..count)
    }
}
