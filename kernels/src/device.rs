//! A device: its primary context, held as long as anything of it is alive.

#![expect(unsafe_code, reason = "calls the driver with a context that it keeps alive")]

use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys::{CUcontext, CUdevice};

use crate::calls::Calls;
use crate::error::GpuError;

/// A GPU's identity, the same in every process.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU-")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A device that this process uses. Clones are the same device.
#[derive(Debug, Clone)]
pub struct Device(Arc<Context>);

#[derive(Debug)]
struct Context {
    calls: Arc<Calls>,
    number: CUdevice,
    uuid: Uuid,
    context: CUcontext,
}

// SAFETY: a context may be current in any number of threads at once; the driver locks.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Device {
    pub(crate) fn open(calls: Arc<Calls>, number: CUdevice, uuid: Uuid) -> Result<Self, GpuError> {
        let mut context = std::ptr::null_mut();
        // SAFETY: writes one context, which `Context` gives back.
        unsafe { calls.cuDevicePrimaryCtxRetain(&mut context, number) }?;
        Ok(Self(Arc::new(Context { calls, number, uuid, context })))
    }

    /// Which it is.
    pub fn uuid(&self) -> Uuid {
        self.0.uuid
    }

    /// The driver's name of it; "larder emulator" where it is that.
    ///
    /// # Errors
    /// The driver's.
    pub fn name(&self) -> Result<String, GpuError> {
        let mut name = [0u8; 256];
        // SAFETY: writes at most the length given, with an end.
        unsafe { self.0.calls.cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, self.0.number) }?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        Ok(String::from_utf8_lossy(&name[..end]).into_owned())
    }

    /// The lowest and the highest priority of streams; a higher one is a smaller number.
    pub(crate) fn priorities(&self) -> Result<(i32, i32), GpuError> {
        let (mut low, mut high) = (0, 0);
        // SAFETY: writes two ints.
        unsafe { self.calls()?.cuCtxGetStreamPriorityRange(&mut low, &mut high) }?;
        Ok((low, high))
    }

    /// The driver's number of it, in this process only.
    pub(crate) fn number(&self) -> CUdevice {
        self.0.number
    }

    /// The driver's functions, with this device current in the calling thread.
    pub(crate) fn calls(&self) -> Result<&Calls, GpuError> {
        // SAFETY: the context is held as long as `self`.
        unsafe { self.0.calls.cuCtxSetCurrent(self.0.context) }?;
        Ok(&self.0.calls)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: everything made in the context holds a clone of the device, so nothing of it is left. A failure
        // leaves the context to the process's end, and there is nobody to tell.
        let _ = unsafe { self.calls.cuDevicePrimaryCtxRelease_v2(self.number) };
    }
}
