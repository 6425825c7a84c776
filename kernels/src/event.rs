//! Points in a stream's work that another stream, or another process, waits for.

#![expect(unsafe_code, reason = "calls the driver with an event that it owns")]

use cudarc::driver::sys::{CUevent, CUipcEventHandle};

use crate::device::Device;
use crate::error::{GpuError, NOT_READY};

/// `CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS`; the driver has the second only with the first.
const FLAGS: u32 = 2 | 4;

/// An event's name for another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventHandle(pub [u8; 64]);

/// An event, ours or another process's. Until it is first recorded it counts as reached.
#[derive(Debug)]
pub struct Event {
    pub(crate) device: Device,
    pub(crate) event: CUevent,
}

// SAFETY: the driver's functions on events may be called from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// A new one, that can be handed to another process.
    ///
    /// # Errors
    /// The driver's.
    pub fn create(device: &Device) -> Result<Self, GpuError> {
        let mut event = std::ptr::null_mut();
        // SAFETY: writes one event, which is destroyed with `self`.
        unsafe { device.calls()?.cuEventCreate(&mut event, FLAGS) }?;
        Ok(Self { device: device.clone(), event })
    }

    /// Another process's.
    ///
    /// # Errors
    /// The driver's: the handle is none, of this very process, or its process has gone.
    pub fn open(device: &Device, handle: EventHandle) -> Result<Self, GpuError> {
        let mut event = std::ptr::null_mut();
        let handle = CUipcEventHandle { reserved: handle.0.map(|byte| byte as _) };
        // SAFETY: writes one event, which is destroyed with `self`; a wrong handle is refused.
        unsafe { device.calls()?.cuIpcOpenEventHandle(&mut event, handle) }?;
        Ok(Self { device: device.clone(), event })
    }

    /// Its name for another process.
    ///
    /// # Errors
    /// The driver's: it was itself opened by a handle.
    pub fn export(&self) -> Result<EventHandle, GpuError> {
        let mut handle = CUipcEventHandle { reserved: [0; 64] };
        // SAFETY: writes one handle; the event is alive.
        unsafe { self.device.calls()?.cuIpcGetEventHandle(&mut handle, self.event) }?;
        Ok(EventHandle(handle.reserved.map(|byte| byte as u8)))
    }

    /// Whether its stream has come to where it was last recorded.
    ///
    /// # Errors
    /// The driver's: the device is lost, or a kernel before it failed.
    pub fn is_reached(&self) -> Result<bool, GpuError> {
        // SAFETY: the event is alive.
        match unsafe { self.device.calls()?.cuEventQuery(self.event) } {
            Ok(()) => Ok(true),
            Err(error) if error.code == NOT_READY => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits for it, blocking the thread.
    ///
    /// # Errors
    /// As [`Event::is_reached`].
    pub fn wait(&self) -> Result<(), GpuError> {
        // SAFETY: the event is alive.
        unsafe { self.device.calls()?.cuEventSynchronize(self.event) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is ours and used by nobody any more; work that still waits for it keeps what it needs.
        let _ = self.device.calls().and_then(|calls| unsafe { calls.cuEventDestroy_v2(self.event) });
    }
}
