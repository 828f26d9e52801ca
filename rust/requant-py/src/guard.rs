//! The way into the core: without the interpreter, with every failure turned into a Python exception.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use pyo3::{import_exception, prelude::*};
use requant_core::Error;

import_exception!(requant.errors, CalibrationError);
import_exception!(requant.errors, ConfigError);
import_exception!(requant.errors, DataError);
import_exception!(requant.errors, InternalError);

/// Runs `work` detached from the interpreter. An error of the core becomes a `requant.errors` exception, and so does
/// a panic, which is a bug: pyo3's `PanicException` would escape `except Exception`.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> requant_core::Result<T> + Send) -> PyResult<T> {
    // What `work` borrows is dropped on its panic or is written only on success, so nothing half-made is seen.
    outcome(py.detach(|| catch_unwind(AssertUnwindSafe(work))))
}

/// The same for work that takes less time than to detach.
pub(crate) fn attached<T>(work: impl FnOnce() -> T) -> PyResult<T> {
    outcome(catch_unwind(AssertUnwindSafe(|| Ok(work()))))
}

fn outcome<T>(result: thread::Result<requant_core::Result<T>>) -> PyResult<T> {
    match result {
        Ok(result) => result.map_err(|error| to_py(&error)),
        Err(panic) => Err(InternalError::new_err(format!(
            "panic in the core: {}",
            panic_message(&*panic)
        ))),
    }
}

/// The Python exception for an error of the core.
pub(crate) fn to_py(error: &Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::NonFinite { .. } | Error::Magnitude { .. } => DataError::new_err(message),
        Error::Range { .. } | Error::Empty | Error::Damaged(_) => CalibrationError::new_err(message),
        _ => ConfigError::new_err(message),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let message = panic.downcast_ref::<&str>().copied();
    message
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
