//! Low-bit weights in blocks on numpy arrays.

use numpy::{PyArrayDyn, PyReadonlyArrayDyn, PyReadwriteArrayDyn};
use pyo3::prelude::*;
use requant_core::weights::{
    Algorithm, BlockScheme, BlockView, BlockViewMut, BlockWeights, Gptq, Layout, Rows, quantize_into,
};

use crate::{
    arrays::{moved, slice},
    guard::{detached, to_py},
};

type Reals<'py> = PyReadonlyArrayDyn<'py, f32>;
type Bytes<'py> = PyReadonlyArrayDyn<'py, u8>;

/// Bits, block size (0 for whole rows) and symmetry.
type Scheme = (u32, usize, bool);

/// Packed integers, scales, and packed zero points where the scheme has them.
type Parts<'py> = (
    Bound<'py, PyArrayDyn<u8>>,
    Bound<'py, PyArrayDyn<f32>>,
    Option<Bound<'py, PyArrayDyn<u8>>>,
);

fn scheme((bits, block_size, symmetric): Scheme) -> PyResult<BlockScheme> {
    BlockScheme::new(bits, block_size, symmetric).map_err(|error| to_py(&error))
}

fn rows<'a>(values: &'a Reals<'_>, shape: (usize, usize), transposed: bool) -> PyResult<Rows<'a>> {
    let layout = if transposed { Layout::Columns } else { Layout::Rows };
    Rows::new(slice(values)?, shape, layout).map_err(|error| to_py(&error))
}

fn parts(py: Python<'_>, weights: BlockWeights, (n, k): (usize, usize)) -> PyResult<Parts<'_>> {
    let scheme = weights.scheme();
    let blocks = scheme.blocks(k);
    let (data, scales, zero_points) = weights.into_parts();
    let zero_points = if scheme.symmetric() {
        None
    } else {
        Some(moved(py, &[n, scheme.bytes(blocks)], zero_points)?)
    };
    Ok((
        moved(py, &[n, blocks, scheme.block_bytes(k)], data)?,
        moved(py, &[n, blocks], scales)?,
        zero_points,
    ))
}

/// [`Parts`] to be written.
type PartsMut<'py> = (
    PyReadwriteArrayDyn<'py, u8>,
    PyReadwriteArrayDyn<'py, f32>,
    Option<PyReadwriteArrayDyn<'py, u8>>,
);

/// Quantizes `values`, `[n, k]` or, transposed, `[k, n]`, block by block, into `out`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the flat form; lowbit.py has the options")]
pub(crate) fn quantize_blocks(
    py: Python<'_>,
    values: Reals<'_>,
    shape: (usize, usize),
    transposed: bool,
    scheme: Scheme,
    algorithm: &str,
    importance: Option<Reals<'_>>,
    out: PartsMut<'_>,
    threads: usize,
) -> PyResult<()> {
    let rows = rows(&values, shape, transposed)?;
    let algorithm = Algorithm::by_name(algorithm).map_err(|error| to_py(&error))?;
    let importance = importance.as_ref().map(slice).transpose()?;
    let (mut data, mut scales, mut zero_points) = out;
    let zero_points = zero_points.as_mut().map(PyReadwriteArrayDyn::as_slice_mut);
    let out = BlockViewMut {
        scheme: self::scheme(scheme)?,
        n: shape.0,
        k: shape.1,
        data: data.as_slice_mut()?,
        scales: scales.as_slice_mut()?,
        zero_points: zero_points.transpose()?.unwrap_or_default(),
    };
    detached(py, || quantize_into(rows, algorithm, importance, out, threads))
}

/// Damping, `act_order` and `static_groups`.
type Options = (f64, bool, bool);

/// Quantizes `values`, as [`quantize_blocks`] takes them, by `hessian [k, k]`; also gives the damping that it took.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the flat form; lowbit.py has the options")]
pub(crate) fn gptq<'py>(
    py: Python<'py>,
    values: Reals<'py>,
    shape: (usize, usize),
    transposed: bool,
    hessian: PyReadonlyArrayDyn<'py, f64>,
    scheme: Scheme,
    algorithm: &str,
    options: Options,
    threads: usize,
) -> PyResult<(Parts<'py>, f64)> {
    let (rows, scheme) = (rows(&values, shape, transposed)?, self::scheme(scheme)?);
    let (damping, act_order, static_groups) = options;
    let gptq = Gptq {
        algorithm: Algorithm::by_name(algorithm).map_err(|error| to_py(&error))?,
        damping,
        act_order,
        static_groups,
    };
    let hessian = slice(&hessian)?;
    let (weights, damping) = detached(py, || gptq.quantize(rows, hessian, scheme, threads))?;
    Ok((parts(py, weights, shape)?, damping))
}

/// Packed integers, scales, and packed zero points, as [`quantize_blocks`] gives them.
type Stored<'py> = (Bytes<'py>, Reals<'py>, Option<Bytes<'py>>);

fn view<'a>(stored: &'a Stored<'_>, (n, k): (usize, usize), scheme: Scheme) -> PyResult<BlockView<'a>> {
    let (data, scales, zero_points) = stored;
    let zero_points = zero_points.as_ref().map(slice).transpose()?;
    Ok(BlockView {
        scheme: self::scheme(scheme)?,
        n,
        k,
        data: slice(data)?,
        scales: slice(scales)?,
        zero_points: zero_points.unwrap_or_default(),
    })
}

/// The reals, into `out [n, k]`.
#[pyfunction]
pub(crate) fn dequantize_blocks(
    py: Python<'_>,
    stored: Stored<'_>,
    shape: (usize, usize),
    scheme: Scheme,
    mut out: PyReadwriteArrayDyn<'_, f32>,
) -> PyResult<()> {
    let (view, out) = (view(&stored, shape, scheme)?, out.as_slice_mut()?);
    detached(py, || view.dequantize_into(out))
}

/// The stored integers, one to a byte, `[n, k]` or, transposed, `[k, n]`, and zero points `[n, blocks]`.
#[pyfunction]
pub(crate) fn unpack_blocks<'py>(
    py: Python<'py>,
    stored: Stored<'py>,
    shape: (usize, usize),
    scheme: Scheme,
    transposed: bool,
) -> PyResult<[Bound<'py, PyArrayDyn<u8>>; 2]> {
    let (view, (n, k)) = (view(&stored, shape, scheme)?, shape);
    let (codes, zero_points) = detached(py, || {
        view.check()?;
        Ok((view.codes(transposed), view.unpacked_zero_points()))
    })?;
    let shape = if transposed { [k, n] } else { [n, k] };
    Ok([
        moved(py, &shape, codes)?,
        moved(py, &[n, view.scheme.blocks(k)], zero_points)?,
    ])
}
