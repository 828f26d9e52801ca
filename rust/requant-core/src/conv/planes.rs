//! How a depthwise convolution sorts the pixels of a row, so that neighbouring outputs read neighbouring pixels.

use std::ops::Range;

use super::Window;

/// How the pixels of a pair row are sorted.
pub(super) struct Planes {
    columns: Window,
    pub(super) count: usize,
    /// Pixels of each.
    pub(super) length: usize,
    /// Whether several taps read one plane.
    shared: bool,
}

impl Planes {
    /// For output rows of `places`.
    pub(super) fn new(columns: Window, places: usize) -> Self {
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
    pub(super) fn row(&self) -> usize {
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

    /// Which pixels of a plane lie in `0..width`: pixel `i` is column `begin + i * stride`, the first `pads[0]` being
    /// outside.
    pub(super) fn inside(&self, plane: usize, width: usize) -> Inside {
        let Window { stride, pads, .. } = self.columns;
        let begin = self.begin(plane);
        let pixel = |column: usize| (column + pads[0]).saturating_sub(begin).div_ceil(stride);
        let end = pixel(width).min(self.length);
        let start = pixel(0).min(end);
        Inside {
            pixels: start..end,
            column: (begin + start * stride).saturating_sub(pads[0]),
        }
    }

    /// Where in a pair row the first output finds a tap.
    pub(super) fn tap(&self, tap: usize) -> usize {
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

/// The pixels of a plane that are inside of the image.
#[derive(Clone)]
pub(super) struct Inside {
    pub(super) pixels: Range<usize>,
    /// The column of the image that is the first of them.
    pub(super) column: usize,
}
