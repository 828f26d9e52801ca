//! Integer matrix products on numpy arrays.

use numpy::{PyArrayDyn, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::{exceptions::PyTypeError, prelude::*};
use requant_core::{
    arrays::{Bytes, Matrix},
    gemm::{self, Dequantize, Output},
    requantize::{self, Scales},
};

use crate::{
    affine::parse,
    arrays::{moved, slice},
    guard::{detached, to_py},
};

pub(crate) type Reals<'py> = PyReadonlyArrayDyn<'py, f32>;
pub(crate) type Ints<'py> = PyReadonlyArrayDyn<'py, i32>;

/// Borrowed int8 or uint8.
pub(crate) enum ByteArray<'py> {
    U8(PyReadonlyArrayDyn<'py, u8>),
    I8(PyReadonlyArrayDyn<'py, i8>),
}

impl<'py> ByteArray<'py> {
    pub(crate) fn new(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        Ok(match array.extract() {
            Ok(array) => Self::U8(array),
            Err(_) => Self::I8(array.extract()?),
        })
    }

    pub(crate) fn bytes(&self) -> PyResult<Bytes<'_>> {
        Ok(match self {
            Self::U8(array) => Bytes::U8(slice(array)?),
            Self::I8(array) => Bytes::I8(slice(array)?),
        })
    }
}

/// An 8-bit matrix packed for products from the left.
#[pyclass(frozen, module = "requant._requant")]
pub(crate) struct PackedMatrix(gemm::PackedWeights);

#[pymethods]
impl PackedMatrix {
    #[new]
    fn new(py: Python<'_>, b: &Bound<'_, PyAny>, k: usize, n: usize, zero_point: Ints<'_>) -> PyResult<Self> {
        let (b, zero_point) = (ByteArray::new(b)?, slice(&zero_point)?);
        let b = Matrix::new(b.bytes()?, k, n).map_err(|error| to_py(&error))?;
        detached(py, || gemm::PackedWeights::new(b, zero_point).map(Self))
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
    fn kernel(&self) -> &'static str {
        self.0.kernel().name()
    }

    fn unpack<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
        let bits = detached(py, || Ok(self.0.unpack()))?;
        moved(py, &[self.0.k(), self.0.n()], bits)
    }
}

/// Turns int32 sums into 8-bit integers.
#[pyclass(frozen, module = "requant._requant")]
pub(crate) struct Requantizer(requantize::Requantizer);

#[pymethods]
impl Requantizer {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "the flat form; matmul.py has the options")]
    fn new(
        rounding: &str,
        a_scale: f32,
        b_scale: Reals<'_>,
        y_scale: f32,
        dtype: &str,
        zero_point: i32,
        bias: Option<Ints<'_>>,
        clamp: Option<(i32, i32)>,
    ) -> PyResult<Self> {
        let scales = Scales {
            a: a_scale,
            b: slice(&b_scale)?,
            y: y_scale,
        };
        let rounding = rounding.parse().map_err(|error| to_py(&error))?;
        let new = requantize::Requantizer::new(rounding, scales, parse(dtype)?, zero_point);
        let mut requantizer = new.map_err(|error| to_py(&error))?;
        if let Some(bias) = &bias {
            requantizer = requantizer.with_bias(slice(bias)?.to_vec());
        }
        if let Some((min, max)) = clamp {
            requantizer = requantizer.with_clamp(min, max).map_err(|error| to_py(&error))?;
        }
        Ok(Self(requantizer))
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.dtype().name()
    }
}

/// `a [rows, k]`, its rows `stride` bytes apart, times packed weights, into `out [rows, n]`, whose dtype says what is
/// made of the sums.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the flat form; matmul.py has the options")]
pub(crate) fn matmul(
    py: Python<'_>,
    a: &Bound<'_, PyAny>,
    rows: usize,
    stride: usize,
    a_zero_point: Ints<'_>,
    b: &PackedMatrix,
    out: &Bound<'_, PyAny>,
    scales: Option<Scaling<'_>>,
    requantizer: Option<&Requantizer>,
    threads: usize,
) -> PyResult<()> {
    let (a, zero_point) = (ByteArray::new(a)?, slice(&a_zero_point)?);
    let a = Matrix::with_stride(a.bytes()?, rows, b.0.k(), stride).map_err(|error| to_py(&error))?;
    let run = |output: Output<'_>| detached(py, || gemm::matmul(a, zero_point, &b.0, output, threads));
    write(out, scales, requantizer, run)
}

/// Scale of the left operand, scale of the right one, and bias.
pub(crate) type Scaling<'py> = (Reals<'py>, Reals<'py>, Reals<'py>);

/// Has `run` write `out`, whose dtype says what is made of the sums.
pub(crate) fn write(
    out: &Bound<'_, PyAny>,
    scales: Option<Scaling<'_>>,
    requantizer: Option<&Requantizer>,
    run: impl FnOnce(Output<'_>) -> PyResult<()>,
) -> PyResult<()> {
    match (scales, requantizer) {
        (None, None) => {
            let mut out: PyReadwriteArrayDyn<'_, i32> = out.extract()?;
            run(Output::I32(out.as_slice_mut()?))
        }
        (Some((a, b, bias)), None) => {
            let mut out: PyReadwriteArrayDyn<'_, f32> = out.extract()?;
            let scales = Dequantize {
                a: slice(&a)?,
                b: slice(&b)?,
                bias: slice(&bias)?,
            };
            run(Output::F32(out.as_slice_mut()?, scales))
        }
        (None, Some(requantizer)) if requantizer.0.dtype().signed() => {
            let mut out: PyReadwriteArrayDyn<'_, i8> = out.extract()?;
            run(Output::I8(out.as_slice_mut()?, &requantizer.0))
        }
        (None, Some(requantizer)) => {
            let mut out: PyReadwriteArrayDyn<'_, u8> = out.extract()?;
            run(Output::U8(out.as_slice_mut()?, &requantizer.0))
        }
        _ => Err(PyTypeError::new_err("expected scales or a requantizer, got both")),
    }
}
