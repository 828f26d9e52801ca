//! Quantized weights in memory.

use std::ops::Range;

use super::BlockScheme;
use crate::{
    Result,
    error::check_length,
    kernels::low_bit::{Grids, LowBitKernel},
};

/// A matrix of weights in blocks along its rows, in the layout that [`super`] draws.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockWeights {
    scheme: BlockScheme,
    n: usize,
    k: usize,
    data: Vec<u8>,
    scales: Vec<f32>,
    zero_points: Vec<u8>,
}

/// [`BlockWeights`] in someone else's memory.
#[derive(Debug, Clone, Copy)]
pub struct BlockView<'a> {
    /// Bits, block size and symmetry.
    pub scheme: BlockScheme,
    /// Rows.
    pub n: usize,
    /// Values to a row.
    pub k: usize,
    /// Packed integers.
    pub data: &'a [u8],
    /// A scale for each block.
    pub scales: &'a [f32],
    /// Packed zero points; empty where the scheme is symmetric.
    pub zero_points: &'a [u8],
}

impl BlockWeights {
    /// With all bits 0.
    pub(super) fn zeros(scheme: BlockScheme, n: usize, k: usize) -> Self {
        let [row, blocks, zeros] = row_lengths(scheme, k);
        Self {
            scheme,
            n,
            k,
            data: vec![0; n * row],
            scales: vec![0.0; n * blocks],
            zero_points: vec![0; n * zeros],
        }
    }

    /// Bits, block size and symmetry.
    pub fn scheme(&self) -> BlockScheme {
        self.scheme
    }

    /// Packed integers.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// A scale for each block.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Packed zero points; empty where the scheme is symmetric.
    pub fn zero_points(&self) -> &[u8] {
        &self.zero_points
    }

    /// The same, borrowed.
    pub fn view(&self) -> BlockView<'_> {
        BlockView {
            scheme: self.scheme,
            n: self.n,
            k: self.k,
            data: &self.data,
            scales: &self.scales,
            zero_points: &self.zero_points,
        }
    }

    /// The reals, `[N, K]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n * self.k];
        self.view().fill(&mut out);
        out
    }

    /// Data, scales and zero points.
    pub fn into_parts(self) -> (Vec<u8>, Vec<f32>, Vec<u8>) {
        (self.data, self.scales, self.zero_points)
    }

    /// The same, to be written.
    pub fn view_mut(&mut self) -> BlockViewMut<'_> {
        BlockViewMut {
            scheme: self.scheme,
            n: self.n,
            k: self.k,
            data: &mut self.data,
            scales: &mut self.scales,
            zero_points: &mut self.zero_points,
        }
    }
}

/// Memory for [`BlockWeights`], its fields those of [`BlockView`].
#[derive(Debug)]
#[allow(missing_docs, reason = "as the line above says")]
pub struct BlockViewMut<'a> {
    pub scheme: BlockScheme,
    pub n: usize,
    pub k: usize,
    pub data: &'a mut [u8],
    pub scales: &'a mut [f32],
    pub zero_points: &'a mut [u8],
}

impl<'a> BlockViewMut<'a> {
    /// # Errors
    /// Lengths that do not fit.
    pub fn check(&self) -> Result<()> {
        let view = BlockView {
            scheme: self.scheme,
            n: self.n,
            k: self.k,
            data: self.data,
            scales: self.scales,
            zero_points: self.zero_points,
        };
        view.check()
    }

    /// All of it in pieces of so many rows.
    pub(super) fn strips(self, rows: usize) -> Vec<Strip<'a>> {
        let (scheme, n, k) = (self.scheme, self.n, self.k);
        let [row, blocks, zeros] = row_lengths(scheme, k);
        // A row may have no bytes, but each strip has its part of nothing.
        let mut rest = (self.data, self.scales, self.zero_points);
        (0..n)
            .step_by(rows)
            .map(|first| {
                let rows = first..n.min(first + rows);
                let (data, scales, zero_points) = std::mem::take(&mut rest);
                let (data, more_data) = data.split_at_mut(rows.len() * row);
                let (scales, more_scales) = scales.split_at_mut(rows.len() * blocks);
                let (zero_points, more_zeros) = zero_points.split_at_mut(rows.len() * zeros);
                rest = (more_data, more_scales, more_zeros);
                Strip {
                    scheme,
                    k,
                    rows,
                    data,
                    scales,
                    zero_points,
                }
            })
            .collect()
    }
}

