//! Block-quantized B, in the order in which a kernel reads it.

use std::{fmt, ops::Range};

use crate::{
    Error, QuantType, Result,
    arrays::{Bytes, Matrix},
    error::check_length,
    kernels::{
        blocked_gemm::{self, BlockedKernel, OCTET, Panel, ZeroPoints},
        gemm::Tile,
    },
    requantize::check_within,
};

/// Panels begin at cache lines.
const ALIGNMENT: usize = 64;

const BLOCK_SIZES: [usize; 5] = [16, 32, 64, 128, 256];

/// A matrix `[K, N]` of 4-bit integers, with a scale for each block along K of each column, packed for products from
/// the left.
///
/// The reals are `(q - zero_point) * scale`; scales and zero points are `[ceil(K / block_size), N]`, and the last block
/// has what remains of K. It belongs to one kernel of this machine; to store it, store [`Self::unpack`],
/// [`Self::scales`] and [`Self::zero_points`], and pack again.
pub struct PackedBlocks {
    kernel: &'static dyn BlockedKernel,
    integers: Vec<u8>,
    /// Index of the first aligned byte of `integers`.
    start: usize,
    /// `[panels][blocks][columns]`
    scales: Vec<f32>,
    /// The zero point of all stored integers.
    zero_point: Option<u8>,
    /// Zero points where they differ, as the scales.
    zero_points: Vec<u8>,
    k: usize,
    n: usize,
    block_size: usize,
    dtype: QuantType,
}

impl PackedBlocks {
    /// Packs `b` for the kernel in use: int8 in -8..=7 stands for int4, uint8 in 0..=15 for uint4.
    ///
    /// `block_size` is 16, 32, 64, 128 or 256. `scales` are finite. `zero_points` are one or as many as scales, within
    /// the 4-bit type.
    ///
    /// # Errors
    /// Another block size or length, integers outside the 4-bit type, a scale that is not finite.
    pub fn new(b: Matrix<'_>, block_size: usize, scales: &[f32], zero_points: &[i32]) -> Result<Self> {
        Self::with_kernel(blocked_gemm::current(), b, block_size, scales, zero_points)
    }

