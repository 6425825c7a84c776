//! Functions by name and version, as callers ask that do not look at the library's symbols.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::{batch, cuGetErrorName, put, virtual_memory};
use crate::code::{Answer, INVALID_VALUE};
use crate::state::{State, state};

/// Versions of CUDA that have the batch copy as it is here; before there was none, and 13.0 has another of the name.
const BATCH: &str = "cuMemcpyBatchAsync";
const BATCH_VERSIONS: std::ops::Range<c_int> = 12_080..13_000;
/// `CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND` and `CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT`.
const NOT_KNOWN: c_uint = 1;
const NOT_OF_THIS_VERSION: c_uint = 2;

/// The function of a name: its second form where there is one, which all callers of today mean.
fn find(name: &str) -> Option<*mut c_void> {
    let in_any = |name: &str| {
        super::symbol(name)
            .or_else(|| batch::symbol(name))
            .or_else(|| symbol(name))
            .or_else(|| virtual_memory::symbol(name))
    };
    match name {
        "cuGetErrorName" => Some(cuGetErrorName as *mut c_void),
        _ => in_any(&format!("{name}_v2")).or_else(|| in_any(name)),
    }
}

functions! {
    free cuGetProcAddress_v2(name: *const c_char, to: *mut *mut c_void, version: c_int, _flags: u64,
                             status: *mut c_uint) state {
        let _ = state;
        // SAFETY: the driver's contract: a string with an end.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| INVALID_VALUE)?;
        let is_other = name == BATCH && !BATCH_VERSIONS.contains(&version);
        let found = find(name).filter(|_| !is_other);
        put(to, found.unwrap_or(std::ptr::null_mut()))?;
        let how = match found {
            Some(_) => 0,
            None if is_other => NOT_OF_THIS_VERSION,
            None => NOT_KNOWN,
        };
        if status.is_null() { Ok(()) } else { put(status, how) }
    }
}
