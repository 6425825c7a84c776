//! Many copies in one call, which is found by name and version.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::{copy, put};
use crate::code::{Answer, INVALID_VALUE};
use crate::memory::Copy;
use crate::state::{State, state};

/// Versions of CUDA that have the function as it is here; before there was none, and 13.0 has another of the name.
const VERSIONS: std::ops::Range<c_int> = 12_080..13_000;
/// `CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND` and `CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT`.
const NOT_KNOWN: c_uint = 1;
const NOT_OF_THIS_VERSION: c_uint = 2;
/// `CU_MEMCPY_SRC_ACCESS_ORDER_STREAM`.
const IN_STREAM_ORDER: c_uint = 1;

functions! {
    free cuGetProcAddress_v2(name: *const c_char, to: *mut *mut c_void, version: c_int, _flags: u64,
                             status: *mut c_uint) state {
        let _ = state;
        // SAFETY: the driver's contract: a string with an end.
        let name = unsafe { CStr::from_ptr(name) };
        let (found, how) = match name.to_bytes() {
            b"cuMemcpyBatchAsync" if VERSIONS.contains(&version) => (cuMemcpyBatchAsync as *mut c_void, 0),
            b"cuMemcpyBatchAsync" => (std::ptr::null_mut(), NOT_OF_THIS_VERSION),
            _ => (std::ptr::null_mut(), NOT_KNOWN),
        };
        put(to, found)?;
        if status.is_null() { Ok(()) } else { put(status, how) }
    }
    context cuMemcpyBatchAsync(to: *const u64, from: *const u64, bytes: *const usize, count: usize,
                               attributes: *const [c_uint; 6], first: *const usize, descriptions: usize,
                               failed: *mut usize, stream: usize) state {
        // SAFETY: the driver's contract: three arrays of `count`, one description and where it begins.
        let (order, first) = unsafe { ((*attributes)[0], *first) };
        // The emulator's caller describes all copies at once; the driver takes more.
        if count == 0 || stream == 0 || descriptions != 1 || first != 0 || order != IN_STREAM_ORDER {
            return Err(INVALID_VALUE);
        }
        for index in 0..count {
            // SAFETY: as above.
            let (to, from, bytes) = unsafe { (*to.add(index), *from.add(index), *bytes.add(index)) };
            let is_device = |at| state.device.read().find(at).is_some();
            let (to_device, from_device) = (is_device(to), is_device(from));
            // What is neither device memory nor pinned is no memory to the driver.
            let is_known = |device, at| device || state.is_pinned(at, bytes);
            let known = is_known(to_device, to) && is_known(from_device, from);
            let asked = Copy { to, from, bytes, to_device, from_device };
            if let Err(code) = known.then_some(()).ok_or(INVALID_VALUE).and_then(|()| copy(state, stream, asked)) {
                put(failed, index)?;
                return Err(code);
            }
        }
        Ok(())
    }
}
