//! The pixels under a window, as rows of a matrix.

use std::ops::Range;

use super::{Images, Window};
use crate::{
    QuantType,
    arrays::{Bytes, Integer, Matrix},
    gemm::{Gathered, Source},
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
    fn copy<T: Integer>(&self, image: &[T], group: usize, rows: Range<usize>, out: &mut [T]) {
        let [height, width] = self.places;
        let mut at = [
            rows.start / (height * width),
            rows.start / width % height,
            rows.start % width,
        ];
        for out in out.chunks_mut(self.taps()) {
            self.copy_one(image, group, at, out);
            at[2] += 1;
            if at[2] == width {
                at = [at[0], at[1] + 1, 0];
            }
            if at[1] == height {
                at = [at[0] + 1, 0, 0];
            }
        }
    }

    fn copy_one<T: Integer>(&self, image: &[T], group: usize, [n, y, x]: [usize; 3], out: &mut [T]) {
        let [_, height, width, all] = self.images.shape();
        let ([rows, columns], channels) = (self.windows, self.channels);
        let outside = T::narrow(self.images.zero_point());
        let (inside, across) = (rows.inside(y, height), columns.inside(x, width));
        for (tap, out) in out.chunks_mut(columns.size * channels).enumerate() {
            if !inside.contains(&tap) || across.is_empty() {
                out.fill(outside);
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

    fn gather<'s>(&'s self, group: usize, rows: Range<usize>, space: &'s mut Gathered) -> (Matrix<'s>, Range<usize>) {
        let (count, length) = (rows.len(), rows.len() * self.taps());
        let bytes = match self.images.data() {
            Bytes::U8(image) => {
                space.u8.resize(length, 0);
                self.copy(image, group, rows, &mut space.u8);
                Bytes::U8(&space.u8)
            }
            Bytes::I8(image) => {
                space.i8.resize(length, 0);
                self.copy(image, group, rows, &mut space.i8);
                Bytes::I8(&space.i8)
            }
        };
        (Matrix::packed(bytes, count, self.taps()), 0..count)
    }
}
