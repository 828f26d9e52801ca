//! Affine maps and packing on numpy arrays.

use numpy::{Element, PyArrayDyn, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::{exceptions::PyTypeError, prelude::*};
use requant_core::{
    Granularity, QuantScheme, QuantType, Range,
    affine::{self, Affine, Integer},
    pack,
};

use crate::{
    arrays::{filled, moved, slice},
    guard::{detached, to_py},
};

type Reals<'py> = PyReadonlyArrayDyn<'py, f32>;
type ZeroPoints<'py> = PyReadonlyArrayDyn<'py, i32>;
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

/// The integer of each real.
#[pyfunction]
#[expect(
    clippy::too_many_arguments,
    reason = "the flat form of a scheme; ops.py has the value types"
)]
pub(crate) fn quantize<'py>(
    py: Python<'py>,
    x: Reals<'py>,
    scale: Reals<'py>,
    zero_point: ZeroPoints<'py>,
    dtype: &str,
    axis: Option<usize>,
    block_size: Option<usize>,
    narrow: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let (dtype, granularity) = (parse(dtype)?, granularity(axis, block_size));
    let (values, scale, zero_point) = (slice(&x)?, slice(&scale)?, slice(&zero_point)?);
    let map = Affine::new(x.shape(), granularity, dtype, narrow, scale, zero_point).map_err(|error| to_py(&error))?;
    match dtype {
        QuantType::I4 | QuantType::I8 => filled(py, x.shape(), |q: &mut [i8]| detached(py, || map.quantize(values, q))),
        QuantType::U4 | QuantType::U8 => filled(py, x.shape(), |q: &mut [u8]| detached(py, || map.quantize(values, q))),
        QuantType::I16 => filled(py, x.shape(), |q: &mut [i16]| detached(py, || map.quantize(values, q))),
        QuantType::U16 => filled(py, x.shape(), |q: &mut [u16]| detached(py, || map.quantize(values, q))),
    }
}

/// The real of each integer.
#[pyfunction]
pub(crate) fn dequantize<'py>(
    q: &Bound<'py, PyAny>,
    scale: Reals<'py>,
    zero_point: ZeroPoints<'py>,
    axis: Option<usize>,
    block_size: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    let (scale, zero_point) = (slice(&scale)?, slice(&zero_point)?);
    let granularity = granularity(axis, block_size);
    if let Ok(q) = q.extract() {
        dequantize_from::<i8>(q, scale, zero_point, granularity)
    } else if let Ok(q) = q.extract() {
        dequantize_from::<u8>(q, scale, zero_point, granularity)
    } else if let Ok(q) = q.extract() {
        dequantize_from::<i16>(q, scale, zero_point, granularity)
    } else {
        dequantize_from::<u16>(q.extract()?, scale, zero_point, granularity)
    }
}

fn dequantize_from<'py, Q: Integer + Element>(
    q: PyReadonlyArrayDyn<'py, Q>,
    scale: &[f32],
    zero_point: &[i32],
    granularity: Granularity,
) -> PyResult<Bound<'py, PyAny>> {
    let (py, integers) = (q.py(), slice(&q)?);
    let map = Affine::new(q.shape(), granularity, Q::TYPE, false, scale, zero_point).map_err(|error| to_py(&error))?;
    filled(py, q.shape(), |x| detached(py, || map.dequantize(integers, x)))
}

/// Quantize, then dequantize.
#[pyfunction]
#[expect(
    clippy::too_many_arguments,
    reason = "the flat form of a scheme; ops.py has the value types"
)]
pub(crate) fn fake_quantize<'py>(
    py: Python<'py>,
    x: Reals<'py>,
    scale: Reals<'py>,
    zero_point: ZeroPoints<'py>,
    dtype: &str,
    axis: Option<usize>,
    block_size: Option<usize>,
    narrow: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let (values, scale, zero_point) = (slice(&x)?, slice(&scale)?, slice(&zero_point)?);
    let map = Affine::new(
        x.shape(),
        granularity(axis, block_size),
        parse(dtype)?,
        narrow,
        scale,
        zero_point,
    )
    .map_err(|error| to_py(&error))?;
    filled(py, x.shape(), |out| detached(py, || map.fake_quantize(values, out)))
}

/// Two 4-bit integers to a byte.
#[pyfunction]
pub(crate) fn pack_int4<'py>(q: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
    if let Ok(q) = q.extract() {
        pack_from::<i8>(q)
    } else {
        pack_from::<u8>(q.extract()?)
    }
}

fn pack_from<'py, Q: Integer + Element>(q: PyReadonlyArrayDyn<'py, Q>) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
    let (py, integers) = (q.py(), slice(&q)?);
    let bytes = detached(py, || pack::pack_int4(integers))?;
    moved(py, &[bytes.len()], bytes)
}

/// The inverse of `pack_int4`.
#[pyfunction]
pub(crate) fn unpack_int4<'py>(
    py: Python<'py>,
    data: PyReadonlyArrayDyn<'py, u8>,
    count: usize,
    signed: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let bytes = slice(&data)?;
    if signed {
        Ok(moved(py, &[count], detached(py, || pack::unpack_int4::<i8>(bytes, count))?)?.into_any())
    } else {
        Ok(moved(py, &[count], detached(py, || pack::unpack_int4::<u8>(bytes, count))?)?.into_any())
    }
}
