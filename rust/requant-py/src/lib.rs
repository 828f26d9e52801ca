//! `requant._requant`: borrows numpy arrays, leaves the interpreter, calls `requant_core`.
//!
//! Nothing is decided here. Arrays must be C-contiguous, aligned and of the dtype named in `_requant.pyi`;
//! `requant/ops.py` sees to that.

mod affine;
mod arrays;
mod blocked;
mod conv;
mod cpu;
mod gemm;
mod gguf;
mod guard;
mod layers;
mod observe_op;
mod reals;
mod reconstruction;
mod statistics;
mod weights;

use pyo3::{prelude::*, types::PyTuple};

/// The compiled core of requant.
#[pymodule(gil_used = false)]
mod _requant {
    #[pymodule_export]
    use super::affine::{
        affine_params, dequantize, fake_quantize, largest_terms, pack, quantize, rounding_error, slice_ranges, unpack,
    };
    #[pymodule_export]
    use super::blocked::{BlockedMatrix, matmul_blocked};
    #[pymodule_export]
    use super::conv::{PackedFilters, conv2d};
    #[pymodule_export]
    use super::cpu::cpu_info;
    #[pymodule_export]
    use super::gemm::{PackedMatrix, Requantizer, matmul};
    #[pymodule_export]
    use super::gguf::{gguf_dequantize, gguf_quantize};
    #[pymodule_export]
    use super::layers::{add, average_pool, global_average_pool, look_up, max_pool};
    #[pymodule_export]
    use super::observe_op::observe_here;
    #[pymodule_export]
    use super::reconstruction::reconstruct;
    #[pymodule_export]
    use super::statistics::{TensorStatistics, observe_many, observe_request};
    #[pymodule_export]
    use super::weights::{dequantize_blocks, gptq, quantize_blocks, unpack_blocks};
    use super::{Bound, PyModule, PyModuleMethods, PyResult, PyTuple};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let methods = requant_core::calibration::METHODS.iter().map(|method| method.name);
        module.add(
            "CALIBRATION_METHODS",
            PyTuple::new(module.py(), methods.collect::<Vec<_>>())?,
        )?;
        module.add("GGUF_TYPES", PyTuple::new(module.py(), super::gguf::types())?)?;
        let roundings = requant_core::affine::Rounding::ALL.map(|rounding| rounding.name());
        let algorithms = requant_core::weights::ALGORITHMS.iter().map(|algorithm| algorithm.name);
        module.add(
            "WEIGHT_ALGORITHMS",
            PyTuple::new(module.py(), algorithms.collect::<Vec<_>>())?,
        )?;
        module.add("ROUNDINGS", PyTuple::new(module.py(), roundings)?)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
