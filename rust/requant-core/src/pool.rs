//! Pooling of 8-bit images, channels last, to images of the same type.
//!
//! | | result |
//! |---|---|
//! | [`max_pool`] | the largest integer under the window |
//! | [`average_pool`] | of reals, added in f32 row by row, divided by their number: onnxruntime's QLinearAveragePool |
//! | [`global_average_pool`] | of integers, requantized: onnxruntime's QLinearGlobalAveragePool |

use crate::{
    Error, QuantParams, Result,
    arrays::Integer,
    arrays::{Bytes, BytesMut},
    conv::{Images, Window},
    gemm::check_k,
    requantize::{Apply, Columns, check_scales, check_within, round_half_even},
};

/// Channels that are pooled side by side.
const LANES: usize = 32;

/// The largest integer under each place of the windows, `[rows, columns]`; padding is never it.
///
/// # Errors
/// Padding that a whole window fits in, an output of another type or length.
pub fn max_pool(images: Images<'_>, windows: [Window; 2], out: BytesMut<'_>) -> Result<()> {
    check(images, windows, &out)?;
    match (images.data(), out) {
        (Bytes::U8(x), BytesMut::U8(out)) => max(images, x, windows, out),
        (Bytes::I8(x), BytesMut::I8(out)) => max(images, x, windows, out),
        _ => {}
    }
    Ok(())
}

/// What an average is taken of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Average {
    /// Scale of the images.
    pub x_scale: f32,
    /// Scale and zero point of the output.
    pub y: QuantParams,
    /// Whether padding counts as zeros, or not at all.
    pub include_pad: bool,
}

impl Average {
    fn check(&self, images: Images<'_>) -> Result<()> {
        let dtype = images.dtype();
        check_scales(&[self.x_scale, self.y.scale])?;
        check_within(&[self.y.zero_point], (dtype.min(), dtype.max()))
    }
}

/// The average under each place of the windows: `clamp(round_half_even(mean / y.scale + y.zero_point))`, the zero point
/// added before rounding.
///
/// # Errors
/// Scales that are not finite and positive, a zero point outside the type, padding that a whole window fits in, an
/// output of another type or length.
pub fn average_pool(images: Images<'_>, windows: [Window; 2], average: Average, out: BytesMut<'_>) -> Result<()> {
    check(images, windows, &out)?;
    average.check(images)?;
    match (images.data(), out) {
        (Bytes::U8(x), BytesMut::U8(out)) => mean(images, x, windows, average, out),
        (Bytes::I8(x), BytesMut::I8(out)) => mean(images, x, windows, average, out),
        _ => {}
    }
    Ok(())
}

/// The average of each channel, `[images, channels]`: `clamp(round_half_even(sum * m) + y.zero_point)` with
/// `m = x_scale / (y.scale * pixels)`.
///
/// # Errors
/// Scales that are not finite and positive, a zero point outside the type, an output of another type or length, or so
/// many pixels that a sum might leave i32.
pub fn global_average_pool(images: Images<'_>, average: Average, out: BytesMut<'_>) -> Result<()> {
    let [count, height, width, channels] = images.shape();
    out.check(images.dtype(), count * channels)?;
    average.check(images)?;
    let pixels = height.saturating_mul(width);
    check_k(pixels, 255, 0)?;
    let m = average.x_scale / (average.y.scale * pixels as f32);
    if !m.is_finite() {
        let value = f64::from(m);
        return Err(Error::Multiplier { value, index: 0 });
    }
    match (images.data(), out) {
        (Bytes::U8(x), BytesMut::U8(out)) => global(images, x, average, m, out),
        (Bytes::I8(x), BytesMut::I8(out)) => global(images, x, average, m, out),
        _ => {}
    }
    Ok(())
}

/// The shape of what windows give, `[images, height, width, channels]`.
pub fn output_shape(images: [usize; 4], windows: [Window; 2]) -> [usize; 4] {
    let [count, height, width, channels] = images;
    [count, windows[0].places(height), windows[1].places(width), channels]
}

fn check(images: Images<'_>, windows: [Window; 2], out: &BytesMut<'_>) -> Result<()> {
    for window in windows {
        if window.pads.iter().any(|&pad| pad >= window.reach()) {
            return Err(Error::Shape {
                what: "pads",
                expected: format!("less than the {} that the window reaches over", window.reach()),
                got: window.pads.to_vec(),
            });
        }
    }
    let length = output_shape(images.shape(), windows)
        .iter()
        .fold(1usize, |size, &n| size.saturating_mul(n));
    out.check(images.dtype(), length)
}

