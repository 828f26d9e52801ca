//! Made-up 8-bit integers of either sign.

use requant_core::{QuantType, arrays::Bytes};

use crate::mix::mix;

/// Bytes, and the integers that they are.
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

    /// As the naive definitions take them.
    pub(crate) fn values(&self) -> Vec<i64> {
        if self.dtype.signed() {
            self.signed.iter().map(|&x| x.into()).collect()
        } else {
            self.bits.iter().map(|&x| x.into()).collect()
        }
    }
}

pub(crate) fn zero_points(dtype: QuantType, count: usize, seed: u64) -> Vec<i32> {
    let span = dtype.max() - dtype.min() + 1;
    (0..count)
        .map(|i| dtype.min() + (mix(seed + i as u64) % span as u64) as i32)
        .collect()
}
