//! Many copies in one call, as CUDA 12.8 has it.

use std::ffi::{c_uint, c_void};

use super::{copy, put};
use crate::code::{Answer, INVALID_VALUE};
use crate::memory::Copy;
use crate::state::{State, state};

/// `CU_MEMCPY_SRC_ACCESS_ORDER_STREAM`.
const IN_STREAM_ORDER: c_uint = 1;

functions! {
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
