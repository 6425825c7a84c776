//! A queue of work on a device, done in order and apart from other streams'.

#![expect(unsafe_code, reason = "calls the driver with a stream that it owns and ranges that it has checked")]

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::CUstream;

use crate::device::Device;
use crate::error::GpuError;
use crate::event::Event;
use crate::imported::ImportedKv;
use crate::memory::{LandingSlab, PinnedRegion, within};
use crate::plan::Run;
use crate::queue::Kind;

/// `CU_STREAM_NON_BLOCKING`: never waits for the default stream of others in the process.
const NON_BLOCKING: u32 = 1;

/// A stream.
#[derive(Debug)]
pub struct CopyStream {
    pub(crate) device: Device,
    pub(crate) stream: CUstream,
}

// SAFETY: the driver's functions on streams may be called from any thread.
unsafe impl Send for CopyStream {}
// SAFETY: as above.
unsafe impl Sync for CopyStream {}

impl CopyStream {
    /// A new one. Lower `priority` goes first; the driver clamps it to what the device knows.
    ///
    /// # Errors
    /// The driver's.
    pub fn create(device: &Device, priority: i32) -> Result<Self, GpuError> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: writes one stream, which is destroyed with `self`.
        unsafe { device.calls()?.cuStreamCreateWithPriority(&mut stream, NON_BLOCKING, priority) }?;
        Ok(Self { device: device.clone(), stream })
    }

    /// What is given to the stream from here on waits for where `event` was last recorded.
    ///
    /// # Errors
    /// The driver's.
    pub fn wait_for(&self, event: &Event) -> Result<(), GpuError> {
        // SAFETY: both are alive; the driver keeps what it needs of the event.
        unsafe { self.device.calls()?.cuStreamWaitEvent(self.stream, event.event, 0) }
    }

    /// Records `event` after all that was given so far.
    ///
    /// # Errors
    /// The driver's.
    pub fn record(&self, event: &Event) -> Result<(), GpuError> {
        // SAFETY: both are alive.
        unsafe { self.device.calls()?.cuEventRecord(event.event, self.stream) }
    }

    /// Waits until all that was given is done, blocking the thread.
    ///
    /// # Errors
    /// The driver's, also of the work itself.
    pub fn drain(&self) -> Result<(), GpuError> {
        // SAFETY: the stream is alive.
        unsafe { self.device.calls()?.cuStreamSynchronize(self.stream) }
    }

    /// Copies from host memory to the slab. Both are kept alive by the [`crate::Ticket`] that calls this.
    pub(crate) fn copy_in(
        &self,
        (slab, to): (&Arc<LandingSlab>, usize),
        (host, from): (&Arc<PinnedRegion>, usize),
        bytes: usize,
    ) -> Result<(), GpuError> {
        within("copy_in", to, bytes, slab.bytes())?;
        within("copy_in", from, bytes, host.bytes())?;
        let source = (host.address() + from) as *const c_void;
        // SAFETY: both ranges are inside their memory, which the ticket keeps until the copy is done.
        unsafe {
            self.device.calls()?.cuMemcpyHtoDAsync_v2(slab.address() + to as u64, source, bytes, self.stream)
        }
    }

    /// Copies from the slab to host memory, as above.
    pub(crate) fn copy_out(
        &self,
        (host, to): (&Arc<PinnedRegion>, usize),
        (slab, from): (&Arc<LandingSlab>, usize),
        bytes: usize,
    ) -> Result<(), GpuError> {
        within("copy_out", to, bytes, host.bytes())?;
        within("copy_out", from, bytes, slab.bytes())?;
        let target = (host.address() + to) as *mut c_void;
        // SAFETY: as above; nothing in this process reads or writes pinned memory but through copies.
        unsafe {
            self.device.calls()?.cuMemcpyDtoHAsync_v2(
                target,
                slab.address() + from as u64,
                bytes,
                self.stream,
            )
        }
    }

    /// Copies each run between a chunk at `at` of host memory and the engine's pages; `batch`: in one call, where the
    /// driver can. All of it is kept by the ticket.
    pub(crate) fn copy_runs(
        &self,
        kind: Kind,
        (host, at): (&Arc<PinnedRegion>, usize),
        kv: &Arc<ImportedKv>,
        (runs, batch): (&[Run], bool),
    ) -> Result<(), GpuError> {
        let calls = self.device.calls()?;
        let (mut places, mut pages, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for Run { cache, chunk, bytes } in runs.iter().copied() {
            let (from, size) = (at.saturating_add(chunk as usize), bytes as usize);
            within("copy_runs", from, size, host.bytes())?;
            places.push((host.address() + from) as u64);
            pages.push(kv.address(cache, bytes)?);
            sizes.push(size);
        }
        if batch && calls.has_batch() && !runs.is_empty() {
            let (to, from) =
                if kind == Kind::Load { (&mut pages, &mut places) } else { (&mut places, &mut pages) };
            // SAFETY: each range is inside its memory, which the ticket keeps until the copies are done; runs of a
            // plan do not overlap.
            return unsafe { calls.copy_batch((to, from), &mut sizes, self.stream) };
        }
        for ((place, page), size) in places.into_iter().zip(pages).zip(sizes) {
            // SAFETY: as above.
            unsafe {
                match kind {
                    Kind::Load => calls.cuMemcpyHtoDAsync_v2(page, place as *const c_void, size, self.stream),
                    Kind::Store => calls.cuMemcpyDtoHAsync_v2(place as *mut c_void, page, size, self.stream),
                }
            }?;
        }
        Ok(())
    }
}

impl Drop for CopyStream {
    fn drop(&mut self) {
        // SAFETY: the stream is ours; the driver finishes what it was given.
        let _ = self.device.calls().and_then(|calls| unsafe { calls.cuStreamDestroy_v2(self.stream) });
    }
}
