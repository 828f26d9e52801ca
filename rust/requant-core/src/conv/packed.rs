//! Filters, in the order in which kernels read them.

use std::fmt;

use super::{Window, depthwise};
use crate::{
    Error, QuantType, Result,
    arrays::{Bytes, Matrix},
    error::check_length,
    gemm::PackedWeights,
    kernels::{
        depthwise::{self as depthwise_kernels, DepthwiseKernel},
        gemm::{self as gemm_kernels, GemmKernel},
    },
    requantize::{check_one_or, check_within},
};

/// Filters as ONNX stores them.
#[derive(Debug, Clone, Copy)]
pub struct Filters<'a> {
    /// int8 or uint8.
    pub data: Bytes<'a>,
    /// `[filters, channels / groups, height, width]`
    pub shape: [usize; 4],
    /// `[1]` or `[filters]`, within the type of `data`.
    pub zero_point: &'a [i32],
}

/// The attributes of a convolution, as ONNX names them; `[rows, columns]` where there are two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// From one place of the window to the next.
    pub strides: [usize; 2],
    /// From one tap to the next.
    pub dilations: [usize; 2],
    /// `[top, left, bottom, right]`
    pub pads: [usize; 4],
    /// Parts that channels and filters are cut into, the filters of a part seeing its channels only.
    pub groups: usize,
}

impl Default for Geometry {
    /// Every place of the window inside the image, all channels.
    fn default() -> Self {
        Self {
            strides: [1, 1],
            dilations: [1, 1],
            pads: [0; 4],
            groups: 1,
        }
    }
}

/// A convolution packed for any number of images.
///
/// It belongs to kernels of this machine; to store it, store [`Self::unpack`] and pack again.
pub struct PackedConv {
    weights: Weights,
    shape: [usize; 4],
    geometry: Geometry,
    windows: [Window; 2],
    dtype: QuantType,
    zero_point: Vec<i32>,
}

pub(super) enum Weights {
    /// `[taps, filters / groups]`, a matrix for each group; taps in the order height, width, channel.
    Panels(Vec<PackedWeights>),
    /// A filter for each channel.
    Depthwise(depthwise::Weights),
}

impl PackedConv {
    /// Packs filters for the kernels in use.
    ///
    /// # Errors
    /// Lengths that do not fit the shape, sizes, strides or dilations of 0, groups that do not divide the filters, a
    /// zero point outside the type.
    pub fn new(filters: Filters<'_>, geometry: Geometry) -> Result<Self> {
        Self::with_kernels(gemm_kernels::current(), depthwise_kernels::current(), filters, geometry)
    }

