//! The inner loops of the integer GEMM, once for each instruction set that has its own.
//!
//! A kernel owns its layouts: how many rows and columns a tile has, and how the bytes of both operands lie. Everything
//! around them (packing B, blocking, threads, zero points, outputs) is [`crate::gemm`]'s and the same for all. A new
//! kernel is a file and a line in the registry, under the name of the set in [`crate::kernels`] that it belongs to.

use std::ops::Range;

use crate::{
    arrays::{Bytes, Integers, IntegersMut, Matrix},
    kernels::{self, finish::Strip},
};

/// The shape of what one call of [`GemmKernel::multiply`] computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Rows of A at most.
    pub rows: usize,
    /// Columns of B to a panel; a multiple of 8.
    pub columns: usize,
    /// Neighbours along K that one dword of A holds, and that lie together in B.
    pub group: usize,
}

/// The part of the integer GEMM that depends on the instruction set.
///
/// With `groups = ceil(K / group)`, a panel of B is `i8 [groups][columns][group]`, zero beyond K and N;
/// `gemm/README.md` draws it. A tile of A is `groups * rows` dwords, in an order that the kernel chooses.
pub trait GemmKernel: Send + Sync {
    /// The name of the set that it belongs to, as `REQUANT_ISA` takes it.
    fn name(&self) -> &'static str;

    /// Its tile.
    fn tile(&self) -> Tile;

    /// What [`Self::pack_rows`] adds to each value of A: not 0 where the instruction wants one signedness only.
    fn offset(&self, signed: bool) -> i32 {
        let _ = signed;
        0
    }

    /// Writes `rows` of `a`, at most a tile's, as the dwords that [`Self::multiply`] reads.
    fn pack_rows(&self, a: Matrix<'_>, rows: Range<usize>, out: &mut [i32]);

    /// `sums[i][j] = sum over k of a[i][k] * panel[k][j]`, exactly or modulo 2^32, for `rows` rows of A, as many as
    /// were packed, and all columns of a panel.
    fn multiply(&self, rows: usize, a: &[i32], panel: &[i8], sums: &mut [i32]);

    /// [`Pieces::copy`]; overridden as [`Self::finish`] is.
    fn copy(&self, pieces: Pieces<'_>) {
        pieces.copy();
    }

    /// The sum of a row of A, modulo 2^32; overridden as [`Self::finish`] is.
    fn sum(&self, row: Bytes<'_>) -> i32 {
        row.sum()
    }

    /// Turns sums into results. A kernel overrides this to have the same code compiled for its instruction set, and as
    /// wide as its panels.
    fn finish(&self, strip: Strip<'_, '_>) {
        strip.finish::<8>();
    }
}

/// What is to be copied between bytes of one type: piece `i` of `length` bytes from `i * from_step` of one to
/// `i * to_step` of the other, whose last one ends it.
#[derive(Debug)]
pub struct Pieces<'a> {
    pub(crate) from: Integers<'a>,
    pub(crate) from_step: usize,
    pub(crate) to: IntegersMut<'a>,
    pub(crate) to_step: usize,
    pub(crate) length: usize,
}

impl Pieces<'_> {
    /// Copies them, 64 bytes at a time: a call for each would cost more.
    #[inline(always)]
    pub fn copy(self) {
        let steps = [self.from_step, self.to_step];
        match (self.from, self.to) {
            (Integers::U8(from), IntegersMut::U8(to)) => copy(from, to, steps, self.length),
            (Integers::I8(from), IntegersMut::I8(to)) => copy(from, to, steps, self.length),
            _ => unreachable!("integers of two types, or wider ones"),
        }
    }
}

#[inline(always)]
fn copy<T: Copy>(from: &[T], to: &mut [T], [from_step, to_step]: [usize; 2], length: usize) {
    for (i, to) in to.chunks_mut(to_step).enumerate() {
        let from = &from[i * from_step..][..length];
        for (from, to) in from.chunks(64).zip(to[..length].chunks_mut(64)) {
            match (from.first_chunk::<64>(), to.first_chunk_mut::<64>()) {
                (Some(from), Some(to)) => *to = *from,
                _ => to.copy_from_slice(from),
            }
        }
    }
}

registry_of_inner_loops! { GemmKernel,
    #[cfg(target_arch = "x86_64")]
    kernels::x86_64::avx512vnni_gemm::probe,
    #[cfg(target_arch = "x86_64")]
    kernels::x86_64::avx512_gemm::probe,
    #[cfg(target_arch = "x86_64")]
    kernels::x86_64::avxvnni_gemm::probe,
    #[cfg(target_arch = "x86_64")]
    kernels::x86_64::avx2_gemm::probe,
    kernels::generic_gemm::probe,
}
