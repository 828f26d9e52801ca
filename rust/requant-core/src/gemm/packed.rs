//! B, in the order in which a kernel reads it.

use std::fmt;

use super::magnitude;
use crate::{
    QuantType, Result,
    arrays::{Bytes, Matrix},
    kernels::gemm::{self, GemmKernel, Tile},
    requantize::{check_one_or, check_within},
};

/// Panels begin at cache lines.
const ALIGNMENT: usize = 64;

/// An 8-bit matrix `[K, N]` packed for products from the left, with its zero point and column sums.
///
/// It belongs to one kernel of this machine; to store it, store [`Self::unpack`] and pack again.
pub struct PackedWeights {
    kernel: &'static dyn GemmKernel,
    data: Vec<i8>,
    /// Index of the first aligned byte of `data`.
    start: usize,
    panel_stride: usize,
    k: usize,
    n: usize,
    dtype: QuantType,
    zero_point: Vec<i32>,
    /// The zero point of what is stored, for each column; empty where all are 0.
    shifted_zero_point: Vec<i32>,
    /// For each column, the sum over k of `b - zero_point`.
    sums: Vec<i32>,
}

impl PackedWeights {
    /// Packs `b` for the kernel in use. `zero_point` is `[1]` or `[N]`, within the type of `b`.
    ///
    /// # Errors
    /// A zero point of another length or outside the type.
    pub fn new(b: Matrix<'_>, zero_point: &[i32]) -> Result<Self> {
        Self::with_kernel(gemm::current(), b, zero_point)
    }

    /// Packs `b` for a kernel; see [`gemm::available`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_kernel(kernel: &'static dyn GemmKernel, b: Matrix<'_>, zero_point: &[i32]) -> Result<Self> {
        let (k, n, dtype) = (b.rows(), b.columns(), b.dtype());
        check_one_or("zero_point of b", zero_point.len(), n)?;
        check_within(zero_point, (dtype.min(), dtype.max()))?;
        let Tile { columns, group, .. } = kernel.tile();
        let panel_stride = (k.div_ceil(group) * group * columns).next_multiple_of(ALIGNMENT);
        let data = vec![0; panel_stride * n.div_ceil(columns) + ALIGNMENT];
        let mut packed = Self {
            kernel,
            start: data.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT),
            data,
            panel_stride,
            k,
            n,
            dtype,
            zero_point: zero_point.to_vec(),
            shifted_zero_point: Vec::new(),
            sums: vec![0; n],
        };
        packed.fill(b);
        let shifted = |j| zero_point[if zero_point.len() == 1 { 0 } else { j }] - shift(dtype);
        let length = i32::try_from(k).unwrap_or(i32::MAX); // a longer one is refused when it is used
        for (j, sum) in packed.sums.iter_mut().enumerate() {
            *sum = sum.wrapping_sub(length.wrapping_mul(shifted(j)));
        }
        if (0..n).any(|j| shifted(j) != 0) {
            packed.shifted_zero_point = (0..n).map(shifted).collect();
        }
        Ok(packed)
    }

    /// Writes the panels, and the sums of what is stored.
    fn fill(&mut self, b: Matrix<'_>) {
        let Tile { columns, group, .. } = self.kernel.tile();
        for k in 0..self.k {
            for first in (0..self.n).step_by(columns) {
                let place = self.start + first / columns * self.panel_stride + k / group * columns * group + k % group;
                let lanes = self.data[place..].iter_mut().step_by(group);
                let count = columns.min(self.n - first);
                let sums = &mut self.sums[first..first + count];
                // 128 less for uint8: the top bit flipped, read as int8.
                match b.row(k) {
                    Bytes::U8(row) => {
                        for ((lane, sum), &v) in lanes.zip(sums).zip(&row[first..]) {
                            *lane = (v ^ 0x80).cast_signed();
                            *sum = sum.wrapping_add(i32::from(*lane));
                        }
                    }
                    Bytes::I8(row) => {
                        for ((lane, sum), &v) in lanes.zip(sums).zip(&row[first..]) {
                            *lane = v;
                            *sum = sum.wrapping_add(i32::from(v));
                        }
                    }
                }
            }
        }
    }

    /// The matrix that was packed, row-major, as bits: those of int8 or uint8 as [`Self::dtype`] says.
    pub fn unpack(&self) -> Vec<u8> {
        let Tile { columns, group, .. } = self.kernel.tile();
        let flip = if self.dtype.signed() { 0 } else { 0x80 };
        let mut out = vec![0; self.k * self.n];
        if self.n > 0 {
            for (k, row) in out.chunks_exact_mut(self.n).enumerate() {
                for (panel, row) in row.chunks_mut(columns).enumerate() {
                    let lanes = &self.panel(panel)[k / group * columns * group + k % group..];
                    for (out, lane) in row.iter_mut().zip(lanes.iter().step_by(group)) {
                        *out = lane.cast_unsigned() ^ flip;
                    }
                }
            }
        }
        out
    }

    /// Rows of B: the length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of B.
    pub fn n(&self) -> usize {
        self.n
    }

    /// int8 or uint8.
    pub fn dtype(&self) -> QuantType {
        self.dtype
    }

    /// As it was given.
    pub fn zero_point(&self) -> &[i32] {
        &self.zero_point
    }

    /// The kernel that it is packed for.
    pub fn kernel(&self) -> &'static dyn GemmKernel {
        self.kernel
    }

    pub(super) fn sums(&self) -> &[i32] {
        &self.sums
    }

    pub(super) fn shifted_zero_point(&self) -> &[i32] {
        &self.shifted_zero_point
    }

    pub(super) fn magnitude(&self) -> u64 {
        magnitude(self.dtype, &self.zero_point)
    }

    pub(super) fn panel(&self, index: usize) -> &[i8] {
        let Tile { columns, group, .. } = self.kernel.tile();
        let first = self.start + index * self.panel_stride;
        &self.data[first..first + self.k.div_ceil(group) * group * columns]
    }
}

impl fmt::Debug for PackedWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { k, n, dtype, .. } = self;
        write!(f, "PackedWeights({dtype} [{k}, {n}] for {})", self.kernel.name())
    }
}

/// What is taken from each value so that int8 holds it.
fn shift(dtype: QuantType) -> i32 {
    if dtype.signed() { 0 } else { 128 }
}