    /// Packs filters for some of [`gemm_kernels::available`] and [`depthwise_kernels::available`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_kernels(
        gemm: &'static dyn GemmKernel,
        depthwise: &'static dyn DepthwiseKernel,
        filters: Filters<'_>,
        geometry: Geometry,
    ) -> Result<Self> {
        let Filters {
            data,
            shape,
            zero_point,
        } = filters;
        let [count, channels, height, width] = shape;
        let (dtype, Geometry { groups, .. }) = (data.dtype(), geometry);
        let expected = shape.iter().fold(1usize, |size, &n| size.saturating_mul(n));
        check_length("filters", expected, data.len())?;
        if groups == 0 || !count.is_multiple_of(groups) {
            return Err(Error::Shape {
                what: "groups",
                expected: format!("a divisor of the {count} filters"),
                got: vec![groups],
            });
        }
        let windows = Window::both([height, width], geometry.strides, geometry.dilations, geometry.pads)?;
        check_one_or("zero_point of the filters", zero_point.len(), count)?;
        check_within(zero_point, (dtype.min(), dtype.max()))?;
        let weights = if channels == 1 && groups == count {
            Weights::Depthwise(depthwise::Weights::new(depthwise, filters))
        } else {
            let packed = (0..groups).map(|group| panels(gemm, filters, group * count / groups, count / groups));
            Weights::Panels(packed.collect::<Result<_>>()?)
        };
        Ok(Self {
            weights,
            shape,
            geometry,
            windows,
            dtype,
            zero_point: zero_point.to_vec(),
        })
    }

    /// The shape of the output for images of a shape, both `[images, height, width, channels]`.
    ///
    /// # Errors
    /// Other channels than the filters have.
    pub fn output_shape(&self, images: [usize; 4]) -> Result<[usize; 4]> {
        let [count, height, width, channels] = images;
        let expected = self.shape[1].saturating_mul(self.geometry.groups);
        if channels != expected {
            return Err(Error::Shape {
                what: "shape of the images",
                expected: format!("{expected} channels, the last axis"),
                got: images.to_vec(),
            });
        }
        let [rows, columns] = self.windows;
        Ok([count, rows.places(height), columns.places(width), self.shape[0]])
    }

    /// Shape of the filters, `[filters, channels / groups, height, width]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// As it was given.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// int8 or uint8.
    pub fn dtype(&self) -> QuantType {
        self.dtype
    }

    /// As it was given.
    pub fn zero_point(&self) -> &[i32] {
        &self.zero_point
    }

    /// The instruction set that it is packed for.
    pub fn kernel(&self) -> &'static str {
        match &self.weights {
            Weights::Panels(b) => b.first().map_or("generic", |b| b.kernel().name()),
            Weights::Depthwise(weights) => weights.kernel().name(),
        }
    }

    /// The filters that were packed, in ONNX's order, as bits: those of int8 or uint8 as [`Self::dtype`] says.
    pub fn unpack(&self) -> Vec<u8> {
        let [count, channels, height, width] = self.shape;
        let mut out = vec![0; count * channels * height * width];
        let each = count / self.geometry.groups;
        match &self.weights {
            Weights::Depthwise(weights) => weights.unpack([height, width], &self.zero_point, &mut out),
            Weights::Panels(packed) => {
                for (group, b) in packed.iter().enumerate() {
                    let bits = b.unpack();
                    for filter in 0..each {
                        for tap in 0..channels * height * width {
                            let place = onnx_place(self.shape, group * each + filter, tap);
                            out[place] = bits[tap * each + filter];
                        }
                    }
                }
            }
        }
        out
    }

    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(super) fn windows(&self) -> [Window; 2] {
        self.windows
    }

    /// Products in a sum.
    pub(super) fn taps(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Whether each output sees one pixel, the next one the next.
    pub(super) fn is_pointwise(&self) -> bool {
        self.windows
            .iter()
            .all(|window| (window.size, window.stride, window.pads) == (1, 1, [0, 0]))
    }
}

impl fmt::Debug for PackedConv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dtype, shape, .. } = self;
        write!(f, "PackedConv({dtype} {shape:?} for {})", self.kernel())
    }
}

/// Where ONNX has the weight that tap `tap` of a filter, counted as rows of A are, is multiplied by.
fn onnx_place([_, channels, height, width]: [usize; 4], filter: usize, tap: usize) -> usize {
    let (place, channel) = (tap / channels, tap % channels);
    (filter * channels + channel) * height * width + place
}

/// `count` filters from `first` on as a matrix `[taps, count]`.
fn panels(kernel: &'static dyn GemmKernel, filters: Filters<'_>, first: usize, count: usize) -> Result<PackedWeights> {
    let Filters {
        data,
        shape,
        zero_point,
    } = filters;
    let taps = shape[1..].iter().product();
    let zero_point = match zero_point {
        [_] => zero_point,
        each => &each[first..first + count],
    };
    let place = |i: usize| onnx_place(shape, first + i % count, i / count);
    let pack = |bytes| PackedWeights::with_kernel(kernel, Matrix::new(bytes, taps, count)?, zero_point);
    match data {
        Bytes::U8(x) => pack(Bytes::U8(&(0..taps * count).map(|i| x[place(i)]).collect::<Vec<_>>())),
        Bytes::I8(x) => pack(Bytes::I8(&(0..taps * count).map(|i| x[place(i)]).collect::<Vec<_>>())),
    }
}
