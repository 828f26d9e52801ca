//! Made-up operands.

use requant_core::{QuantType, arrays::Matrix};

use crate::{bits::Bits, naive::Ints};

/// A matrix of bytes, and what they mean.
#[derive(Debug, Clone)]
pub(crate) struct Operand {
    pub(crate) bits: Bits,
    pub(crate) ints: Ints,
}

impl Operand {
    pub(crate) fn new(dtype: QuantType, rows: usize, columns: usize, bits: impl Fn(usize) -> u8) -> Self {
        Self::of(Bits::new(dtype, rows * columns, bits), rows, columns)
    }

    pub(crate) fn random(dtype: QuantType, rows: usize, columns: usize, seed: u64) -> Self {
        Self::of(Bits::random(dtype, rows * columns, seed), rows, columns)
    }

    fn of(bits: Bits, rows: usize, columns: usize) -> Self {
        let values = bits.values();
        Self {
            bits,
            ints: Ints { rows, columns, values },
        }
    }

    pub(crate) fn matrix(&self) -> Matrix<'_> {
        Matrix::new(self.bits.bytes(), self.ints.rows, self.ints.columns).unwrap()
    }
}
