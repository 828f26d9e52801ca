//! Convolution of numpy arrays, channels last.

use numpy::PyArrayDyn;
use pyo3::prelude::*;
use requant_core::conv::{self, Filters, Geometry, Images, PackedConv};

use crate::{
    arrays::{moved, slice},
    gemm::{ByteArray, Ints, Requantizer, Scaling, write},
    guard::{detached, to_py},
};

/// The filters of a convolution, packed for any number of images.
#[pyclass(frozen, module = "requant._requant")]
pub(crate) struct PackedFilters(PackedConv);

#[pymethods]
impl PackedFilters {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "the flat form; conv.py has the options")]
    fn new(
        py: Python<'_>,
        w: &Bound<'_, PyAny>,
        shape: [usize; 4],
        zero_point: Ints<'_>,
        strides: [usize; 2],
        dilations: [usize; 2],
        pads: [usize; 4],
        groups: usize,
    ) -> PyResult<Self> {
        let (w, zero_point) = (ByteArray::new(w)?, slice(&zero_point)?);
        let filters = Filters {
            data: w.bytes()?,
            shape,
            zero_point,
        };
        let geometry = Geometry {
            strides,
            dilations,
            pads,
            groups,
        };
        detached(py, || PackedConv::new(filters, geometry).map(Self))
    }

    #[getter]
    fn shape(&self) -> (usize, usize, usize, usize) {
        self.0.shape().into()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.dtype().name()
    }

    #[getter]
    fn kernel(&self) -> &'static str {
        self.0.kernel()
    }

    fn output_shape(&self, images: [usize; 4]) -> PyResult<(usize, usize, usize, usize)> {
        let shape = self.0.output_shape(images).map_err(|error| to_py(&error))?;
        Ok(shape.into())
    }

    fn unpack<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArrayDyn<u8>>> {
        let bits = detached(py, || Ok(self.0.unpack()))?;
        moved(py, &self.0.shape(), bits)
    }
}

/// `x [n, h, w, c]` with packed filters into `out`, whose dtype says what is made of the sums.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the flat form; conv.py has the options")]
pub(crate) fn conv2d(
    py: Python<'_>,
    x: &Bound<'_, PyAny>,
    shape: [usize; 4],
    zero_point: i32,
    filters: &PackedFilters,
    out: &Bound<'_, PyAny>,
    scales: Option<Scaling<'_>>,
    requantizer: Option<&Requantizer>,
    threads: usize,
) -> PyResult<()> {
    let x = ByteArray::new(x)?;
    let images = Images::new(x.bytes()?, shape, zero_point).map_err(|error| to_py(&error))?;
    write(out, scales, requantizer, |output| {
        detached(py, || conv::conv2d(images, &filters.0, output, threads))
    })
}
