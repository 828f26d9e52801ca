//! x86-64 kernels, a file for each instruction set.

pub(super) mod avx2;
pub(super) mod avx2_blocked_gemm;
pub(super) mod avx2_gemm;
