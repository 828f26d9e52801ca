//! The inner loops of products with block-quantized weights, once for each instruction set that has its own.
//!
//! The layouts are the same for all but for the number of columns to a panel; [`crate::gemm::blocked`] has everything
//! around them. All kernels give the same bits, because each operation on reals and its order are fixed here. A new
//! kernel is a file and a line in the registry, under the name of the set in [`crate::kernels`] that it belongs to.

use super::{gemm::Tile, generic_blocked_gemm};
use crate::kernels::blocked_activations::{Quantized, Rows, quantize};

/// Values along K that lie together in a panel: two groups of four, one in the low and one in the high half of bytes.
pub const OCTET: usize = 8;

/// Some whole blocks of a panel of B, in ascending order of K.
#[derive(Debug, Clone, Copy)]
pub struct Panel<'a> {
    /// `u8 [octets][columns][4]`: byte `t` of octet `o` is `q[8 o + t] | q[8 o + 4 + t] << 4`.
    pub integers: &'a [u8],
    /// `[blocks][columns]`, finite.
    pub scales: &'a [f32],
    /// What is taken from the integers.
    pub zero_points: ZeroPoints<'a>,
    /// Octets to a block; the last block may have fewer.
    pub octets: usize,
}

/// Integers that stand for 0.0; at most 15.
#[derive(Debug, Clone, Copy)]
pub enum ZeroPoints<'a> {
    /// The same for all of B.
    Common(u8),
    /// `[blocks][columns]`
    Each(&'a [u8]),
}

/// A tile of A as int8, cut to the same blocks.
#[derive(Debug, Clone, Copy)]
pub struct QuantizedTile<'a> {
    /// `i8 [2 * octets][rows][4]`, a group of four to a dword, its first value in the low byte; 0 beyond K.
    pub groups: &'a [i32],
    /// `[blocks][rows]`
    pub scales: &'a [f32],
    /// `[blocks][rows]`: what the zero points take from a dot product: the sum of the block's integers times -1, which
    /// fits i16, and times the common zero point if there is one.
    pub corrections: &'a [i32],
}

/// The part of products with block-quantized weights that depends on the instruction set.
pub trait BlockedKernel: Send + Sync {
    /// The name of the set that it belongs to, as `REQUANT_ISA` takes it.
    fn name(&self) -> &'static str;

    /// Its tile; columns are a multiple of 16, and the group is 4.
    fn tile(&self) -> Tile;

    /// [`quantize`]; a kernel overrides this to have the same code compiled for its instruction set.
    fn quantize(&self, rows: Rows<'_>, to: Quantized<'_>) {
        quantize(rows, to);
    }

    /// Adds a tile's product to `sums [rows][columns]`. For each block in turn
    ///
    /// ```text
    /// dot       = sum over k of a[i][k] * (q[k][j] - zero_point[j])        exact
    /// sum[i][j] = fma(f32(dot) * a_scale[i], scale[j], sum[i][j])          two roundings
    /// ```
    fn multiply_int8(&self, rows: usize, a: QuantizedTile<'_>, b: Panel<'_>, sums: &mut [f32]);

    /// Writes `f32(q - zero_point) * scale` as `[8 * octets][columns]`.
    fn dequantize(&self, b: Panel<'_>, out: &mut [f32]);

    /// Adds the product of reals `a [k][rows]` and `b [k][columns]` to `sums [rows][columns]`: for each k in turn
    /// `sum[i][j] = fma(a[k][i], b[k][j], sum[i][j])`.
    fn multiply_f32(&self, rows: usize, a: &[f32], b: &[f32], sums: &mut [f32]);
}

registry_of_inner_loops! { BlockedKernel,
    #[cfg(target_arch = "x86_64")]
    super::x86_64::avx512vnni_blocked_gemm::probe,
    #[cfg(target_arch = "x86_64")]
    super::x86_64::avx2_blocked_gemm::probe,
    generic_blocked_gemm::probe,
}
