//! The driver's functions by their C names: each checks, counts itself, and answers a code.
//!
//! Signatures: <https://docs.nvidia.com/cuda/cuda-driver-api/index.html>.

#![expect(unsafe_code, reason = "C functions that write through the pointers they are given")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use crate::code::name;
use crate::code::{
    Answer, INVALID_CONTEXT, INVALID_DEVICE, INVALID_PTX, INVALID_VALUE, NOT_FOUND, NOT_READY,
};
use crate::event::{self, Event};
use crate::memory::{self, Allocation, Copy, Mapping, Origin};
use crate::ptx::{self, run::Grid};
use crate::state::{CAPTURE_MODE, CONTEXT, DEVICES, State, state};
use crate::stream::{Stream, Work};

/// Handles of memory and events, as another process gets them: who made it, its descriptor, its size.
type Handle = [u64; 8];
const MEMORY: u64 = u64::from_le_bytes(*b"larder-m");
const EVENT: u64 = u64::from_le_bytes(*b"larder-e");

fn export(kind: u64, mapping: &Mapping) -> Handle {
    let own = u64::from(std::process::id());
    [kind, own, mapping.descriptor() as u64, mapping.bytes() as u64, 0, 0, 0, 0]
}

fn import(kind: u64, handle: Handle) -> Answer<Mapping> {
    let [found, pid, fd, bytes, ..] = handle;
    if found != kind || bytes == 0 {
        return Err(INVALID_VALUE);
    }
    if pid == u64::from(std::process::id()) {
        // As the driver does: a handle is for other processes.
        return Err(INVALID_CONTEXT);
    }
    Mapping::open(pid as u32, fd as i32, bytes as usize)
}

/// The lowest and the highest priority of streams, as on the GPUs of today.
const PRIORITIES: (c_int, c_int) = (0, -5);

/// `CU_STREAM_CAPTURE_MODE_GLOBAL`, `_THREAD_LOCAL` and `_RELAXED` are the modes there are.
const CAPTURE_MODES: c_uint = 3;
/// `CU_MEMHOSTREGISTER_READ_ONLY`.
const REGISTER_READ_ONLY: c_uint = 8;

/// Writes an answer through a caller's pointer.
fn put<T>(to: *mut T, value: T) -> Answer {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the driver's contract: the pointer is to one writable value of this type.
    unsafe { to.write(value) };
    Ok(())
}

fn device(ordinal: c_int) -> Answer {
    if (0..DEVICES).contains(&ordinal) { Ok(()) } else { Err(INVALID_DEVICE) }
}

/// The functions: `free` ones need nothing, `any` ones cuInit, all others a context.
macro_rules! functions {
    ($($need:ident $name:ident($($argument:ident: $kind:ty),*) $state:ident $body:block)*) => { $(
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, reason = "the driver's names")]
        extern "C" fn $name($($argument: $kind),*) -> u32 {
            let $state: &State = state();
            let answer = $state.knobs.called(stringify!($name)).and_then(|()| functions!(@$need $state));
            let answer = answer.and_then(|()| -> Answer { $body });
            answer.err().unwrap_or(0)
        }
    )*
        /// The function of a C name, of those above.
        pub(super) fn symbol(name: &str) -> Option<*mut c_void> {
            $( if name == stringify!($name) { return Some($name as *mut c_void); } )*
            None
        }
    };
    (@free $state:ident) => { Ok(()) };
    (@any $state:ident) => { $state.is_initialized() };
    (@context $state:ident) => { $state.has_context() };
}

