//! How weights in blocks are stored, and the grids that their integers lie on.

use super::rtn;
use crate::{Error, Result, kernels::low_bit::Grids};

/// How many bits, how many neighbours along a row share a scale, and whether blocks have zero points of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockScheme {
    bits: u32,
    block_size: usize,
    symmetric: bool,
}

impl BlockScheme {
    /// Block sizes beside 0, which stands for whole rows.
    pub const BLOCK_SIZES: [usize; 5] = [16, 32, 64, 128, 256];

    /// Widths in bits.
    pub const BITS: [u32; 4] = [2, 3, 4, 8];

    /// `bits` is 2, 3, 4 or 8; `block_size` 16, 32, 64, 128, 256, or 0 for whole rows.
    ///
    /// # Errors
    /// Other numbers.
    pub fn new(bits: u32, block_size: usize, symmetric: bool) -> Result<Self> {
        if !Self::BITS.contains(&bits) {
            return Err(Error::Bits { got: bits });
        }
        if block_size != 0 && !Self::BLOCK_SIZES.contains(&block_size) {
            return Err(Error::BlockSizes { got: block_size });
        }
        Ok(Self {
            bits,
            block_size,
            symmetric,
        })
    }

    /// Width in bits.
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// Width that integers are stored with: 4 for 3, as nothing that runs them packs 3.
    pub fn stored_bits(self) -> u32 {
        if self.bits == 3 { 4 } else { self.bits }
    }

    /// Values that share a scale, in rows of `k`; the last block may have fewer.
    pub fn block_size(self, k: usize) -> usize {
        if self.block_size == 0 {
            k.max(1)
        } else {
            self.block_size
        }
    }

    /// Whether all zero points are [`Self::centre`].
    pub fn symmetric(self) -> bool {
        self.symmetric
    }

    /// Blocks to a row of `k`.
    pub fn blocks(self, k: usize) -> usize {
        k.div_ceil(self.block_size(k))
    }

    /// Bytes of a full block.
    pub fn block_bytes(self, k: usize) -> usize {
        self.bytes(self.block_size(k))
    }

    /// Bytes that `count` integers take.
    pub fn bytes(self, count: usize) -> usize {
        count.div_ceil(self.per_byte())
    }

    /// Integers to a byte.
    pub fn per_byte(self) -> usize {
        8 / self.stored_bits() as usize
    }

    /// The middle of what is stored, which stands for 0 where blocks have no zero points: 2, 8 or 128.
    pub fn centre(self) -> u8 {
        1 << (self.stored_bits() - 1)
    }

    /// The integers in use. Symmetric ones of 3 bits lie around the centre of 4: 4..=11.
    pub fn limits(self) -> (u8, u8) {
        let half = 1u8 << (self.bits - 1);
        if self.symmetric {
            (self.centre() - half, self.centre() + (half - 1))
        } else {
            (0, half + (half - 1))
        }
    }

    /// [`Self::limits`] as reals.
    pub(super) fn real_limits(self) -> (f32, f32) {
        let (least, most) = self.limits();
        (least.into(), most.into())
    }
}

/// What a block's integers stand for: `(q - zero_point) * scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// Distance of neighbours; finite, 0 where all of the block is, and negative where that reaches further.
    pub scale: f32,
    /// `1 / scale`, or 0 where the scale is.
    pub inverse: f32,
    /// The integer that stands for 0, exact in f32.
    pub zero_point: f32,
}

impl Grid {
    /// A scale too small to have a reciprocal becomes 0.
    #[inline(always)]
    pub fn new(scale: f32, zero_point: f32) -> Self {
        let inverse = 1.0 / scale;
        let (scale, inverse) = if inverse.is_finite() {
            (scale, inverse)
        } else {
            (0.0_f32.copysign(scale), 0.0)
        };
        Self {
            scale,
            inverse,
            zero_point,
        }
    }
}

/// The grids of the blocks of a row, a struct of arrays.
#[derive(Debug, Default)]
pub struct RowGrids {
    pub(super) scale: Vec<f32>,
    pub(super) inverse: Vec<f32>,
    pub(super) zero_point: Vec<f32>,
}

impl RowGrids {
    /// Those of [`rtn::grid`] for ranges from `lo` to `hi`.
    #[inline(always)]
    pub(crate) fn spread(&mut self, scheme: BlockScheme, lo: &[f32], hi: &[f32]) {
        let Self {
            scale,
            inverse,
            zero_point,
        } = self;
        for values in [&mut *scale, &mut *inverse, &mut *zero_point] {
            values.resize(lo.len(), 0.0);
        }
        let to = scale.iter_mut().zip(inverse).zip(zero_point);
        for (((scale, inverse), zero_point), (lo, hi)) in to.zip(lo.iter().zip(hi)) {
            let grid = rtn::grid(scheme, *lo, *hi);
            (*scale, *inverse, *zero_point) = (grid.scale, grid.inverse, grid.zero_point);
        }
    }

    pub(super) fn set(&mut self, at: usize, grid: Grid) {
        (self.scale[at], self.inverse[at], self.zero_point[at]) = (grid.scale, grid.inverse, grid.zero_point);
    }

    pub(super) fn grids(&self, run: usize, limits: (f32, f32)) -> Grids<'_> {
        Grids {
            run,
            inverse: &self.inverse,
            zero_point: &self.zero_point,
            limits,
        }
    }
}
