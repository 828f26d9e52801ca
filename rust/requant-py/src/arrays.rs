//! Borrowed and new numpy arrays.

use numpy::{Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::{exceptions::PyTypeError, prelude::*};

/// The elements of a C-contiguous, aligned array.
pub(crate) fn slice<'a, T: Element>(array: &'a PyReadonlyArrayDyn<'_, T>) -> PyResult<&'a [T]> {
    match array.as_slice() {
        // numpy also accepts Fortran order here, whose elements lie in another order.
        Ok(slice) if array.is_c_contiguous() => Ok(slice),
        _ => Err(PyTypeError::new_err("expected a C-contiguous, aligned array")),
    }
}

/// A new array that takes the memory of `values`.
pub(crate) fn moved<'py, T: Element>(
    py: Python<'py>,
    shape: &[usize],
    values: Vec<T>,
) -> PyResult<Bound<'py, PyArrayDyn<T>>> {
    numpy::PyArray1::from_vec(py, values).reshape(shape)
}
