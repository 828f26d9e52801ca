//! GGUF's blocks on numpy arrays.

use numpy::{PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::prelude::*;
use requant_core::gguf::{BlockType, dequantize, quantize};

use crate::{
    arrays::slice,
    guard::{detached, to_py},
};

type Reals<'py> = PyReadonlyArrayDyn<'py, f32>;

/// Name, number in files, values and bytes of a block of each type.
pub(crate) fn types() -> Vec<(&'static str, u32, usize, usize)> {
    BlockType::all()
        .map(|t| (t.name(), t.id(), t.block_size(), t.bytes()))
        .collect()
}

fn parse(dtype: &str) -> PyResult<BlockType> {
    dtype.parse().map_err(|error| to_py(&error))
}

/// The blocks of each row.
#[pyfunction]
pub(crate) fn gguf_quantize(
    py: Python<'_>,
    x: Reals<'_>,
    columns: usize,
    dtype: &str,
    importance: Option<Reals<'_>>,
    mut out: PyReadwriteArrayDyn<'_, u8>,
    threads: usize,
) -> PyResult<()> {
    let (x, dtype, out) = (slice(&x)?, parse(dtype)?, out.as_slice_mut()?);
    let importance = importance.as_ref().map(slice).transpose()?;
    detached(py, || quantize(dtype, x, columns, importance, out, threads))
}

/// The values of blocks.
#[pyfunction]
pub(crate) fn gguf_dequantize(
    py: Python<'_>,
    data: PyReadonlyArrayDyn<'_, u8>,
    dtype: &str,
    mut out: PyReadwriteArrayDyn<'_, f32>,
    threads: usize,
) -> PyResult<()> {
    let (data, dtype, out) = (slice(&data)?, parse(dtype)?, out.as_slice_mut()?);
    detached(py, || dequantize(dtype, data, out, threads))
}
