//! The driver's functions, all looked up before the first is called.
//!
//! cudarc finds and opens the library; its own wrappers panic where a symbol is missing, and read result codes into an
//! enum that a newer driver's code does not fit. So the table is ours, with codes as numbers.

#![expect(unsafe_code, reason = "looks up functions of the driver and calls them")]
#![allow(non_snake_case, reason = "the driver's names")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmodule, CUstream};
use cudarc::driver::sys::{CUipcEventHandle, CUipcMemHandle};

use crate::error::GpuError;
use crate::virtual_memory::{Access, Properties};

/// `cuMemcpyBatchAsync` as CUDA 12.8 made it; CUDA 13 has another with one argument less, so it is asked for by version.
/// <https://docs.nvidia.com/cuda/archive/12.8.0/cuda-driver-api/group__CUDA__MEM.html>
type Batch = unsafe extern "C" fn(
    *mut CUdeviceptr,
    *mut CUdeviceptr,
    *mut usize,
    usize,
    *mut CopyAttributes,
    *mut usize,
    usize,
    *mut usize,
    CUstream,
) -> c_uint;

/// The version of CUDA whose batch copy is asked for.
const BATCH_VERSION: c_int = 12_080;

/// `CUmemcpyAttributes`: in the stream's order, without a hint of where memory is.
#[repr(C)]
#[derive(Debug, Default)]
struct CopyAttributes {
    order: c_uint,
    hints: [[c_int; 2]; 2],
    flags: c_uint,
}

/// `CU_MEMCPY_SRC_ACCESS_ORDER_STREAM`: the sources stay as they are until the stream has done the copies.
const IN_STREAM_ORDER: c_uint = 1;

macro_rules! calls {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        /// The functions, by the driver's names.
        #[derive(Debug)]
        pub(crate) struct Calls {
            $($name: unsafe extern "C" fn($($kind),*) -> c_uint,)*
            cuGetErrorName: unsafe extern "C" fn(c_uint, *mut *const c_char) -> c_uint,
            /// Not in every driver.
            batch: Option<Batch>,
        }

        impl Calls {
            /// Looks up all functions.
            ///
            /// # Errors
            /// The first that this driver lacks.
            ///
            /// # Safety
            /// `sys::is_culib_present()` has said yes.
            pub(crate) unsafe fn find() -> Result<Self, &'static str> {
                // SAFETY: the library is there (the caller's promise), so this opens it.
                let library = unsafe { sys::culib() };
                Ok(Self {
                    $($name: {
                        // SAFETY: the signature is that of the driver's documentation.
                        let found = unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) };
                        *found.map_err(|_| stringify!($name))?
                    },)*
                    cuGetErrorName: {
                        // SAFETY: as above.
                        let found = unsafe { library.get(b"cuGetErrorName\0") };
                        *found.map_err(|_| "cuGetErrorName")?
                    },
                    batch: None,
                })
            }

            $(
                /// # Safety
                /// The driver's documentation of the function: pointers to what it says, handles that are alive.
                #[allow(clippy::too_many_arguments, reason = "the driver's signature")]
                pub(crate) unsafe fn $name(&self, $($argument: $kind),*) -> Result<(), GpuError> {
                    // SAFETY: the caller's promise.
                    let code = unsafe { (self.$name)($($argument),*) };
                    self.checked(stringify!($name), code)
                }
            )*
        }
    };
}