/// Rows that are transposed together.
const TURNED: usize = 64;

/// Bytes of integers, scales, and bytes of zero points to a row.
fn row_lengths(scheme: BlockScheme, k: usize) -> [usize; 3] {
    let blocks = scheme.blocks(k);
    let zeros = if scheme.symmetric() { 0 } else { scheme.bytes(blocks) };
    [blocks * scheme.block_bytes(k), blocks, zeros]
}

impl BlockView<'_> {
    /// # Errors
    /// Lengths that do not fit.
    pub fn check(&self) -> Result<()> {
        let [row, blocks, zeros] = row_lengths(self.scheme, self.k);
        for (what, per_row, got) in [
            ("data", row, self.data.len()),
            ("scales", blocks, self.scales.len()),
            ("zero_points", zeros, self.zero_points.len()),
        ] {
            check_length(what, self.n.saturating_mul(per_row), got)?;
        }
        Ok(())
    }

    /// Writes the reals, `[N, K]`.
    ///
    /// # Errors
    /// Lengths that do not fit.
    pub fn dequantize_into(&self, out: &mut [f32]) -> Result<()> {
        self.check()?;
        check_length("out", self.n * self.k, out.len())?;
        self.fill(out);
        Ok(())
    }

    fn fill(&self, out: &mut [f32]) {
        let size = self.scheme.block_size(self.k);
        let mut codes = vec![0; self.k];
        for (row, out) in out.chunks_exact_mut(self.k.max(1)).enumerate() {
            self.unpack_row(row, &mut codes);
            for (block, (codes, out)) in codes.chunks(size).zip(out.chunks_mut(size)).enumerate() {
                let (scale, zero_point) = self.grid(row, block);
                for (code, out) in codes.iter().zip(out) {
                    *out = (i32::from(*code) - i32::from(zero_point)) as f32 * scale;
                }
            }
        }
    }

    /// The stored integers, one to a byte, row-major `[N, K]`, or `[K, N]` where `transposed`.
    pub fn codes(&self, transposed: bool) -> Vec<u8> {
        let (n, k) = (self.n, self.k);
        let mut out = vec![0; n * k];
        if !transposed {
            for (row, codes) in out.chunks_exact_mut(k.max(1)).enumerate() {
                self.unpack_row(row, codes);
            }
            return out;
        }
        // So many rows that their integers fill a cache line of the result.
        let mut rows = vec![0; TURNED * k];
        for first in (0..n).step_by(TURNED) {
            let count = TURNED.min(n - first);
            for (i, codes) in rows.chunks_exact_mut(k.max(1)).enumerate().take(count) {
                self.unpack_row(first + i, codes);
            }
            for (column, out) in out.chunks_exact_mut(n).enumerate() {
                for (i, out) in out[first..first + count].iter_mut().enumerate() {
                    *out = rows[i * k + column];
                }
            }
        }
        out
    }

    /// The zero points, one to a byte, `[N, blocks]`.
    pub fn unpacked_zero_points(&self) -> Vec<u8> {
        let blocks = self.scheme.blocks(self.k);
        let all = (0..self.n).flat_map(|row| (0..blocks).map(move |block| (row, block)));
        all.map(|(row, block)| self.grid(row, block).1).collect()
    }

    fn unpack_row(&self, row: usize, codes: &mut [u8]) {
        let [width, ..] = row_lengths(self.scheme, self.k);
        let (size, bytes) = (self.scheme.block_size(self.k), self.scheme.block_bytes(self.k));
        let (per_byte, bits) = (self.scheme.per_byte(), self.scheme.stored_bits());
        let mask = u8::MAX >> (8 - bits);
        let blocks = self.data[row * width..].chunks(bytes.max(1));
        for (block, codes) in blocks.zip(codes.chunks_mut(size)) {
            for (byte, codes) in block.iter().zip(codes.chunks_mut(per_byte)) {
                let mut rest = *byte;
                for code in codes {
                    *code = rest & mask;
                    rest = rest.unbounded_shr(bits);
                }
            }
        }
    }

    fn grid(&self, row: usize, block: usize) -> (f32, u8) {
        let [_, blocks, zeros] = row_lengths(self.scheme, self.k);
        let zero_point = if self.scheme.symmetric() {
            self.scheme.centre()
        } else {
            field(self.scheme, &self.zero_points[row * zeros..], block)
        };
        (self.scales[row * blocks + block], zero_point)
    }
}

