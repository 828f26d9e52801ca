//! Made-up images and filters.

use requant_core::{QuantType, arrays::Bytes};

use crate::naive::Tensor;

/// 8-bit integers in the order of their shape.
#[derive(Debug, Clone)]
pub(crate) struct Bits {
    pub(crate) bits: Vec<u8>,
    signed: Vec<i8>,
    pub(crate) dtype: QuantType,
}

impl Bits {
    pub(crate) fn new(dtype: QuantType, length: usize, bits: impl Fn(usize) -> u8) -> Self {
        let bits: Vec<u8> = (0..length).map(bits).collect();
        let signed = bits.iter().map(|b| b.cast_signed()).collect();
        Self { bits, signed, dtype }
    }

    pub(crate) fn random(dtype: QuantType, length: usize, seed: u64) -> Self {
        Self::new(dtype, length, |i| (mix(seed ^ (i as u64) << 20) >> 24) as u8)
    }

    pub(crate) fn bytes(&self) -> Bytes<'_> {
        if self.dtype.signed() {
            Bytes::I8(&self.signed)
        } else {
            Bytes::U8(&self.bits)
        }
    }

    fn value(&self, i: usize) -> i64 {
        if self.dtype.signed() {
            i64::from(self.signed[i])
        } else {
            i64::from(self.bits[i])
        }
    }

    /// As they lie.
    pub(crate) fn tensor(&self, shape: [usize; 4]) -> Tensor {
        let values = (0..self.bits.len()).map(|i| self.value(i)).collect();
        Tensor { shape, values }
    }

    /// Channels last, brought into the order `[images, channels, height, width]`.
    pub(crate) fn images(&self, [n, h, w, c]: [usize; 4]) -> Tensor {
        let mut values = Vec::new();
        for image in 0..n {
            for channel in 0..c {
                for place in 0..h * w {
                    values.push(self.value((image * h * w + place) * c + channel));
                }
            }
        }
        let shape = [n, c, h, w];
        Tensor { shape, values }
    }
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

/// The finalizer of splitmix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

pub(crate) fn zero_points(dtype: QuantType, count: usize, seed: u64) -> Vec<i32> {
    let span = dtype.max() - dtype.min() + 1;
    (0..count)
        .map(|i| dtype.min() + (mix(seed + i as u64) % span as u64) as i32)
        .collect()
}