functions! {
    free cuInit(_flags: c_uint) state { state.initialized.store(true, SeqCst); Ok(()) }
    free cuDriverGetVersion(version: *mut c_int) state { let _ = state; put(version, 12080) }
    any cuDeviceGetCount(count: *mut c_int) state { put(count, state.visible().len() as c_int) }
    any cuDeviceGet(to: *mut c_int, ordinal: c_int) state {
        let device = usize::try_from(ordinal).ok().and_then(|ordinal| state.visible().get(ordinal));
        put(to, *device.ok_or(INVALID_DEVICE)?)
    }
    any cuDeviceGetUuid_v2(to: *mut [u8; 16], ordinal: c_int) state {
        let _ = state;
        device(ordinal)?;
        let mut uuid = *b"larder emulator0";
        uuid[15] += ordinal as u8;
        put(to, uuid)
    }
    any cuDeviceGetName(to: *mut c_char, length: c_int, ordinal: c_int) state {
        let _ = state;
        device(ordinal)?;
        let text = c"larder emulator".to_bytes_with_nul();
        if length < text.len() as c_int { return Err(INVALID_VALUE); }
        // SAFETY: the caller's buffer has `length` bytes, of which these are not more.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), text.len()) };
        Ok(())
    }
    any cuDevicePrimaryCtxRetain(to: *mut usize, ordinal: c_int) state {
        let _ = state;
        device(ordinal)?;
        put(to, ordinal as usize + 1)
    }
    any cuDevicePrimaryCtxRelease_v2(ordinal: c_int) state { let _ = state; device(ordinal) }
    any cuCtxSetCurrent(context: usize) state {
        let _ = state;
        if context > DEVICES as usize { return Err(INVALID_CONTEXT); }
        CONTEXT.set(context);
        Ok(())
    }
    any cuCtxGetCurrent(to: *mut usize) state { let _ = state; put(to, CONTEXT.get()) }
    any cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) state {
        let _ = state;
        // Nothing is ever captured here, but a mode that there is not is refused.
        // SAFETY: the driver's contract: a pointer to one readable and writable value.
        let wanted = if mode.is_null() { CAPTURE_MODES } else { unsafe { mode.read() } };
        if wanted >= CAPTURE_MODES { return Err(INVALID_VALUE); }
        put(mode, CAPTURE_MODE.replace(wanted))
    }
    context cuCtxGetStreamPriorityRange(low: *mut c_int, high: *mut c_int) state {
        let _ = state;
        put(low, PRIORITIES.0)?;
        put(high, PRIORITIES.1)
    }
    context cuStreamCreateWithPriority(to: *mut usize, _flags: c_uint, priority: c_int) state {
        // A priority that does not exist is taken for the nearest, as the driver does; none has an effect here.
        let _ = priority;
        put(to, state.streams.add(Arc::new(Stream::create())))
    }
    context cuStreamDestroy_v2(stream: usize) state { state.streams.remove(stream).map(drop) }
    context cuStreamSynchronize(stream: usize) state {
        state.streams.get(stream)?.drain();
        lost(state)
    }
    context cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) state {
        let event = state.events.get(event)?;
        let number = event.issued();
        state.streams.get(stream)?.give(Work::Wait(event, number));
        Ok(())
    }
    context cuEventCreate(to: *mut usize, flags: c_uint) state {
        // Interprocess (4) only with timing disabled (2), as the driver has it.
        if flags & 4 != 0 && flags & 2 == 0 { return Err(INVALID_VALUE); }
        put(to, state.events.add(Arc::new(Event::create(flags & 4 != 0)?)))
    }
    context cuEventDestroy_v2(event: usize) state { state.events.remove(event).map(drop) }
    context cuEventRecord(event: usize, stream: usize) state {
        let (event, stream) = (state.events.get(event)?, state.streams.get(stream)?);
        let number = event.issue();
        stream.give(Work::Record(event, number));
        Ok(())
    }
    context cuEventQuery(event: usize) state {
        let event = state.events.get(event)?;
        if event.reached(event.issued()) { Ok(()) } else { Err(NOT_READY) }
    }
    context cuEventSynchronize(event: usize) state {
        let event = state.events.get(event)?;
        event.wait(event.issued(), || state.knobs.lost.load(SeqCst) != 0);
        lost(state)
    }
    context cuIpcGetEventHandle(to: *mut Handle, event: usize) state {
        let event = state.events.get(event)?;
        if !event.shared { return Err(INVALID_VALUE); }
        put(to, export(EVENT, &event.page))
    }
    context cuIpcOpenEventHandle(to: *mut usize, handle: HandleByValue) state {
        let page = import(EVENT, handle.0)?;
        if page.bytes() != event::BYTES { return Err(INVALID_VALUE); }
        // An opened event cannot be exported again.
        put(to, state.events.add(Arc::new(Event { page, shared: false })))
    }
    context cuMemAlloc_v2(to: *mut u64, bytes: usize) state {
        if bytes == 0 { return Err(INVALID_VALUE); }
        put(to, state.device.write().allocate(bytes)?)
    }
    context cuMemFree_v2(at: u64) state { state.drain(); state.device.write().remove(at, false) }
    context cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, at: u64) state {
        let device = state.device.read();
        let (start, found) = device.find(at).ok_or(INVALID_VALUE)?;
        put(base, start)?;
        put(bytes, found.bytes)
    }
    context cuMemHostRegister_v2(at: *mut c_void, bytes: usize, flags: c_uint) state {
        if at.is_null() || bytes == 0 { return Err(INVALID_VALUE); }
        // What is mapped read-only can be pinned only by one who says so.
        if flags & REGISTER_READ_ONLY == 0 && !memory::is_writable(at as u64) { return Err(INVALID_VALUE); }
        state.pin(at as u64, bytes)
    }
    context cuMemHostUnregister(at: *mut c_void) state { state.unpin(at as u64) }
    context cuIpcGetMemHandle(to: *mut Handle, at: u64) state {
        let device = state.device.read();
        // Of physical memory that was mapped there is no such handle, nor of what another process made.
        let Some((_, Allocation { origin: Origin::Whole { mapping, imported: false }, .. })) = device.find(at) else {
            return Err(INVALID_VALUE);
        };
        put(to, export(MEMORY, mapping))
    }
    context cuIpcOpenMemHandle_v2(to: *mut u64, handle: HandleByValue, flags: c_uint) state {
        // Lazy peer access (1) is the only flag there is.
        if flags != 1 { return Err(INVALID_VALUE); }
        let mapping = import(MEMORY, handle.0)?;
        put(to, state.device.write().import(mapping))
    }
    context cuIpcCloseMemHandle(at: u64) state { state.drain(); state.device.write().remove(at, true) }
    context cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize) state {
        copy(state, stream, Copy { to, from: from as u64, bytes, to_device: true, from_device: false })
    }
    context cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize) state {
        copy(state, stream, Copy { to: to as u64, from, bytes, to_device: false, from_device: true })
    }
    context cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) state {
        copy(state, stream, Copy { to, from, bytes, to_device: true, from_device: true })
    }
    context cuModuleLoadData(to: *mut usize, image: *const c_char) state {
        // SAFETY: the driver's contract for PTX: a string with an end.
        let text = unsafe { CStr::from_ptr(image) }.to_str().map_err(|_| INVALID_PTX)?;
        let kernels = ptx::module(text).map_err(|refused| {
            *state.fault.lock() = refused.to_string();
            INVALID_PTX
        })?;
        put(to, state.modules.add(Arc::new(kernels.into_iter().map(Arc::new).collect())))
    }
    context cuModuleUnload(module: usize) state { state.modules.remove(module).map(drop) }
    context cuModuleGetFunction(to: *mut usize, module: usize, wanted: *const c_char) state {
        // SAFETY: the driver's contract: a string with an end.
        let wanted = unsafe { CStr::from_ptr(wanted) };
        let module = state.modules.get(module)?;
        let kernel = module.iter().find(|kernel| kernel.name.as_bytes() == wanted.to_bytes());
        put(to, state.functions.add(Arc::clone(kernel.ok_or(NOT_FOUND)?)))
    }
    context cuLaunchKernel(function: usize, bx: c_uint, by: c_uint, bz: c_uint, tx: c_uint, ty: c_uint, tz: c_uint,
                           shared: c_uint, stream: usize, parameters: *const *const u8, extra: *const c_void) state {
        let kernel = state.functions.get(function)?;
        let grid = Grid { blocks: [bx, by, bz], threads: [tx, ty, tz] };
        let threads = grid.threads.iter().try_fold(1u32, |all, n| all.checked_mul(*n));
        if grid.blocks.contains(&0) || by > 65_535 || bz > 65_535 || !threads.is_some_and(|n| (1..=1024).contains(&n))
            || shared != 0 || !extra.is_null()
        {
            return Err(INVALID_VALUE);
        }
        let mut values = Vec::with_capacity(kernel.parameters.len());
        for (index, bytes) in kernel.parameters.iter().enumerate() {
            let mut value = [0; 8];
            // SAFETY: the driver's contract: one pointer for each parameter, to as many bytes as the kernel says.
            unsafe { std::ptr::copy_nonoverlapping(*parameters.add(index), value.as_mut_ptr(), usize::from(*bytes)) };
            values.push(u64::from_le_bytes(value));
        }
        state.streams.get(stream)?.give(Work::Launch { kernel, grid, parameters: values });
        Ok(())
    }
}

mod batch;
mod lookup;
mod virtual_memory;

/// A handle of 64 bytes, which C passes by value.
#[repr(C)]
pub(crate) struct HandleByValue(Handle);

fn lost(state: &State) -> Answer {
    match state.knobs.lost.load(SeqCst) {
        0 => Ok(()),
        code => Err(code),
    }
}

fn copy(state: &State, stream: usize, copy: Copy) -> Answer {
    let stream = state.streams.get(stream)?;
    state.device.read().allows(copy)?;
    let Copy { to, from, bytes, to_device, from_device } = copy;
    let host = if to_device { from } else { to };
    let asynchronous = (to_device && from_device) || state.is_pinned(host, bytes);
    stream.give(Work::Copy(copy));
    if !asynchronous {
        // The driver copies from pageable memory before it answers.
        stream.drain();
    }
    Ok(())
}

/// The name of a code.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the driver's name")]
extern "C" fn cuGetErrorName(code: u32, to: *mut *const c_char) -> u32 {
    let found = name(code).ok_or(INVALID_VALUE).and_then(|text| put(to, text.as_ptr()));
    found.err().unwrap_or(0)
}
