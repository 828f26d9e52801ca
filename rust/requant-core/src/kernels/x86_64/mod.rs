//! x86-64 kernels, a file for each instruction set.

/// Evaluates an expression with a constant that equals a number of rows.
macro_rules! with_rows {
    ($rows:expr, $R:ident in [$($n:literal)*] => $value:expr) => {
        match $rows {
            $($n => {
                const $R: usize = $n;
                $value
            })*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}

pub(super) mod avx2;
pub(super) mod avx2_blocked_gemm;
mod avx2_bytes;
mod avx2_density;
pub(super) mod avx2_depthwise;
pub(super) mod avx2_elementwise;
mod avx2_extrema;
pub(super) mod avx2_feedback;
pub(super) mod avx2_gemm;
pub(super) mod avx2_gguf;
mod avx2_lanes;
pub(super) mod avx2_low_bit;
mod avx2_maps;
mod avx2_packing;
mod avx2_tally;
mod avx2_values;
pub(super) mod avx512;
pub(super) mod avx512_gemm;
pub(super) mod avx512vnni;
pub(super) mod avx512vnni_gemm;
pub(super) mod avxvnni;
pub(super) mod avxvnni_gemm;
mod zmm;
mod zmm_lanes;
