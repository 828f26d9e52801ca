//! The inner loops of the depthwise convolution, once for each instruction set that has its own.
//!
//! Channels lie side by side in lanes, and two rows of the image are laid into each other, so that one multiply-add
//! takes a tap from each. Everything around these loops is [`crate::conv`]'s; a new kernel is a file and a line in the
//! registry, under the name of the set in [`crate::kernels`] that it belongs to.

use crate::{
    arrays::{Bytes, BytesMut, Integer},
    kernels::{self, finish::Strip},
    requantize::{Apply, Columns},
};

/// Channels that are computed side by side.
pub const LANES: usize = 16;

/// Which of neighbouring channels each lane of [`Pairs`] holds: what vector instructions leave that widen within
/// halves.
pub const ORDER: [usize; LANES] = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15];

/// A pair of i16 for each of neighbouring channels, in the order of [`ORDER`]: the low half from the upper of two rows.
pub type Pairs = [i32; LANES];

/// What a row of outputs is computed from: `sum[i][ORDER[l]] = sum over t of x[taps[t] + i][l] * weights[t][l]`, a
/// product of pairs being the sum of both products, which lie within i32, as all sums do.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Pixels of pair rows.
    pub x: &'a [Pairs],
    /// Where each tap of the first output lies.
    pub taps: &'a [usize],
    /// Of each tap.
    pub weights: &'a [Pairs],
}

/// The part of the depthwise convolution that depends on the instruction set.
pub trait DepthwiseKernel: Send + Sync {
    /// The name of the set that it belongs to, as `REQUANT_ISA` takes it.
    fn name(&self) -> &'static str;

    /// Pixel `i` of `out` gets the channels that begin at `i * step` in both lines, less the zero point; 0 where a line
    /// is none. Both have `out.len()` pixels; of channels beyond the end of a line anything may become.
    fn interleave(&self, lines: [Option<Bytes<'_>>; 2], step: usize, zero_point: i32, out: &mut [Pairs]);

    /// Writes the sums of a row.
    fn multiply(&self, row: Row<'_>, sums: &mut [[i32; LANES]]);

    /// Requantizes the sums of a row instead: pixel `i` begins at `i * step` of `out`, whose last one ends it. Scaled,
    /// and their bias added, they lie within i32.
    fn requantize(&self, row: Row<'_>, columns: &Columns<f32, LANES>, out: BytesMut<'_>, step: usize) {
        match out {
            BytesMut::U8(out) => requantize(self, row, columns, out, step),
            BytesMut::I8(out) => requantize(self, row, columns, out, step),
        }
    }

    /// Turns sums into results. A kernel overrides this to have the same code compiled for its instruction set.
    fn finish(&self, strip: Strip<'_, '_>) {
        strip.finish::<LANES>();
    }
}

registry_of_inner_loops! { DepthwiseKernel,
    #[cfg(target_arch = "x86_64")]
    kernels::x86_64::avx512vnni_depthwise::probe,
    #[cfg(target_arch = "x86_64")]
    kernels::x86_64::avx2_depthwise::probe,
    kernels::generic_depthwise::probe,
}

/// Pixel for pixel.
fn requantize<Q: Integer>(
    kernel: &(impl DepthwiseKernel + ?Sized),
    row: Row<'_>,
    columns: &Columns<f32, LANES>,
    out: &mut [Q],
    step: usize,
) {
    for (i, out) in out.chunks_mut(step).enumerate() {
        let mut sums = [[0; LANES]];
        let x = &row.x[i..];
        kernel.multiply(Row { x, ..row }, &mut sums);
        for (out, result) in out.iter_mut().zip(columns.apply(sums[0])) {
            *out = Q::narrow(result);
        }
    }
}

/// Two i16 as a dword.
#[inline(always)]
pub(crate) fn pair(upper: i32, lower: i32) -> i32 {
    (upper & 0xffff) | (lower << 16)
}
