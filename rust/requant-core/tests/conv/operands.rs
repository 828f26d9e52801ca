//! Made-up images and filters.

use crate::{bits::Bits, naive::Tensor};

/// 8-bit integers as they lie.
pub(crate) fn tensor_of(bits: &Bits, shape: [usize; 4]) -> Tensor {
    Tensor {
        shape,
        values: bits.values(),
    }
}

/// The same of images with channels last, brought into the order `[images, channels, height, width]`.
pub(crate) fn images_of(bits: &Bits, [n, h, w, c]: [usize; 4]) -> Tensor {
    let own = bits.values();
    let mut values = Vec::new();
    for image in 0..n {
        for channel in 0..c {
            for place in 0..h * w {
                values.push(own[(image * h * w + place) * c + channel]);
            }
        }
    }
    let shape = [n, c, h, w];
    Tensor { shape, values }
}

/// The order in which `requant` writes: channels last.
pub(crate) fn channels_last(t: &Tensor) -> Vec<i64> {
    let [n, c, h, w] = t.shape;
    let mut values = Vec::new();
    for image in 0..n {
        for y in 0..h {
            for x in 0..w {
                values.extend((0..c).map(|channel| t.at([image, channel, y, x])));
            }
        }
    }
    values
}
