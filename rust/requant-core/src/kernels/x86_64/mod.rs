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

/// Evaluates an expression in which `$formula` is the number of `$rounding`.
macro_rules! with_formula {
    ($rounding:expr, $formula:ident => $body:expr) => {
        match $rounding {
            Rounding::Onnx => {
                const $formula: u8 = Rounding::Onnx as u8;
                $body
            }
            Rounding::TorchPerTensor => {
                const $formula: u8 = Rounding::TorchPerTensor as u8;
                $body
            }
            Rounding::TorchPerChannel => {
                const $formula: u8 = Rounding::TorchPerChannel as u8;
                $body
            }
            Rounding::TorchFakeQuantize => {
                const $formula: u8 = Rounding::TorchFakeQuantize as u8;
                $body
            }
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
mod avx512_density;
pub(super) mod avx512_elementwise;
pub(super) mod avx512_gemm;
pub(super) mod avx512_low_bit;
mod avx512_tally;
pub(super) mod avx512vnni;
pub(super) mod avx512vnni_blocked_gemm;
pub(super) mod avx512vnni_depthwise;
pub(super) mod avx512vnni_gemm;
pub(super) mod avx512vnni_gguf;
pub(super) mod avxvnni;
pub(super) mod avxvnni_gemm;
mod tally;
mod zmm;
mod zmm_lanes;
mod zmm_values;
