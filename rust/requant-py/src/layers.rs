//! Pooling, residual addition and look-up tables on numpy arrays.

use numpy::{PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::{exceptions::PyTypeError, prelude::*};
use requant_core::{
    QuantParams, QuantType,
    arrays::{Bytes, BytesMut},
    conv::{Images, Window},
    elementwise::{Addition, Table},
    pool::{self, Average},
};

use crate::{
    arrays::slice,
    gemm::ByteArray,
    guard::{detached, to_py},
};

/// Borrowed int8 or uint8, to be written.
enum ByteArrayMut<'py> {
    U8(PyReadwriteArrayDyn<'py, u8>),
    I8(PyReadwriteArrayDyn<'py, i8>),
}

impl<'py> ByteArrayMut<'py> {
    fn new(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        Ok(match array.extract() {
            Ok(array) => Self::U8(array),
            Err(_) => Self::I8(array.extract()?),
        })
    }

    fn bytes(&mut self) -> PyResult<BytesMut<'_>> {
        Ok(match self {
            Self::U8(array) => BytesMut::U8(array.as_slice_mut()?),
            Self::I8(array) => BytesMut::I8(array.as_slice_mut()?),
        })
    }
}

/// Scale and zero point.
type Params = (f32, i32);

fn params((scale, zero_point): Params) -> QuantParams {
    QuantParams { scale, zero_point }
}

fn dtype(x: Bytes<'_>) -> QuantType {
    match x {
        Bytes::U8(_) => QuantType::U8,
        Bytes::I8(_) => QuantType::I8,
    }
}

/// `out = a + b` of one dtype.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the flat form; layers.py has the options")]
pub(crate) fn add(
    py: Python<'_>,
    a: &Bound<'_, PyAny>,
    b: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    a_params: Params,
    b_params: Params,
    y_params: Params,
    clamp: Option<(i32, i32)>,
) -> PyResult<()> {
    let (a, b, mut out) = (ByteArray::new(a)?, ByteArray::new(b)?, ByteArrayMut::new(out)?);
    let (a, b, out) = (a.bytes()?, b.bytes()?, out.bytes()?);
    detached(py, || {
        let mut sum = Addition::new(dtype(a), params(a_params), params(b_params), params(y_params))?;
        if let Some((min, max)) = clamp {
            sum = sum.with_clamp(min, max)?;
        }
        sum.apply(a, b, out)
    })
}

/// `out[i] = table[x[i]]`; the table's 256 bytes are in the order of the bits of `x`.
#[pyfunction]
pub(crate) fn look_up(
    py: Python<'_>,
    table: PyReadonlyArrayDyn<'_, u8>,
    x: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (x, mut out) = (ByteArray::new(x)?, ByteArrayMut::new(out)?);
    let (x, out) = (x.bytes()?, out.bytes()?);
    let Ok(bits) = <[u8; 256]>::try_from(slice(&table)?) else {
        return Err(PyTypeError::new_err("expected a table of 256 bytes"));
    };
    let y = match out {
        BytesMut::U8(_) => QuantType::U8,
        BytesMut::I8(_) => QuantType::I8,
    };
    detached(py, || Table::from_bits(dtype(x), y, bits)?.apply(x, out))
}

/// Kernel, strides, dilations and pads, as ONNX names them.
type Attributes = ([usize; 2], [usize; 2], [usize; 2], [usize; 4]);

fn windows((kernel, strides, dilations, pads): Attributes) -> requant_core::Result<[Window; 2]> {
    Window::both(kernel, strides, dilations, pads)
}

/// The largest integers of `x [n, h, w, c]` under windows.
#[pyfunction]
pub(crate) fn max_pool(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    shape: [usize; 4],
    attributes: Attributes,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (x, mut out) = (ByteArray::new(x)?, ByteArrayMut::new(out)?);
    let images = Images::new(x.bytes()?, shape, 0);
    let images = images.map_err(|error| to_py(&error))?;
    let out = out.bytes()?;
    detached(py, || pool::max_pool(images, windows(attributes)?, out))
}

/// The averages of `x [n, h, w, c]` under windows.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the flat form; layers.py has the options")]
pub(crate) fn average_pool(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    shape: [usize; 4],
    attributes: Attributes,
    include_pad: bool,
    x_params: Params,
    y_params: Params,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (x, mut out) = (ByteArray::new(x)?, ByteArrayMut::new(out)?);
    let images = Images::new(x.bytes()?, shape, x_params.1).map_err(|error| to_py(&error))?;
    let (out, average) = (out.bytes()?, average(x_params, y_params, include_pad));
    detached(py, || pool::average_pool(images, windows(attributes)?, average, out))
}

/// The averages of the channels of `x [n, h, w, c]`.
#[pyfunction]
pub(crate) fn global_average_pool(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    shape: [usize; 4],
    x_params: Params,
    y_params: Params,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (x, mut out) = (ByteArray::new(x)?, ByteArrayMut::new(out)?);
    let images = Images::new(x.bytes()?, shape, x_params.1).map_err(|error| to_py(&error))?;
    let (out, average) = (out.bytes()?, average(x_params, y_params, true));
    detached(py, || pool::global_average_pool(images, average, out))
}

fn average((x_scale, _): Params, y_params: Params, include_pad: bool) -> Average {
    Average {
        x_scale,
        y: params(y_params),
        include_pad,
    }
}
