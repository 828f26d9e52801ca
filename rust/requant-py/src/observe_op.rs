//! `Observe(x)`, an op for onnxruntime that counts a tensor where it lies, and gives nothing.
//!
//! A tensor that is an output is written to memory of its own, and read again from beyond the cache. This op reads it
//! while it is in the cache, and its memory is used again at once. Its attribute `index` says which of the statistics
//! that the thread named before it ran the model ([`observe_here`]) take the values in.
//!
//! onnxruntime finds the op by [`RegisterCustomOps`]. Declared here is what that needs of `onnxruntime_c_api.h`: tables
//! of functions, which only ever grow at the end.

use std::{
    cell::{Cell, RefCell},
    ffi::{CStr, c_char, c_int, c_void},
    mem::offset_of,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr, slice,
    sync::OnceLock,
};

use pyo3::prelude::*;
use requant_core::stats;

use crate::statistics::TensorStatistics;

/// The version of the tables below; onnxruntime 1.17 and later have it.
const VERSION: u32 = 17;
const FLOAT: c_int = 1;
const FAIL: c_int = 1;

/// Statistics that take in what the op sees on this thread.
struct Observed {
    statistics: Vec<Py<TensorStatistics>>,
    threads: usize,
}

thread_local! {
    static OBSERVED: RefCell<Observed> = const { RefCell::new(Observed { statistics: Vec::new(), threads: 1 }) };
    static TENSORS: Cell<u64> = const { Cell::new(0) };
}

/// Let models with `Observe` that this thread runs count in `statistics`, with `threads` threads, until it says others;
/// returns how many tensors were counted since it was last asked.
#[pyfunction]
pub(crate) fn observe_here(statistics: Vec<Py<TensorStatistics>>, threads: usize) -> u64 {
    // The old ones are dropped outside the borrow: that may run anything.
    drop(OBSERVED.replace(Observed { statistics, threads }));
    TENSORS.take()
}

/// Takes `x` into the statistics number `index` of this thread.
fn observe(index: usize, x: &[f32]) -> Result<(), &'static CStr> {
    OBSERVED.with_borrow(|observed| {
        let statistics = observed.statistics.get(index).ok_or(c"no statistics on this thread")?;
        stats::observe_many(&[(statistics.get().inner(), x)], observed.threads);
        TENSORS.set(TENSORS.get() + 1);
        Ok(())
    })
}

/// An error, null for none; whoever receives it owns it.
type Status = *mut c_void;

/// What the header calls `OrtApi`, as far as it is used: entries 0 to 99.
#[repr(C)]
struct Api {
    create_status: unsafe extern "system" fn(c_int, *const c_char) -> Status,
    _1: [usize; 25],
    create_domain: unsafe extern "system" fn(*const c_char, *mut *mut c_void) -> Status,
    add_op: unsafe extern "system" fn(*mut c_void, *const Op) -> Status,
    add_domain: unsafe extern "system" fn(*mut c_void, *mut c_void) -> Status,
    _29: [usize; 22],
    tensor_data: unsafe extern "system" fn(*const c_void, *mut *const f32) -> Status,
    _52: [usize; 12],
    element_count: unsafe extern "system" fn(*const c_void, *mut usize) -> Status,
    shape: unsafe extern "system" fn(*const c_void, *mut *mut c_void) -> Status,
    _66: [usize; 20],
    attribute: unsafe extern "system" fn(*const c_void, *const c_char, *mut i64) -> Status,
    _87: [usize; 3],
    input: unsafe extern "system" fn(*const c_void, usize, *mut *const c_void) -> Status,
    _91: [usize; 8],
    release_shape: unsafe extern "system" fn(*mut c_void),
}

const _: () = assert!(
    offset_of!(Api, tensor_data) == 51 * size_of::<usize>()
        && offset_of!(Api, release_shape) == 99 * size_of::<usize>()
);

/// What the header calls `OrtApiBase`.
#[repr(C)]
pub(crate) struct ApiBase {
    api: unsafe extern "system" fn(u32) -> *const Api,
    _version: usize,
}

/// What the header calls `OrtCustomOp`, as of `VERSION`. Unused entries are 0.
#[repr(C)]
struct Op {
    version: u32,
    _create_old: usize,
    name: extern "system" fn(*const Op) -> *const c_char,
    provider: extern "system" fn(*const Op) -> *const c_char,
    input_type: extern "system" fn(*const Op, usize) -> c_int,
    input_count: extern "system" fn(*const Op) -> usize,
    output_type: extern "system" fn(*const Op, usize) -> c_int,
    output_count: extern "system" fn(*const Op) -> usize,
    _compute_old: usize,
    destroy: unsafe extern "system" fn(*mut Kernel),
    input_kind: extern "system" fn(*const Op, usize) -> c_int,
    output_kind: extern "system" fn(*const Op, usize) -> c_int,
    input_memory: extern "system" fn(*const Op, usize) -> c_int,
    variadic: [extern "system" fn(*const Op) -> c_int; 4],
    create: unsafe extern "system" fn(*const Op, *const Api, *const c_void, *mut *mut Kernel) -> Status,
    compute: unsafe extern "system" fn(*const Kernel, *const c_void) -> Status,
    _infer_shape: usize,
    _first_and_last_version: [usize; 2],
}

static OP: Op = Op {
    version: VERSION,
    _create_old: 0,
    name: op_name,
    provider: no_name,
    input_type: always::<FLOAT>,
    input_count: one,
    output_type: always::<FLOAT>,
    output_count: none,
    _compute_old: 0,
    destroy,
    input_kind: always::<0>,
    output_kind: always::<0>,
    input_memory: always::<0>,
    variadic: [never; 4],
    create,
    compute,
    _infer_shape: 0,
    _first_and_last_version: [0; 2],
};

