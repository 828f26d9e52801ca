//! Convolution of 8-bit images, channels last, exact in i32, and what is made of the sums on the way out.
//!
//! ```text
//! sum[n][y][x][m] = sum over i, j, c of (image[n][y * s - p + i * d][x * s' - p' + j * d'][c] - zx)
//!                                     * (filter[m][c][i][j] - zw[m])                          ONNX ConvInteger, QLinearConv
//! ```
//!
//! Padding counts as the zero point, so it adds nothing. Filters are packed once into [`PackedConv`], for one of two
//! ways:
//!
//! * In general a convolution is a product of matrices, [`crate::gemm`]'s: the pixels under the window are a row of A,
//!   put together a few rows at a time in memory that stays in the first-level cache. Where the window is a single
//!   pixel and moves by one, the image is that matrix already.
//! * Where each channel has one filter of its own, such rows would be short and never shared, so there are kernels of
//!   their own: `depthwise.rs`.
//!
//! A call allocates nothing after the first one of a thread but, on several threads, the list of pieces.

mod depthwise;
mod geometry;
mod packed;
mod patches;
mod planes;

pub use geometry::{Images, Window};
pub use packed::{Filters, Geometry, PackedConv};

use std::slice;

use packed::Weights;
use patches::Patches;

use crate::{
    Result,
    arrays::Matrix,
    error::check_length,
    gemm::{Output, Product, Shape, magnitude, write},
};

/// Convolves `images [N, H, W, C]` with packed filters into `output [N, H', W', M]`.
///
/// The scales of [`Output::F32`] and of a requantizer are those of a product with the images on the left: `a` is one
/// value, `b` and the bias are one or `[M]`. `threads` is 0 for as many as are worth it, up to all cores; any number
/// gives the same bits.
///
/// ```
/// use requant_core::{conv::{Filters, Geometry, Images, PackedConv, conv2d}, arrays::Bytes, gemm::Output};
/// let filters = Filters { data: Bytes::I8(&[1, 2, 3]), shape: [1, 1, 1, 3], zero_point: &[0] };
/// let conv = PackedConv::new(filters, Geometry { pads: [0, 1, 0, 1], ..Geometry::default() })?;
/// let images = Images::new(Bytes::U8(&[11, 12, 13, 14]), [1, 1, 4, 1], 10)?;
/// assert_eq!(conv.output_shape(images.shape())?, [1, 1, 4, 1]);
/// let mut sums = [0; 4];
/// conv2d(images, &conv, Output::I32(&mut sums), 1)?;
/// assert_eq!(sums, [8, 14, 20, 11]); // [0 1 2], [1 2 3], [2 3 4], [3 4 0] times [1 2 3]
/// # Ok::<(), requant_core::Error>(())
/// ```
///
/// # Errors
/// Other channels than the filters have, an output of another length, scales that are not finite and positive, a
/// requantizer for another type, or so many taps that a sum with its bias might leave i32.
pub fn conv2d(images: Images<'_>, conv: &PackedConv, output: Output<'_>, threads: usize) -> Result<()> {
    let [count, height, width, filters] = conv.output_shape(images.shape())?;
    if let Output::F32(_, scales) = &output {
        check_length("scale of the images", 1, scales.a.len())?;
    }
    let zero_point = [images.zero_point()];
    let sums = Shape {
        rows: count.saturating_mul(height).saturating_mul(width),
        columns: filters,
        k: conv.taps(),
        factors: magnitude(images.dtype(), &zero_point) * magnitude(conv.dtype(), conv.zero_point()),
    };
    let places = [height, width];
    match conv.weights() {
        Weights::Depthwise(weights) => {
            let work = depthwise::Depthwise::new(images, conv.windows(), places, weights, threads);
            write(sums, output, &work)
        }
        Weights::Panels(b) => {
            let [_, _, _, channels] = images.shape();
            let (a_zero_point, b) = (&zero_point[..], &b[..]);
            if let ([b], true) = (b, conv.is_pointwise()) {
                let a = Matrix::new(images.data(), sums.rows, channels)?;
                let b = slice::from_ref(b);
                return write(
                    sums,
                    output,
                    &Product {
                        a,
                        a_zero_point,
                        b,
                        threads,
                    },
                );
            }
            let a = Patches::new(images, conv.windows(), places, channels / b.len().max(1));
            write(
                sums,
                output,
                &Product {
                    a,
                    a_zero_point,
                    b,
                    threads,
                },
            )
        }
    }
}
