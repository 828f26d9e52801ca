//! Quantization arithmetic, without Python and without a graph.
//!
//! A real `r` is mapped to an integer by `q = clamp(round_half_even(r / scale) + zero_point)` and back by
//! `r = (q - zero_point) * scale` (ONNX QuantizeLinear and DequantizeLinear). The crate has seven layers, each using
//! only those below it:
//!
//! | layer | module | question it answers |
//! |---|---|---|
//! | choice | [`calibration`] | which range, given what was seen |
//! | choice | [`reconstruction`] | which integers, given what a layer reads |
//! | statistics | [`stats`] | what was seen, in constant memory, merged in any order |
//! | weights | [`weights`] | which grid each block of a weight matrix gets, in few bits |
//! | weights | [`gguf`] | the same for GGUF's block types, to and from their bytes |
//! | layers | [`conv`], [`pool`], [`elementwise`] | 8-bit images, channels last, between quantized layers |
//! | products | [`gemm`], [`requantize`] | matrices of integers, multiplied exactly and scaled back |
//! | arithmetic | [`affine`], [`pack`] | which integer stands for a real |
//! | kernels | [`kernels`] | how this CPU does it fastest, to the same bits |

pub mod affine;
pub mod calibration;
pub mod conv;
pub mod elementwise;
mod error;
pub mod gemm;
pub mod gguf;
pub mod kernels;
pub mod pack;
pub mod pool;
pub mod reconstruction;
pub mod requantize;
pub mod stats;
pub mod threads;
mod types;
pub mod weights;

pub use error::{Error, Result};
pub use types::{Granularity, QuantParams, QuantScheme, QuantType, Range};