    /// Packs `b` for a kernel; see [`blocked_gemm::available`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_kernel(
        kernel: &'static dyn BlockedKernel,
        b: Matrix<'_>,
        block_size: usize,
        scales: &[f32],
        zero_points: &[i32],
    ) -> Result<Self> {
        if !BLOCK_SIZES.contains(&block_size) {
            return Err(Error::BlockSizes { got: block_size });
        }
        let (k, n) = (b.rows(), b.columns());
        let dtype = if b.dtype().signed() {
            QuantType::I4
        } else {
            QuantType::U4
        };
        let blocks = k.div_ceil(block_size);
        check_length("scales", blocks * n, scales.len())?;
        if let Some(at) = scales.iter().position(|s| !s.is_finite()) {
            return Err(Error::NonFinite {
                value: scales[at],
                index: vec![at / n, at % n],
            });
        }
        if zero_points.len() != 1 {
            check_length("zero_points", blocks * n, zero_points.len())?;
        }
        check_within(zero_points, (dtype.min(), dtype.max()))?;
        let columns = kernel.tile().columns;
        let panels = n.div_ceil(columns);
        let data = vec![0; panels * k.div_ceil(OCTET) * columns * 4 + ALIGNMENT];
        let mut packed = Self {
            kernel,
            start: data.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT),
            integers: data,
            scales: vec![0.0; panels * blocks * columns],
            zero_point: None,
            zero_points: Vec::new(),
            k,
            n,
            block_size,
            dtype,
        };
        packed.fill(b)?;
        packed.fill_blocks(scales, zero_points);
        Ok(packed)
    }

    /// Packs weights in the layout of onnxruntime's operator MatMulNBits with 4 bits for the kernel in use.
    ///
    /// With `blocks = ceil(K / block_size)`, `b` is `[N, blocks, block_size / 2]`, the first integer in the low half of
    /// a byte, `scales` `[N, blocks]`, and `zero_points` `[N, ceil(blocks / 2)]`, packed alike; all 8 without.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn from_nbits(
        b: &[u8],
        (k, n): (usize, usize),
        block_size: usize,
        scales: &[f32],
        zero_points: Option<&[u8]>,
    ) -> Result<Self> {
        if !BLOCK_SIZES.contains(&block_size) {
            return Err(Error::BlockSizes { got: block_size });
        }
        let blocks = k.div_ceil(block_size);
        let width = blocks * block_size / 2;
        check_length("b", n * width, b.len())?;
        check_length("scales", n * blocks, scales.len())?;
        let nibble = |bytes: &[u8], at: usize| bytes[at / 2] >> (at % 2 * 4) & 15;
        let mut integers = Vec::with_capacity(k * n);
        for at in 0..k {
            integers.extend((0..n).map(|j| nibble(&b[j * width..], at)));
        }
        let each = |block| (0..n).map(move |j| (block, j));
        let scales: Vec<f32> = (0..blocks)
            .flat_map(each)
            .map(|(block, j)| scales[j * blocks + block])
            .collect();
        let zero_points = match zero_points {
            None => vec![8],
            Some(packed) => {
                let width = blocks.div_ceil(2);
                check_length("zero_points", n * width, packed.len())?;
                (0..blocks)
                    .flat_map(each)
                    .map(|(block, j)| i32::from(nibble(&packed[j * width..], block)))
                    .collect()
            }
        };
        Self::new(
            Matrix::new(Bytes::U8(&integers), k, n)?,
            block_size,
            &scales,
            &zero_points,
        )
    }

    /// Writes the panels.
    fn fill(&mut self, b: Matrix<'_>) -> Result<()> {
        let dtype = self.dtype;
        for k in 0..self.k {
            for j in 0..self.n {
                let value = b.get(k, j);
                let stored = u8::try_from(value - dtype.min()).ok().filter(|q| *q < 16);
                let Some(stored) = stored else {
                    let index = k * self.n + j;
                    return Err(Error::Overflow { value, index, dtype });
                };
                let (place, shift) = self.place(k, j);
                self.integers[place] |= stored << shift;
            }
        }
        Ok(())
    }

    fn fill_blocks(&mut self, scales: &[f32], zero_points: &[i32]) {
        let min = self.dtype.min();
        let stored = |z: i32| u8::try_from(z - min).unwrap_or(0); // checked to be within 0..=15
        let first = zero_points.first().copied().unwrap_or(min);
        if zero_points.iter().all(|z| *z == first) {
            self.zero_point = Some(stored(first));
        } else {
            self.zero_points = vec![0; self.scales.len()];
        }
        for at in 0..scales.len() {
            let place = self.block_place(at / self.n, at % self.n);
            self.scales[place] = scales[at];
            if self.zero_point.is_none() {
                self.zero_points[place] = stored(zero_points[at]);
            }
        }
    }

    /// Index of the byte that holds an integer, and the lowest of its bits.
    fn place(&self, k: usize, j: usize) -> (usize, usize) {
        let columns = self.kernel.tile().columns;
        let octet = j / columns * self.k.div_ceil(OCTET) + k / OCTET;
        let place = self.start + (octet * columns + j % columns) * 4 + k % 4;
        (place, k % OCTET / 4 * 4)
    }

    /// Index of a block's scale.
    fn block_place(&self, block: usize, j: usize) -> usize {
        let columns = self.kernel.tile().columns;
        (j / columns * self.blocks() + block) * columns + j % columns
    }

    /// The integers that were packed, row-major `[K, N]`, as bits: those of int8 or uint8 as [`Self::dtype`] says.
    pub fn unpack(&self) -> Vec<u8> {
        let shift = if self.dtype.signed() { 8 } else { 0 };
        let mut out = Vec::with_capacity(self.k * self.n);
        for k in 0..self.k {
            out.extend((0..self.n).map(|j| {
                let (place, bit) = self.place(k, j);
                (self.integers[place] >> bit & 15).wrapping_sub(shift)
            }));
        }
        out
    }

    /// The reals, `(q - zero_point) * scale`, row-major `[K, N]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let Tile { columns, .. } = self.kernel.tile();
        let mut out = vec![0.0; self.k * self.n];
        let mut panel = vec![0.0; self.k.next_multiple_of(OCTET) * columns];
        for first in (0..self.n).step_by(columns) {
            self.kernel
                .dequantize(self.panel(first / columns, 0..self.blocks()), &mut panel);
            for (out, row) in out.chunks_exact_mut(self.n).zip(panel.chunks_exact(columns)) {
                let out = &mut out[first..self.n.min(first + columns)];
                out.copy_from_slice(&row[..out.len()]);
            }
        }
        out
    }

    /// As given, `[ceil(K / block_size), N]`.
    pub fn scales(&self) -> Vec<f32> {
        (0..self.blocks() * self.n)
            .map(|at| self.scales[self.block_place(at / self.n, at % self.n)])
            .collect()
    }

    /// `[ceil(K / block_size), N]`, equal ones repeated.
    pub fn zero_points(&self) -> Vec<i32> {
        (0..self.blocks() * self.n)
            .map(|at| match self.zero_point {
                Some(common) => common,
                None => self.zero_points[self.block_place(at / self.n, at % self.n)],
            })
            .map(|stored| i32::from(stored) + self.dtype.min())
            .collect()
    }

    /// Rows of B: the length of the sums.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of B.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Rows of B that share a scale.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks to a column.
    pub fn blocks(&self) -> usize {
        self.k.div_ceil(self.block_size)
    }

    /// int4 or uint4.
    pub fn dtype(&self) -> QuantType {
        self.dtype
    }

    /// The kernel that it is packed for.
    pub fn kernel(&self) -> &'static dyn BlockedKernel {
        self.kernel
    }

    /// The zero point of all stored integers, if they have one.
    pub(super) fn zero_point(&self) -> Option<u8> {
        self.zero_point
    }

    /// Some blocks of a panel.
    pub(super) fn panel(&self, index: usize, blocks: Range<usize>) -> Panel<'_> {
        let columns = self.kernel.tile().columns;
        let (octets, all) = (self.block_size / OCTET, self.k.div_ceil(OCTET));
        let cut = |block: usize| self.start + (index * all + all.min(block * octets)) * columns * 4;
        let first = index * self.blocks() + blocks.start;
        let slots = first * columns..(first + blocks.len()) * columns;
        Panel {
            integers: &self.integers[cut(blocks.start)..cut(blocks.end)],
            scales: &self.scales[slots.clone()],
            zero_points: match self.zero_point {
                Some(common) => ZeroPoints::Common(common),
                None => ZeroPoints::Each(&self.zero_points[slots]),
            },
            octets,
        }
    }
}

impl fmt::Debug for PackedBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            k,
            n,
            dtype,
            block_size,
            ..
        } = self;
        let kernel = self.kernel.name();
        write!(
            f,
            "PackedBlocks({dtype} [{k}, {n}] in blocks of {block_size} for {kernel})"
        )
    }
}
