//! Products with block-quantized weights on numpy arrays.

use numpy::{PyArrayDyn, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::prelude::*;
use requant_core::{
    arrays::Matrix,
    gemm::blocked::{Activations, PackedBlocks, matmul},
};

use crate::{
    arrays::{moved, slice},
    gemm::ByteArray,
    guard::{detached, to_py},
};

type Reals<'py> = PyReadonlyArrayDyn<'py, f32>;

/// A matrix of 4-bit integers in blocks, packed for products from the left.
#[pyclass(frozen, module = "requant._requant")]
pub(crate) struct BlockedMatrix(PackedBlocks);

#[pymethods]
impl BlockedMatrix {
    #[new]
    fn new(
        py: Python<'_>,
        b: &Bound<'_, PyAny>,
        k: usize,
        n: usize,
        block_size: usize,
        scales: Reals<'_>,
        zero_points: PyReadonlyArrayDyn<'_, i32>,
    ) -> PyResult<Self> {
        let (b, scales, zero_points) = (ByteArray::new(b)?, slice(&scales)?, slice(&zero_points)?);
        let b = Matrix::new(b.bytes()?, k, n).map_err(|error| to_py(&error))?;
        detached(py, || PackedBlocks::new(b, block_size, scales, zero_points).map(Self))
    }

    #[staticmethod]
    fn from_nbits(
        py: Python<'_>,
        b: PyReadonlyArrayDyn<'_, u8>,
        k: usize,
        n: usize,
        block_size: usize,
        scales: Reals<'_>,
        zero_points: Option<PyReadonlyArrayDyn<'_, u8>>,
    ) -> PyResult<Self> {
        let (b, scales) = (slice(&b)?, slice(&scales)?);
        let zero_points = zero_points.as_ref().map(slice).transpose()?;
        detached(py, || {
            PackedBlocks::from_nbits(b, (k, n), block_size, scales, zero_points).map(Self)
        })
    }

    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.0.k(), self.0.n())
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.dtype().name()
    }

    #[getter]
    fn block_size(&self) -> usize {
        self.0.block_size()
    }

    #[getter]
    fn kernel(&self) -> &'static str {
        self.0.kernel().name()
    }

    #[getter]
    fn scales<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        moved(py, &[self.0.blocks(), self.0.n()], self.0.scales())
    }

    #[getter]
    fn zero_points<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArrayDyn<i32>>> {
        moved(py, &[self.0.blocks(), self.0.n()], self.0.zero_points())
    }

    fn unpack<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
        let bits = detached(py, || Ok(self.0.unpack()))?;
        moved(py, &[self.0.k(), self.0.n()], bits)
    }

    fn dequantize<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let reals = detached(py, || Ok(self.0.dequantize()))?;
        moved(py, &[self.0.k(), self.0.n()], reals)
    }
}

/// `a [rows, k]` times packed weights, plus `bias`, into `out [rows, n]`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the flat form; matmul.py has the options")]
pub(crate) fn matmul_blocked(
    py: Python<'_>,
    a: Reals<'_>,
    rows: usize,
    b: &BlockedMatrix,
    activations: &str,
    bias: Reals<'_>,
    mut out: PyReadwriteArrayDyn<'_, f32>,
    threads: usize,
) -> PyResult<()> {
    let activations: Activations = activations.parse().map_err(|error| to_py(&error))?;
    let (a, bias, out) = (slice(&a)?, slice(&bias)?, out.as_slice_mut()?);
    detached(py, || matmul(a, rows, &b.0, activations, bias, out, threads))
}
