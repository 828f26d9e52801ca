//! Made-up operands.

use requant_core::{
    QuantType,
    arrays::{Bytes, Matrix},
};

use crate::naive::Ints;

/// Bytes and what they mean.
#[derive(Debug, Clone)]
pub(crate) struct Bits {
    pub(crate) bits: Vec<u8>,
    signed: Vec<i8>,
    pub(crate) ints: Ints,
    pub(crate) dtype: QuantType,
}

impl Bits {
    pub(crate) fn new(dtype: QuantType, rows: usize, columns: usize, bits: impl Fn(usize) -> u8) -> Self {
        let bits: Vec<u8> = (0..rows * columns).map(bits).collect();
        let signed: Vec<i8> = bits.iter().map(|b| b.cast_signed()).collect();
        let values = (0..bits.len()).map(|i| {
            if dtype.signed() {
                i64::from(signed[i])
            } else {
                i64::from(bits[i])
            }
        });
        let values = values.collect();
        Self {
            bits,
            signed,
            ints: Ints { rows, columns, values },
            dtype,
        }
    }

    pub(crate) fn random(dtype: QuantType, rows: usize, columns: usize, seed: u64) -> Self {
        Self::new(dtype, rows, columns, |i| (mix(seed ^ (i as u64) << 20) >> 24) as u8)
    }

    fn bytes(&self) -> Bytes<'_> {
        if self.dtype.signed() {
            Bytes::I8(&self.signed)
        } else {
            Bytes::U8(&self.bits)
        }
    }

    pub(crate) fn matrix(&self) -> Matrix<'_> {
        Matrix::new(self.bytes(), self.ints.rows, self.ints.columns).unwrap()
    }
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
