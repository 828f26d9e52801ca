//! Rounding of weights by what it does to a layer's output.

use numpy::{PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use requant_core::reconstruction::{self, Bounds, Moments};

use crate::{arrays::slice, guard::detached};

/// Integers of `weights [n, k]` into `out`, scales into `scales [n]`; returns the error before and after.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the flat form; rounding.py has the options")]
pub(crate) fn reconstruct(
    py: Python<'_>,
    weights: PyReadonlyArrayDyn<'_, f32>,
    moments: PyReadonlyArrayDyn<'_, f32>,
    mut scales: PyReadwriteArrayDyn<'_, f32>,
    magnitude: u8,
    pair: Option<u8>,
    search: bool,
    threads: usize,
    mut out: PyReadwriteArrayDyn<'_, i8>,
) -> PyResult<(f64, f64)> {
    let [groups, k, _] = *moments.shape() else {
        return Err(pyo3::exceptions::PyTypeError::new_err("expected moments of three axes"));
    };
    let (weights, moments) = (slice(&weights)?, slice(&moments)?);
    let (scales, out) = (scales.as_slice_mut()?, out.as_slice_mut()?);
    let gain = detached(py, || {
        let moments = Moments::new(moments, groups, k)?;
        let bounds = Bounds { magnitude, pair };
        reconstruction::reconstruct(weights, moments, scales, bounds, search, threads, out)
    })?;
    Ok((gain.nearest, gain.chosen))
}
