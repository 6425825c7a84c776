//! Physical memory, addresses, and the one mapped into the other.
//!
//! <https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__VA.html>.

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::Arc;

use super::{device, put};
use crate::code::{Answer, INVALID_VALUE, NOT_PERMITTED};
use crate::memory::{GRANULARITY, Origin, Physical};
use crate::state::{State, state};

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const DESCRIPTOR: c_uint = 1;
/// `CU_MEM_ALLOCATION_TYPE_PINNED`, the only one there is; and `CU_MEM_LOCATION_TYPE_DEVICE`.
const PINNED: c_uint = 1;
const ON_DEVICE: c_uint = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: c_uint = 3;

/// `CU_POINTER_ATTRIBUTE_MAPPING_SIZE` and `_MAPPING_BASE_ADDR`, the two attributes that are known here.
const MAPPING_SIZE: c_uint = 18;
const MAPPING_BASE: c_uint = 19;

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Location {
    kind: c_uint,
    id: c_int,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Properties {
    kind: c_uint,
    handles: c_uint,
    location: Location,
    windows: *const c_void,
    flags: [u8; 8],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Access {
    location: Location,
    flags: c_uint,
}

/// Reads a caller's structure.
fn get<T: Copy>(from: *const T) -> Answer<T> {
    if from.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the driver's contract: the pointer is to one readable value of this type.
    Ok(unsafe { from.read() })
}

fn checked(properties: *const Properties) -> Answer<Properties> {
    let properties = get(properties)?;
    device(properties.location.id)?;
    let known = properties.kind == PINNED && properties.location.kind == ON_DEVICE;
    if known && properties.handles <= DESCRIPTOR { Ok(properties) } else { Err(INVALID_VALUE) }
}

functions! {
    any cuMemGetAllocationGranularity(to: *mut usize, properties: *const Properties, _option: c_uint) state {
        let _ = state;
        checked(properties)?;
        put(to, GRANULARITY)
    }
    context cuMemCreate(to: *mut u64, bytes: usize, properties: *const Properties, flags: u64) state {
        let exportable = checked(properties)?.handles == DESCRIPTOR;
        if flags != 0 { return Err(INVALID_VALUE); }
        put(to, state.physical.add(Arc::new(Physical::create(bytes, exportable)?)) as u64)
    }
    context cuMemRelease(handle: u64) state { state.physical.remove(handle as usize).map(drop) }
    context cuMemRetainAllocationHandle(to: *mut u64, at: *mut c_void) state {
        let device = state.device.read();
        match device.find(at as u64) {
            Some((_, found)) => match &found.origin {
                Origin::Virtual { physical, .. } => put(to, state.physical.add(Arc::clone(physical)) as u64),
                _ => Err(INVALID_VALUE),
            },
            None => Err(INVALID_VALUE),
        }
    }
    any cuPointerGetAttribute(to: *mut u64, attribute: c_uint, at: u64) state {
        let device = state.device.read();
        let mapped = |origin: &Origin| matches!(origin, Origin::Virtual { .. });
        let (base, piece) = device.find(at).filter(|(_, found)| mapped(&found.origin)).ok_or(INVALID_VALUE)?;
        match attribute {
            MAPPING_SIZE => put(to, piece.bytes as u64),
            MAPPING_BASE => put(to, base),
            _ => Err(INVALID_VALUE),
        }
    }
    context cuMemAddressReserve(to: *mut u64, bytes: usize, _alignment: usize, _near: u64, flags: u64) state {
        if flags != 0 { return Err(INVALID_VALUE); }
        put(to, state.device.write().reserve(bytes)?)
    }
    context cuMemAddressFree(at: u64, bytes: usize) state { state.device.write().unreserve(at, bytes) }
    context cuMemMap(at: u64, bytes: usize, offset: usize, handle: u64, flags: u64) state {
        // No driver so far maps from anywhere but the beginning; the emulator maps nothing but the whole.
        if offset != 0 || flags != 0 { return Err(INVALID_VALUE); }
        let physical = state.physical.get(handle as usize)?;
        state.device.write().map(at, bytes, physical)
    }
    context cuMemUnmap(at: u64, bytes: usize) state { state.device.write().unmap(at, bytes) }
    context cuMemSetAccess(at: u64, bytes: usize, access: *const Access, count: usize) state {
        let access = get(access)?;
        device(access.location.id)?;
        if count != 1 || access.location.kind != ON_DEVICE || access.flags != READ_WRITE { return Err(INVALID_VALUE); }
        state.device.write().allow(at, bytes)
    }
    context cuMemExportToShareableHandle(to: *mut c_int, handle: u64, kind: c_uint, flags: u64) state {
        let physical = state.physical.get(handle as usize)?;
        if kind != DESCRIPTOR || flags != 0 { return Err(INVALID_VALUE); }
        if !physical.exportable { return Err(NOT_PERMITTED); }
        let fd = physical.fd.try_clone().map_err(|_| INVALID_VALUE)?;
        put(to, fd.as_raw_fd())?;
        // The caller's from here on.
        let _ = fd.into_raw_fd();
        Ok(())
    }
    context cuMemImportFromShareableHandle(to: *mut u64, descriptor: *mut c_void, kind: c_uint) state {
        let Ok(fd) = c_int::try_from(descriptor as usize) else { return Err(INVALID_VALUE) };
        if kind != DESCRIPTOR { return Err(INVALID_VALUE); }
        // SAFETY: the driver's contract: a descriptor that is open; it is only duplicated here.
        let physical = Physical::open(unsafe { BorrowedFd::borrow_raw(fd) })?;
        put(to, state.physical.add(Arc::new(physical)) as u64)
    }
}
