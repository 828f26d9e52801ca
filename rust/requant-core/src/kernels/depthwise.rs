//! The inner loops of the depthwise convolution, once for each instruction set that has its own.
//!
//! Channels lie side by side in lanes, and two rows of the image are laid into each other, so that one multiply-add takes
//! a tap from each. Everything around these loops is [`crate::conv`]'s; a new kernel is a file and a line in the registry,
//! under the name of the set in [`crate::kernels`] that it belongs to.

use crate::{
    gemm::{Bytes, Strip},
    kernels,
};

/// Channels that are computed side by side.
pub const LANES: usize = 16;

/// A pair of i16 for each of neighbouring channels: the low half from the upper of two rows.
pub type Pairs = [i32; LANES];

/// The part of the depthwise convolution that depends on the instruction set.
pub trait DepthwiseKernel: Send + Sync {
    /// The name of the set that it belongs to, as `REQUANT_ISA` takes it.
    fn name(&self) -> &'static str;

    /// Pixel `i` of `out` gets the channels that begin at `i * step` in both lines, less the zero point; 0 where a line is
    /// none. Both have `out.len()` pixels; of channels beyond the end of a line anything may become.
    fn interleave(&self, lines: [Option<Bytes<'_>>; 2], step: usize, zero_point: i32, out: &mut [Pairs]);

    /// `sums[i][c] = sum over t of x[taps[t] + i][c] * weights[t][c]`, a product of pairs being the sum of both products,
    /// which lie within i32, as all sums do.
    fn multiply(&self, x: &[Pairs], taps: &[usize], weights: &[Pairs], sums: &mut [[i32; LANES]]);

    /// Turns sums into results. A kernel overrides this to have the same code compiled for its instruction set.
    fn finish(&self, strip: Strip<'_, '_>) {
        strip.finish::<LANES>();
    }
}

registry_of_inner_loops! { DepthwiseKernel,
    #[cfg(target_arch = "x86_64")]
    kernels::x86_64::avx2_depthwise::probe,
    kernels::generic_depthwise::probe,
}

/// Two i16 as a dword.
#[inline(always)]
pub(crate) fn pair(upper: i32, lower: i32) -> i32 {
    (upper & 0xffff) | (lower << 16)
}
