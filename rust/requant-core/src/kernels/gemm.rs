//! The inner loops of the integer GEMM, once for each instruction set that has its own.
//!
//! A kernel owns its layouts: how many rows and columns a tile has, and how the bytes of both operands lie. Everything
//! around them (packing B, blocking, threads, zero points, outputs) is [`crate::gemm`]'s and the same for all. A new
//! kernel is a file and a line in the registry, under the name of the set in [`crate::kernels`] that it belongs to.

use std::ops::Range;

use crate::{
    arrays::{Bytes, Matrix},
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
/// With `groups = ceil(K / group)`, a panel of B is `i8 [groups][columns][group]`, zero beyond K and N; `gemm/README.md`
/// draws it. A tile of A is `groups * rows` dwords, in an order that the kernel chooses.
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

    /// `sums[i][j] = sum over k of a[i][k] * panel[k][j]`, exactly or modulo 2^32, for `rows` rows of A, as many as were
    /// packed, and all columns of a panel.
    fn multiply(&self, rows: usize, a: &[i32], panel: &[i8], sums: &mut [i32]);

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