/// Calls `f` for each pixel of the output and [`LANES`] of its channels, with the pixels under the window: how many
/// places the window has there, padding included, and their values row by row.
#[inline(always)]
fn for_each<T: Copy>(
    images: Images<'_>,
    windows: [Window; 2],
    x: &[T],
    out: &mut [T],
    f: impl Fn(&mut [T], Taps<'_, T>),
) {
    let shape = images.shape();
    let [_, height, width, channels] = shape;
    let [_, rows, columns, _] = output_shape(shape, windows);
    for (i, out) in out.chunks_mut(channels.max(1)).enumerate() {
        let (n, oy, ox) = (i / (rows * columns), i / columns % rows, i % columns);
        for (block, out) in out.chunks_mut(LANES).enumerate() {
            f(
                out,
                Taps {
                    images,
                    windows,
                    x,
                    place: [n, oy, ox],
                    inside: [windows[0].inside(oy, height), windows[1].inside(ox, width)],
                    first: block * LANES,
                },
            );
        }
    }
}

/// The pixels under a window.
struct Taps<'a, T> {
    images: Images<'a>,
    windows: [Window; 2],
    x: &'a [T],
    place: [usize; 3],
    inside: [std::ops::Range<usize>; 2],
    first: usize,
}

impl<T> Taps<'_, T> {
    /// How many lie inside.
    fn count(&self) -> usize {
        self.inside.iter().map(ExactSizeIterator::len).product()
    }

    /// Their channels, from the first of this block on.
    #[inline(always)]
    fn for_each(&self, mut f: impl FnMut(&[T])) {
        let [n, oy, ox] = self.place;
        for i in self.inside[0].clone() {
            for j in self.inside[1].clone() {
                let pixel = self
                    .images
                    .pixel(n, self.windows[0].at(oy, i), self.windows[1].at(ox, j));
                f(&self.x[pixel + self.first..]);
            }
        }
    }
}

fn max<T: Integer + Ord>(images: Images<'_>, x: &[T], windows: [Window; 2], out: &mut [T]) {
    for_each(images, windows, x, out, |out, taps| {
        out.fill(T::narrow(T::TYPE.min()));
        taps.for_each(|pixel| {
            for (out, &v) in out.iter_mut().zip(pixel) {
                *out = v.max(*out);
            }
        });
    });
}

fn mean<T: Integer>(images: Images<'_>, x: &[T], windows: [Window; 2], average: Average, out: &mut [T]) {
    let zero_point = images.zero_point();
    let all = windows[0].size * windows[1].size;
    let (lo, hi) = (T::TYPE.min() as f32, T::TYPE.max() as f32);
    for_each(images, windows, x, out, |out, taps| {
        let mut sums = [0f32; LANES];
        taps.for_each(|pixel| {
            for (sum, &v) in sums.iter_mut().zip(pixel) {
                *sum += (v.widen() - zero_point) as f32 * average.x_scale;
            }
        });
        // Taps can all fall beside a small image: nothing is 0.
        let count = if average.include_pad { all } else { taps.count().max(1) } as f32;
        for (out, sum) in out.iter_mut().zip(sums) {
            let v = sum / count / average.y.scale + average.y.zero_point as f32;
            // Not f32::clamp, which asserts its bounds at each element.
            let v = if v < lo { lo } else { v };
            let v = if v > hi { hi } else { v };
            *out = T::narrow(round_half_even(v));
        }
    });
}

fn global<T: Integer>(images: Images<'_>, x: &[T], average: Average, m: f32, out: &mut [T]) {
    let [_, height, width, channels] = images.shape();
    let columns = Columns {
        multipliers: [m; LANES],
        bias: [0; LANES],
        zero_point: average.y.zero_point,
        limits: (T::TYPE.min(), T::TYPE.max()),
    };
    let pixels = height * width;
    for (n, out) in out.chunks_mut(channels.max(1)).enumerate() {
        for (block, out) in out.chunks_mut(LANES).enumerate() {
            let mut sums = [0i32; LANES];
            for pixel in 0..pixels {
                let first = (n * pixels + pixel) * channels + block * LANES;
                for (sum, &v) in sums.iter_mut().zip(&x[first..]) {
                    *sum += v.widen() - images.zero_point();
                }
            }
            for (out, integer) in out.iter_mut().zip(columns.apply(sums)) {
                *out = T::narrow(integer);
            }
        }
    }
}
