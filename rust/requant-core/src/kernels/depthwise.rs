//! The inner loops of the depthwise convolution, once for each instruction set that has its own.
//!
//! Channels lie side by side in lanes, and two rows of the image are laid into each other, so that one multiply-add takes
//! a tap from each. Everything around these loops is [`crate::conv`]'s; a new kernel is a file and a line in `REGISTRY`,
//! under the name of the set in [`crate::kernels`] that it belongs to.

use crate::{
    Error, Result,
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

type Probe = fn() -> Option<&'static dyn DepthwiseKernel>;

/// One for each set that has its own; generic is always present.
const REGISTRY: &[Probe] = &[
    #[cfg(target_arch = "x86_64")]
    kernels::x86_64::avx2_depthwise::probe,
    kernels::generic_depthwise::probe,
];

/// The kernels that this CPU can run, best first.
pub fn available() -> impl Iterator<Item = &'static dyn DepthwiseKernel> {
    REGISTRY.iter().filter_map(|probe| probe())
}

/// The available kernel of that name.
///
/// # Errors
/// No available kernel has it.
pub fn by_name(name: &str) -> Result<&'static dyn DepthwiseKernel> {
    available().find(|k| k.name() == name).ok_or_else(|| Error::Isa {
        name: name.to_owned(),
        available: available().map(DepthwiseKernel::name).collect::<Vec<_>>().join(", "),
    })
}

/// The kernel of the set in use, or of the best set below it that has one.
pub(crate) fn current() -> &'static dyn DepthwiseKernel {
    let in_use = kernels::current().name();
    kernels::available()
        .skip_while(|set| set.name() != in_use)
        .find_map(|set| by_name(set.name()).ok())
        .unwrap_or(&kernels::generic_depthwise::Generic)
}

/// Two i16 as a dword.
#[inline(always)]
pub(crate) fn pair(upper: i32, lower: i32) -> i32 {
    (upper & 0xffff) | (lower << 16)
}