extern "system" fn op_name(_: *const Op) -> *const c_char {
    c"Observe".as_ptr()
}

/// No execution provider: that is the CPU's.
extern "system" fn no_name(_: *const Op) -> *const c_char {
    ptr::null()
}

extern "system" fn always<const N: c_int>(_: *const Op, _: usize) -> c_int {
    N
}

extern "system" fn never(_: *const Op) -> c_int {
    0
}

extern "system" fn one(_: *const Op) -> usize {
    1
}

extern "system" fn none(_: *const Op) -> usize {
    0
}

/// A node.
struct Kernel {
    api: &'static Api,
    index: usize,
}

/// # Safety
///
/// `api` and `info` are valid, `kernel` may be written to.
unsafe extern "system" fn create(
    _: *const Op,
    api: *const Api,
    info: *const c_void,
    kernel: *mut *mut Kernel,
) -> Status {
    // SAFETY: the runtime's table of functions is never freed, and has all entries of `VERSION`.
    let api = unsafe { &*api };
    let mut index = 0;
    // SAFETY: the arguments are as the header says: `info` the caller's, a C string, where to write an i64.
    let failed = unsafe { (api.attribute)(info, c"index".as_ptr(), &raw mut index) };
    if failed.is_null() {
        // A negative number is one that no statistics have.
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        // SAFETY: `kernel` may be written to, says the caller.
        unsafe { kernel.write(Box::into_raw(Box::new(Kernel { api, index }))) };
    }
    failed
}

/// # Safety
///
/// `kernel` comes from [`create`], and is not used any more.
unsafe extern "system" fn destroy(kernel: *mut Kernel) {
    // SAFETY: `create` made it from a box.
    drop(unsafe { Box::from_raw(kernel) });
}

/// # Safety
///
/// `kernel` comes from [`create`]; `context` is that of a run, whose first input is a tensor of floats.
unsafe extern "system" fn compute(kernel: *const Kernel, context: *const c_void) -> Status {
    // SAFETY: it was made by `create`, and lives until `destroy`.
    let Kernel { api, index } = unsafe { &*kernel };
    let (mut value, mut shape, mut data, mut len) = (ptr::null(), ptr::null_mut(), ptr::null(), 0);
    // SAFETY: each call gets what the header says, written by those before it; the first error ends them. The shape is
    // released once, where there is one.
    let failed = unsafe {
        let mut failed = (api.input)(context, 0, &raw mut value);
        if failed.is_null() {
            failed = (api.tensor_data)(value, &raw mut data);
        }
        if failed.is_null() {
            failed = (api.shape)(value, &raw mut shape);
        }
        if failed.is_null() {
            failed = (api.element_count)(shape, &raw mut len);
            (api.release_shape)(shape);
        }
        failed
    };
    if !failed.is_null() {
        return failed;
    }
    // A tensor may lie in memory that a caller fed, at any address.
    let copy: Vec<f32>;
    let x = if len == 0 {
        &[]
    } else if data.is_aligned() {
        // SAFETY: the tensor holds `len` floats, which nobody writes to while a node reads them.
        unsafe { slice::from_raw_parts(data, len) }
    } else {
        // SAFETY: as above, wherever they lie.
        copy = (0..len).map(|i| unsafe { data.add(i).read_unaligned() }).collect();
        &copy
    };
    // Statistics are read only if the run succeeds, so nothing half-made is seen.
    match catch_unwind(AssertUnwindSafe(|| observe(*index, x))).unwrap_or(Err(c"panic in the core")) {
        Ok(()) => ptr::null_mut(),
        // SAFETY: the message is a C string, which is copied.
        Err(message) => unsafe { (api.create_status)(FAIL, message.as_ptr()) },
    }
}

/// A domain that lives as long as the process, as sessions may.
struct Domain(*mut c_void);

// SAFETY: once made, a domain is only read.
unsafe impl Send for Domain {}
// SAFETY: once made, a domain is only read.
unsafe impl Sync for Domain {}

static DOMAIN: OnceLock<Option<Domain>> = OnceLock::new();

/// Makes `requant::Observe` known to a session that is to be opened with `options`; onnxruntime calls this.
///
/// # Safety
///
/// `options` and `base` are those of onnxruntime's C interface.
#[expect(unreachable_pub, reason = "onnxruntime finds it by name")]
#[unsafe(no_mangle)]
pub unsafe extern "system" fn RegisterCustomOps(options: *mut c_void, base: *const ApiBase) -> Status {
    // SAFETY: `base` is valid, says the caller; the answer is null or a table that is never freed.
    let Some(api) = (unsafe { ((*base).api)(VERSION).as_ref() }) else {
        return ptr::null_mut(); // older: it will not know the op
    };
    let domain = DOMAIN.get_or_init(|| {
        let mut domain = ptr::null_mut();
        // SAFETY: the arguments are as the header says; `OP` lives as long as the process.
        unsafe {
            let failed = (api.create_domain)(c"requant".as_ptr(), &raw mut domain);
            let failed = if failed.is_null() {
                (api.add_op)(domain, &raw const OP)
            } else {
                failed
            };
            failed.is_null().then_some(Domain(domain))
        }
    });
    match domain {
        // SAFETY: both come from onnxruntime.
        Some(domain) => unsafe { (api.add_domain)(options, domain.0) },
        // SAFETY: the message is a C string, which is copied.
        None => unsafe { (api.create_status)(FAIL, c"cannot make the domain of Observe".as_ptr()) },
    }
}
