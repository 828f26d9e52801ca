//! Statistics that Python holds, and what is computed from them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use numpy::{PyArray1, PyReadonlyArrayDyn};
use pyo3::{
    prelude::*,
    types::{PyBytes, PyList},
};
use requant_core::{
    QuantParams, QuantScheme, affine, calibration,
    stats::{self, Statistic},
};

use crate::{
    affine::parse,
    arrays::slice,
    guard::{attached, detached},
};

/// Bin edges and counts.
type Histogram<'py> = (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<u64>>);

/// Method, whether symmetric, and the range it chooses.
type Choice = (&'static str, bool, f32, f32);

/// Everything a calibration method needs of a tensor, in constant memory; thread-safe.
///
/// Locks are waited for detached from the interpreter, one at a time: nobody waits for one while holding the GIL or
/// another lock.
#[pyclass(frozen, module = "requant._requant")]
pub(crate) struct TensorStatistics(Mutex<stats::TensorStatistics>);

impl TensorStatistics {
    /// What is counted, to be locked detached from the interpreter.
    pub(crate) fn inner(&self) -> &Mutex<stats::TensorStatistics> {
        &self.0
    }

    /// A panic while the lock was held has been reported as `InternalError`; it does not make each later call one.
    fn lock(&self) -> MutexGuard<'_, stats::TensorStatistics> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something short. Detached only where the lock is taken: to attach again may mean to wait for other threads.
    fn read<T: Send>(&self, py: Python<'_>, f: impl FnOnce(&stats::TensorStatistics) -> T + Send) -> PyResult<T> {
        match self.0.try_lock() {
            Ok(seen) => attached(|| f(&seen)),
            Err(_) => detached(py, || Ok(f(&self.lock()))),
        }
    }
}

#[pymethods]
impl TensorStatistics {
    #[new]
    fn new() -> Self {
        Self(Mutex::default())
    }

    fn observe(&self, py: Python<'_>, x: PyReadonlyArrayDyn<'_, f32>) -> PyResult<()> {
        let x = slice(&x)?;
        detached(py, || {
            self.lock().observe(x);
            Ok(())
        })
    }

    fn merge(&self, py: Python<'_>, other: &Self) -> PyResult<()> {
        detached(py, || {
            let seen = other.lock().clone();
            self.lock().merge(&seen);
            Ok(())
        })
    }

    #[getter]
    fn count(&self, py: Python<'_>) -> PyResult<u64> {
        self.read(py, stats::TensorStatistics::count)
    }

    #[getter]
    fn zeros(&self, py: Python<'_>) -> PyResult<u64> {
        self.read(py, stats::TensorStatistics::zeros)
    }

    #[getter]
    fn nan_count(&self, py: Python<'_>) -> PyResult<u64> {
        self.read(py, stats::TensorStatistics::nan_count)
    }

    #[getter]
    fn inf_count(&self, py: Python<'_>) -> PyResult<u64> {
        self.read(py, stats::TensorStatistics::inf_count)
    }

    #[getter]
    fn min(&self, py: Python<'_>) -> PyResult<f32> {
        self.read(py, stats::TensorStatistics::min)
    }

    #[getter]
    fn max(&self, py: Python<'_>) -> PyResult<f32> {
        self.read(py, stats::TensorStatistics::max)
    }

    #[getter]
    fn mean(&self, py: Python<'_>) -> PyResult<f64> {
        self.read(py, stats::TensorStatistics::mean)
    }

    #[getter]
    fn std(&self, py: Python<'_>) -> PyResult<f64> {
        self.read(py, stats::TensorStatistics::std)
    }

    fn histogram<'py>(&self, py: Python<'py>) -> PyResult<Histogram<'py>> {
        let (edges, counts) = self.read(py, |stats| (stats.histogram().edges(), stats.histogram().counts()))?;
        Ok((PyArray1::from_vec(py, edges), PyArray1::from_vec(py, counts)))
    }

    fn range(
        &self,
        py: Python<'_>,
        method: &str,
        dtype: &str,
        symmetric: bool,
        percentile: f64,
    ) -> PyResult<(f32, f32)> {
        let scheme = QuantScheme {
            dtype: parse(dtype)?,
            symmetric,
            narrow: false,
        };
        let range = detached(py, || calibration::range(&self.lock(), method, scheme, percentile))?;
        Ok((range.lo, range.hi))
    }

    fn ranges(&self, py: Python<'_>, dtype: &str, percentile: f64) -> PyResult<Vec<Choice>> {
        let dtype = parse(dtype)?;
        let choices = detached(py, || calibration::ranges(&self.lock(), dtype, percentile))?;
        Ok(choices
            .into_iter()
            .map(|c| (c.method, c.symmetric, c.range.lo, c.range.hi))
            .collect())
    }

    fn error(&self, py: Python<'_>, scale: f32, zero_point: i32, dtype: &str) -> PyResult<BTreeMap<&'static str, f64>> {
        let dtype = parse(dtype)?;
        let params = QuantParams { scale, zero_point };
        let error = detached(py, || calibration::error(&self.lock(), params, dtype))?;
        Ok(BTreeMap::from([
            ("granular", error.granular),
            ("overload", error.overload),
            ("clipped", error.clipped),
            ("sqnr_db", error.sqnr_db),
        ]))
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.read(py, stats::TensorStatistics::to_bytes)?))
    }

    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        Ok(Self(Mutex::new(detached(py, || {
            stats::TensorStatistics::from_bytes(data)
        })?)))
    }

    fn __getstate__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        self.to_bytes(py)
    }

    fn __setstate__(&self, py: Python<'_>, state: &[u8]) -> PyResult<()> {
        let seen = detached(py, || stats::TensorStatistics::from_bytes(state))?;
        detached(py, || {
            *self.lock() = seen;
            Ok(())
        })
    }

    fn __eq__(&self, py: Python<'_>, other: &Self) -> PyResult<bool> {
        let other = other.read(py, Clone::clone)?;
        self.read(py, |stats| *stats == other)
    }
}

/// `statistics[i].observe(arrays[i])` for all `i`.
#[pyfunction]
pub(crate) fn observe_many<'py>(
    py: Python<'py>,
    statistics: &Bound<'py, PyList>,
    arrays: &Bound<'py, PyList>,
    threads: usize,
) -> PyResult<()> {
    let statistics: Vec<Bound<'py, TensorStatistics>> = statistics.extract()?;
    let arrays: Vec<PyReadonlyArrayDyn<'py, f32>> = arrays.extract()?;
    let pairs = statistics
        .iter()
        .zip(&arrays)
        .map(|(stats, x)| Ok((&stats.get().0, slice(x)?)));
    let pairs = pairs.collect::<PyResult<Vec<_>>>()?;
    detached(py, || {
        stats::observe_many(&pairs, threads);
        Ok(())
    })
}

/// `statistics.observe(x)`; the range of the finite values of `x`, and their summed squared error when quantized over
/// it.
#[pyfunction]
pub(crate) fn observe_request(
    py: Python<'_>,
    statistics: &TensorStatistics,
    x: PyReadonlyArrayDyn<'_, f32>,
    dtype: &str,
) -> PyResult<Option<(f32, f32, f64)>> {
    let (x, dtype) = (slice(&x)?, parse(dtype)?);
    detached(py, || {
        statistics.lock().observe(x);
        let found = affine::dynamic_error(x, dtype)?;
        Ok(found.map(|(range, error)| (range.lo, range.hi, error)))
    })
}