calls! {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: CUdevice);
    cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    cuCtxSetCurrent(context: CUcontext);
    cuCtxGetStreamPriorityRange(low: *mut c_int, high: *mut c_int);
    cuStreamCreateWithPriority(stream: *mut CUstream, flags: c_uint, priority: c_int);
    cuStreamDestroy_v2(stream: CUstream);
    cuStreamSynchronize(stream: CUstream);
    cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventDestroy_v2(event: CUevent);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventQuery(event: CUevent);
    cuEventSynchronize(event: CUevent);
    cuIpcGetEventHandle(handle: *mut CUipcEventHandle, event: CUevent);
    cuIpcOpenEventHandle(event: *mut CUevent, handle: CUipcEventHandle);
    cuMemAlloc_v2(at: *mut CUdeviceptr, bytes: usize);
    cuMemFree_v2(at: CUdeviceptr);
    cuMemGetAddressRange_v2(base: *mut CUdeviceptr, bytes: *mut usize, at: CUdeviceptr);
    cuMemHostRegister_v2(at: *mut c_void, bytes: usize, flags: c_uint);
    cuMemHostUnregister(at: *mut c_void);
    cuIpcGetMemHandle(handle: *mut CUipcMemHandle, at: CUdeviceptr);
    cuIpcOpenMemHandle_v2(at: *mut CUdeviceptr, handle: CUipcMemHandle, flags: c_uint);
    cuIpcCloseMemHandle(at: CUdeviceptr);
    cuMemGetAllocationGranularity(bytes: *mut usize, properties: *const Properties, option: c_uint);
    cuMemCreate(handle: *mut u64, bytes: usize, properties: *const Properties, flags: u64);
    cuMemRelease(handle: u64);
    cuMemRetainAllocationHandle(handle: *mut u64, at: *mut c_void);
    cuMemAddressReserve(at: *mut CUdeviceptr, bytes: usize, alignment: usize, near: CUdeviceptr, flags: u64);
    cuMemAddressFree(at: CUdeviceptr, bytes: usize);
    cuMemMap(at: CUdeviceptr, bytes: usize, offset: usize, handle: u64, flags: u64);
    cuMemUnmap(at: CUdeviceptr, bytes: usize);
    cuMemSetAccess(at: CUdeviceptr, bytes: usize, access: *const Access, count: usize);
    cuMemExportToShareableHandle(descriptor: *mut c_int, handle: u64, kind: c_uint, flags: u64);
    cuMemImportFromShareableHandle(handle: *mut u64, descriptor: *mut c_void, kind: c_uint);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    cuModuleUnload(module: CUmodule);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuLaunchKernel(function: CUfunction, bx: c_uint, by: c_uint, bz: c_uint, tx: c_uint, ty: c_uint, tz: c_uint,
                   shared: c_uint, stream: CUstream, parameters: *mut *mut c_void, extra: *mut *mut c_void);
}

impl Calls {
    /// Looks for what not every driver has; a driver that lacks it, or fails at being asked, has nothing.
    ///
    /// # Safety
    /// As [`Calls::find`]; and cuInit has succeeded.
    pub(crate) unsafe fn find_optional(&mut self) {
        type Find = unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64, *mut c_uint) -> c_uint;
        // SAFETY: the library is there (the caller's promise); the signature is the documentation's, since CUDA 12.0.
        let Ok(find) = (unsafe { sys::culib().get::<Find>(b"cuGetProcAddress_v2\0") }) else { return };
        let (mut found, mut status) = (std::ptr::null_mut(), 0);
        // SAFETY: reads a name with an end, writes a pointer and a number.
        let code = unsafe { find(c"cuMemcpyBatchAsync".as_ptr(), &mut found, BATCH_VERSION, 0, &mut status) };
        if code == 0 && status == 0 && !found.is_null() {
            // SAFETY: the driver's function of this name and version has this signature.
            self.batch = Some(unsafe { std::mem::transmute::<*mut c_void, Batch>(found) });
        }
    }

    /// Whether copies can be given in one call.
    pub(crate) fn has_batch(&self) -> bool {
        self.batch.is_some()
    }

    /// Copies each of `from` to the same place of `to`, in no order among themselves.
    ///
    /// # Safety
    /// All ranges stay valid until the stream has done them; they do not overlap.
    pub(crate) unsafe fn copy_batch(
        &self,
        (to, from): (&mut [CUdeviceptr], &mut [CUdeviceptr]),
        bytes: &mut [usize],
        stream: CUstream,
    ) -> Result<(), GpuError> {
        assert!(to.len() == bytes.len() && from.len() == bytes.len(), "a source and a target for each");
        let Some(batch) = self.batch else {
            return Err(GpuError::refused("cuMemcpyBatchAsync", "this driver has none".to_owned()));
        };
        let mut attributes = CopyAttributes { order: IN_STREAM_ORDER, ..CopyAttributes::default() };
        let (mut first, mut failed) = (0, 0);
        let (to, from, sizes) = (to.as_mut_ptr(), from.as_mut_ptr(), bytes.as_mut_ptr());
        // SAFETY: the caller's promise for the ranges; three arrays of one length, one description for all from 0 on.
        let code = unsafe {
            batch(to, from, sizes, bytes.len(), &mut attributes, &mut first, 1, &mut failed, stream)
        };
        self.checked("cuMemcpyBatchAsync", code)
    }

    fn checked(&self, call: &'static str, code: c_uint) -> Result<(), GpuError> {
        if code == 0 {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: writes a pointer to a string that lives as long as the library, or nothing.
        let known = unsafe { (self.cuGetErrorName)(code, &mut name) } == 0 && !name.is_null();
        // SAFETY: as above.
        let name = known.then(|| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned());
        Err(GpuError { call, code, name: name.unwrap_or_else(|| "a code without a name".into()) })
    }
}
