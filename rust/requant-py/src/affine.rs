//! Affine maps and packing on numpy arrays.

use numpy::{
    PyArrayDyn, PyArrayMethods, PyReadonlyArray2, PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArrayMethods,
};
use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    pybacked::PyBackedStr,
    types::{PyFloat, PyInt},
};
use requant_core::{
    Granularity, QuantScheme, QuantType, Range,
    affine::{self, Affine},
    pack as packing,
};

use crate::{
    arrays::{moved, slice},
    guard::{detached, to_py},
    reals::{IntegerArray, IntegerArrayMut, RealArray, RealArrayMut},
};

type Reals<'py> = PyReadonlyArrayDyn<'py, f32>;
type Pair<'py, A, B> = (Bound<'py, PyArrayDyn<A>>, Bound<'py, PyArrayDyn<B>>);

/// The integer type of a name.
pub(crate) fn parse(dtype: &str) -> PyResult<QuantType> {
    dtype.parse().map_err(|error| to_py(&error))
}

fn granularity(axis: Option<usize>, block_size: Option<usize>) -> Granularity {
    match (axis, block_size) {
        (None, _) => Granularity::PerTensor,
        (Some(axis), None) => Granularity::PerChannel { axis },
        (Some(axis), Some(block_size)) => Granularity::PerBlock { axis, block_size },
    }
}

/// Scale and zero point of each range.
#[pyfunction]
pub(crate) fn affine_params<'py>(
    py: Python<'py>,
    lo: Reals<'py>,
    hi: Reals<'py>,
    dtype: &str,
    symmetric: bool,
    narrow: bool,
) -> PyResult<Pair<'py, f32, i32>> {
    let scheme = QuantScheme {
        dtype: parse(dtype)?,
        symmetric,
        narrow,
    };
    let (lows, highs) = (slice(&lo)?, slice(&hi)?);
    if lo.shape() != hi.shape() {
        let message = format!("lo has shape {:?}, hi has shape {:?}", lo.shape(), hi.shape());
        return Err(PyTypeError::new_err(message));
    }
    let (scale, zero_point) = detached(py, || {
        let params = lows
            .iter()
            .zip(highs)
            .map(|(&lo, &hi)| affine::params(Range { lo, hi }, scheme));
        params
            .map(|p| p.map(|p| (p.scale, p.zero_point)))
            .collect::<Result<(Vec<_>, Vec<_>), _>>()
    })?;
    Ok((moved(py, lo.shape(), scale)?, moved(py, lo.shape(), zero_point)?))
}

/// Smallest and largest value of each slice.
#[pyfunction]
pub(crate) fn slice_ranges<'py>(
    py: Python<'py>,
    x: Reals<'py>,
    axis: Option<usize>,
    block_size: Option<usize>,
) -> PyResult<Pair<'py, f32, f32>> {
    let (shape, values, granularity) = (x.shape(), slice(&x)?, granularity(axis, block_size));
    let ranges = detached(py, || affine::slice_ranges(values, shape, granularity))?;
    let shape = match granularity {
        Granularity::PerChannel { axis } => vec![shape[axis]],
        Granularity::PerBlock { axis, block_size } => {
            let mut blocked = shape.to_vec();
            blocked[axis] = blocked[axis].div_ceil(block_size);
            blocked
        }
        Granularity::PerTensor | Granularity::PerToken => vec![],
    };
    let (lo, hi) = ranges.into_iter().map(|range| (range.lo, range.hi)).unzip();
    Ok((moved(py, &shape, lo)?, moved(py, &shape, hi)?))
}

/// The largest magnitude of each row or column of a matrix, or of a sum of two neighbours in it.
#[pyfunction]
pub(crate) fn largest_terms<'py>(
    py: Python<'py>,
    x: PyReadonlyArray2<'py, f32>,
    axis: usize,
    pairs: bool,
) -> PyResult<Bound<'py, PyArrayDyn<f64>>> {
    let (shape, values) = ([x.shape()[0], x.shape()[1]], x.as_slice()?);
    let peaks = detached(py, || affine::largest_terms(values, shape, axis, pairs))?;
    moved(py, &[peaks.len()], peaks)
}

/// One scale, or an array of them.
pub(crate) enum ScaleValues<'py> {
    One([f32; 1]),
    Many(Reals<'py>),
}

impl ScaleValues<'_> {
    fn slice(&self) -> PyResult<&[f32]> {
        match self {
            Self::One(value) => Ok(value),
            Self::Many(values) => slice(values),
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for ScaleValues<'py> {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(match value.cast::<PyFloat>() {
            Ok(value) => Self::One([value.extract()?]),
            Err(_) => Self::Many(value.extract()?),
        })
    }
}

/// One zero point, or an array of them; as int32 where they were held in the integers of their type.
pub(crate) enum ZeroPointValues<'py> {
    One([i32; 1]),
    Many(PyReadonlyArrayDyn<'py, i32>),
    Widened(Vec<i32>),
}

impl ZeroPointValues<'_> {
    fn slice(&self) -> PyResult<&[i32]> {
        match self {
            Self::One(value) => Ok(value),
            Self::Many(values) => slice(values),
            Self::Widened(values) => Ok(values),
        }
    }
}

