//! Images, and how windows slide over them.

use std::ops::Range;

use crate::{Error, QuantType, Result, arrays::Bytes, error::check_length, requantize::check_within};

/// Borrowed 8-bit images, channels last: `[images, height, width, channels]`. One of height 1 is a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Images<'a> {
    data: Bytes<'a>,
    shape: [usize; 4],
    zero_point: i32,
}

impl<'a> Images<'a> {
    /// Images whose zero point, which stands for what is outside of them too, lies within the type of `data`.
    ///
    /// # Errors
    /// `data` is not as long as `shape` says, or the zero point is outside its type.
    pub fn new(data: Bytes<'a>, shape: [usize; 4], zero_point: i32) -> Result<Self> {
        let expected = shape.iter().fold(1usize, |size, &n| size.saturating_mul(n));
        check_length("images", expected, data.len())?;
        let dtype = data.dtype();
        check_within(&[zero_point], (dtype.min(), dtype.max()))?;
        Ok(Self {
            data,
            shape,
            zero_point,
        })
    }

    /// `[images, height, width, channels]`
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// int8 or uint8.
    pub fn dtype(&self) -> QuantType {
        self.data.dtype()
    }

    /// The integer that stands for 0.0.
    pub fn zero_point(&self) -> i32 {
        self.zero_point
    }

    pub(crate) fn data(&self) -> Bytes<'a> {
        self.data
    }

    /// Where a pixel begins.
    #[inline(always)]
    pub(crate) fn pixel(&self, image: usize, y: usize, x: usize) -> usize {
        let [_, height, width, channels] = self.shape;
        ((image * height + y) * width + x) * channels
    }
}

/// How a window slides along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Taps.
    pub size: usize,
    /// From one place to the next.
    pub stride: usize,
    /// From one tap to the next.
    pub dilation: usize,
    /// What is added at the beginning and at the end.
    pub pads: [usize; 2],
}

impl Window {
    /// From its first tap to its last, both included.
    pub(crate) fn reach(&self) -> usize {
        (self.size - 1).saturating_mul(self.dilation).saturating_add(1)
    }

    /// How many places it takes on an axis of `length`.
    pub fn places(&self, length: usize) -> usize {
        let padded = length.saturating_add(self.pads[0]).saturating_add(self.pads[1]);
        padded
            .checked_sub(self.reach())
            .map_or(0, |rest| rest / self.stride + 1)
    }

    /// Which taps of a place lie inside an axis of `length`.
    pub(crate) fn inside(&self, place: usize, length: usize) -> Range<usize> {
        let (start, before) = (place * self.stride, self.pads[0]);
        let first = before.saturating_sub(start).div_ceil(self.dilation);
        let end = (length + before).saturating_sub(start).div_ceil(self.dilation);
        first.min(self.size)..end.min(self.size)
    }

    /// Where a tap lies that is inside.
    #[inline(always)]
    pub(crate) fn at(&self, place: usize, tap: usize) -> usize {
        place * self.stride + tap * self.dilation - self.pads[0]
    }

    /// The windows of rows and columns, from the attributes of ONNX: `pads` is `[top, left, bottom, right]`.
    ///
    /// # Errors
    /// A size, stride or dilation of 0.
    pub fn both(kernel: [usize; 2], strides: [usize; 2], dilations: [usize; 2], pads: [usize; 4]) -> Result<[Self; 2]> {
        for (what, got) in [("kernel", kernel), ("strides", strides), ("dilations", dilations)] {
            if got.contains(&0) {
                let (expected, got) = ("at least 1 on each axis".to_owned(), got.to_vec());
                return Err(Error::Shape { what, expected, got });
            }
        }
        Ok([0, 1].map(|axis| Self {
            size: kernel[axis],
            stride: strides[axis],
            dilation: dilations[axis],
            pads: [pads[axis], pads[axis + 2]],
        }))
    }
}
