//! What this CPU can do.

use std::thread;

use pyo3::{prelude::*, types::PyDict};
use requant_core::kernels::{self, Kernels};

use crate::guard::to_py;

/// The architecture, the features detected, the kernels in use and available, and the number of cores.
#[pyfunction]
pub(crate) fn cpu_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("arch", std::env::consts::ARCH)?;
    info.set_item("features", features())?;
    info.set_item("kernels", kernels::active().map_err(|error| to_py(&error))?.name())?;
    info.set_item("available", kernels::available().map(Kernels::name).collect::<Vec<_>>())?;
    info.set_item("cores", thread::available_parallelism().map_or(1, usize::from))?;
    Ok(info)
}

/// Calls the standard library's detector for each name, which takes literals only.
macro_rules! detected {
    ($detector:path: $($name:tt),* $(,)?) => {{
        use $detector as detector;
        [$(($name, detector!($name))),*].into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
    }};
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    detected!(std::is_x86_feature_detected: "sse4.1", "avx", "f16c", "fma", "avx2", "avxvnni", "avx512f", "avx512bw", "avx512vnni")
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    detected!(std::arch::is_aarch64_feature_detected: "neon", "dotprod", "i8mm", "sve")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}