impl<'py> FromPyObject<'_, 'py> for ZeroPointValues<'py> {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(value) = value.cast::<PyInt>() {
            return Ok(Self::One([value.extract()?]));
        }
        if let Ok(values) = value.cast::<PyArrayDyn<i32>>() {
            return Ok(Self::Many(values.try_readonly()?));
        }
        Ok(Self::Widened(IntegerArray::new(&value)?.integers()?.to_i32()))
    }
}

/// How a call quantizes, and where: the flat form of a scheme; `requant/arrays/affine.py` has the value types.
#[derive(FromPyObject)]
pub(crate) struct Spec<'py>(
    ScaleValues<'py>,
    ZeroPointValues<'py>,
    PyBackedStr,
    Option<usize>,
    Option<usize>,
    bool,
    PyBackedStr,
    usize,
);

impl Spec<'_> {
    fn lay_over(&self, shape: &[usize]) -> PyResult<Affine<'_>> {
        let Self(scale, zero_point, dtype, axis, block_size, narrow, rounding, threads) = self;
        let (granularity, dtype) = (granularity(*axis, *block_size), parse(dtype)?);
        let rounding = rounding.parse().map_err(|error| to_py(&error))?;
        Affine::new(shape, granularity, dtype, *narrow, scale.slice()?, zero_point.slice()?)
            .map(|map| map.with_rounding(rounding).with_threads(*threads))
            .map_err(|error| to_py(&error))
    }
}

/// The integer of each real.
#[pyfunction]
pub(crate) fn quantize(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    spec: Spec<'_>,
    out: &Bound<'_, PyAny>,
    packed: bool,
) -> PyResult<()> {
    let x = RealArray::new(x)?;
    let (reals, map) = (x.reals()?, spec.lay_over(x.shape())?);
    if packed {
        let mut out: PyReadwriteArrayDyn<'_, u8> = out.extract()?;
        let bytes = out.as_slice_mut()?;
        return detached(py, || map.quantize_packed(reals, bytes));
    }
    let mut out = IntegerArrayMut::new(out)?;
    let integers = out.integers()?;
    detached(py, || map.quantize(reals, integers))
}

/// The real of each integer.
#[pyfunction]
pub(crate) fn dequantize(
    py: Python<'_>,
    q: &Bound<'_, PyAny>,
    spec: Spec<'_>,
    out: &Bound<'_, PyAny>,
    packed: bool,
) -> PyResult<()> {
    let mut out = RealArrayMut::new(out)?;
    let map = spec.lay_over(out.shape())?;
    let reals = out.reals()?;
    if packed {
        let q: PyReadonlyArrayDyn<'_, u8> = q.extract()?;
        let bytes = slice(&q)?;
        return detached(py, || map.dequantize_packed(bytes, reals));
    }
    let q = IntegerArray::new(q)?;
    let integers = q.integers()?;
    detached(py, || map.dequantize(integers, reals))
}

/// Quantize, then dequantize, and where nothing was clamped.
#[pyfunction]
pub(crate) fn fake_quantize(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    spec: Spec<'_>,
    out: &Bound<'_, PyAny>,
    mask: Option<PyReadwriteArrayDyn<'_, bool>>,
) -> PyResult<()> {
    let (x, mut out) = (RealArray::new(x)?, RealArrayMut::new(out)?);
    let (reals, map, fake) = (x.reals()?, spec.lay_over(x.shape())?, out.reals()?);
    match mask {
        None => detached(py, || map.fake_quantize(reals, fake)),
        Some(mut mask) => {
            let mask = mask.as_slice_mut()?;
            detached(py, || map.fake_quantize_with_mask(reals, fake, mask))
        }
    }
}

/// The range of reals, the sum of their squares, and that of their distances from the reals of integers.
#[pyfunction]
pub(crate) fn rounding_error(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    q: &Bound<'_, PyAny>,
    spec: Spec<'_>,
) -> PyResult<(f32, f32, f64, f64)> {
    let (x, q) = (RealArray::new(x)?, IntegerArray::new(q)?);
    let (reals, integers, map) = (x.reals()?, q.integers()?, spec.lay_over(x.shape())?);
    let found = detached(py, || map.rounding_error(reals, integers))?;
    Ok((found.range.lo, found.range.hi, found.signal, found.noise))
}

/// Several integers of 2 or 4 bits to a byte.
#[pyfunction]
pub(crate) fn pack(
    py: Python<'_>,
    q: &Bound<'_, PyAny>,
    dtype: &str,
    mut out: PyReadwriteArrayDyn<'_, u8>,
) -> PyResult<()> {
    let (q, dtype, bytes) = (IntegerArray::new(q)?, parse(dtype)?, out.as_slice_mut()?);
    let integers = q.integers()?;
    detached(py, || packing::pack_into(integers, dtype, bytes))
}

/// The inverse of `pack`.
#[pyfunction]
pub(crate) fn unpack(
    py: Python<'_>,
    data: PyReadonlyArrayDyn<'_, u8>,
    dtype: &str,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (bytes, dtype, mut out) = (slice(&data)?, parse(dtype)?, IntegerArrayMut::new(out)?);
    let integers = out.integers()?;
    detached(py, || packing::unpack_into(bytes, dtype, integers))
}