/// One of several integers to a byte.
fn field(scheme: BlockScheme, bytes: &[u8], at: usize) -> u8 {
    let (per_byte, bits) = (scheme.per_byte(), scheme.stored_bits() as usize);
    let mask = u8::MAX >> (8 - bits);
    bytes[at / per_byte] >> (at % per_byte * bits) & mask
}

/// Some rows of [`BlockWeights`], to be written.
pub(super) struct Strip<'a> {
    scheme: BlockScheme,
    k: usize,
    pub(super) rows: Range<usize>,
    data: &'a mut [u8],
    scales: &'a mut [f32],
    zero_points: &'a mut [u8],
}

impl Strip<'_> {
    /// The bytes of the integers of some blocks of a row, all of them full.
    pub(super) fn data(&mut self, row: usize, blocks: Range<usize>) -> &mut [u8] {
        let [width, ..] = row_lengths(self.scheme, self.k);
        let bytes = self.scheme.block_bytes(self.k);
        &mut self.data[row * width..][blocks.start * bytes..blocks.end * bytes]
    }

    /// Packs a row's integers.
    pub(super) fn set_codes(&mut self, row: usize, codes: &[u8]) {
        let (scheme, size) = (self.scheme, self.scheme.block_size(self.k));
        let (per_byte, bits) = (scheme.per_byte(), scheme.stored_bits());
        let all = 0..scheme.blocks(self.k);
        let blocks = self.data(row, all).chunks_mut(scheme.block_bytes(codes.len()).max(1));
        for (bytes, codes) in blocks.zip(codes.chunks(size)) {
            for (byte, codes) in bytes.iter_mut().zip(codes.chunks(per_byte)) {
                *byte = codes.iter().rev().fold(0, |byte, code| byte.unbounded_shl(bits) | code);
            }
        }
        self.pad(row);
    }

    /// Writes the scales and zero points of a row's blocks from `first` on, whose zero point begins a byte.
    pub(super) fn set_grids(
        &mut self,
        kernel: &dyn LowBitKernel,
        (row, first): (usize, usize),
        scales: &[f32],
        zero_points: &[f32],
    ) {
        let [_, blocks, zeros] = row_lengths(self.scheme, self.k);
        self.scales[row * blocks + first..][..scales.len()].copy_from_slice(scales);
        if zeros == 0 {
            return;
        }
        let (per_byte, bits) = (self.scheme.per_byte(), self.scheme.stored_bits());
        let bytes = self.scheme.bytes(zero_points.len());
        let packed = &mut self.zero_points[row * zeros + first / per_byte..][..bytes];
        // They are packed as values are, being integers already.
        let integers = Grids {
            run: zero_points.len(),
            inverse: &[1.0],
            zero_point: &[0.0],
            limits: self.scheme.real_limits(),
        };
        kernel.encode(zero_points, integers, bits, packed);
        // What no block has is the centre.
        let missing = per_byte * bytes - zero_points.len();
        if let Some(last) = packed.last_mut() {
            *last |=
                (per_byte - missing..per_byte).fold(0, |byte, i| byte | self.scheme.centre() << (i * bits as usize));
        }
    }

    /// Gives the last byte of a row's integers, where it is not full, the upper bits of the byte before: those that
    /// onnxruntime's quantizer leaves there. It takes the blocks whose zero points share a byte together.
    pub(super) fn pad(&mut self, row: usize) {
        let (scheme, k) = (self.scheme, self.k);
        let (per_byte, together) = (scheme.per_byte(), scheme.block_size(k) * scheme.per_byte());
        let (last, used) = (k / per_byte, k % per_byte);
        let data = self.data(row, 0..scheme.blocks(k));
        if used != 0 && k % together > per_byte {
            data[last] |= data[last - 1] & u8::MAX << (used * scheme.stored_bits() as usize);
        }
    }
}
