//! Quantization arithmetic, without Python and without a graph.
//!
//! A real `r` is mapped to an integer by `q = clamp(round_half_even(r / scale) + zero_point)` and back by
//! `r = (q - zero_point) * scale` (ONNX QuantizeLinear and DequantizeLinear). Its layers each call only those below
//! them. Only kernels look up: they have [`gguf`]'s blocks and the grids of [`weights`], each written once, compiled
//! for their instructions.
//!
//! | layer | module | question it answers |
//! |---|---|---|
//! | choice | [`calibration`] | which range, given what was seen |
//! | choice | [`reconstruction`] | which integers, given what a layer reads |
//! | statistics | [`stats`] | what was seen, in constant memory, merged in any order |
//! | weights | [`weights`] | which grid each block of a weight matrix gets, in few bits |
//! | weights | [`gguf`] | the same for GGUF's block types, to and from their bytes |
//! | layers | [`conv`], [`pool`], [`elementwise`] | 8-bit images, channels last, between quantized layers |
//! | products | [`gemm`] | matrices of integers, multiplied exactly and scaled back |
//! | arithmetic | [`affine`], [`pack`] | which integer stands for a real |
//! | kernels | [`kernels`] | how this CPU does it fastest, to the same bits |
//! | rounding | [`requantize`] | which integer stands for a sum of products |
//! | arrays | [`arrays`] | what is borrowed from callers |
//! | threads | [`threads`] | who does it |
//!
//! A range is chosen from what was seen, and gives the parameters that arrays are quantized by:
//!
//! ```
//! use requant_core::{Granularity, QuantScheme, QuantType, affine, calibration, stats::{Statistic, TensorStatistics}};
//!
//! let traffic = [[-1.0, 0.5, 3.0, 0.0], [-0.5, 2.0, 1.0, 0.0]];
//! let mut seen = TensorStatistics::default();
//! traffic.iter().for_each(|request| seen.observe(request));
//!
//! let scheme = QuantScheme { dtype: QuantType::U8, symmetric: false, narrow: false };
//! let params = affine::params(calibration::range(&seen, "minmax", scheme, 100.0)?, scheme)?;
//! let (scale, zero_point) = ([params.scale], [params.zero_point]);
//! let map = affine::Affine::new(&[4], Granularity::PerTensor, scheme.dtype, false, &scale, &zero_point)?;
//! let mut q = [0u8; 4];
//! map.quantize(&traffic[0], &mut q)?;
//! assert_eq!(q, [0, 96, 255, 64]);
//! # Ok::<(), requant_core::Error>(())
//! ```
//!
//! `examples/service.rs` has a layer of a network that answers requests on many threads.

pub mod affine;
pub mod arrays;
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
