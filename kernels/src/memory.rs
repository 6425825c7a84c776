//! Memory on both sides: pinned host memory, ours on the device, an engine's on the device.

#![expect(unsafe_code, reason = "calls the driver with memory that it owns, or whose owner it keeps")]

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUipcMemHandle};

use crate::device::Device;
use crate::error::GpuError;
use crate::layout::{Layer, Layout};
use crate::stream::CopyStream;

/// Bytes registered by one call: the driver's time for a call grows with it, and other calls wait.
const REGISTER_BYTES_MAX: usize = 64 << 30;
/// `CU_MEMHOSTREGISTER_PORTABLE`: pinned for all contexts of the process.
const PORTABLE: u32 = 1;
/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`, the only flag there is.
const LAZY_PEER_ACCESS: u32 = 1;

/// Host memory that a device may copy from and to.
///
/// # Safety
/// The range is mapped as long as the value lives, and no Rust reference to its bytes is used while a copy writes
/// them, but to atomics.
pub unsafe trait HostMemory: Send + Sync {
    /// Where it begins and how many bytes it has.
    fn range(&self) -> (*mut u8, usize);
}

/// Host memory that is pinned as long as this lives: copies from and to it run on their own.
pub struct PinnedRegion {
    device: Device,
    memory: Arc<dyn HostMemory>,
    /// Where the registered pieces begin.
    pieces: Vec<usize>,
}

impl std::fmt::Debug for PinnedRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PinnedRegion({} bytes in {} pieces)", self.bytes(), self.pieces.len())
    }
}

impl PinnedRegion {
    /// Pins `memory`, in pieces of at most 64 GiB.
    ///
    /// # Errors
    /// The driver's: already pinned, or more than the system lets this process lock. Nothing stays pinned then.
    pub fn register(device: &Device, memory: Arc<dyn HostMemory>) -> Result<Self, GpuError> {
        let (start, bytes) = memory.range();
        let mut region = Self { device: device.clone(), memory, pieces: Vec::new() };
        for at in (0..bytes).step_by(REGISTER_BYTES_MAX) {
            let piece = start.wrapping_add(at);
            let length = REGISTER_BYTES_MAX.min(bytes - at);
            // SAFETY: inside the memory, which `region` keeps mapped until it is unregistered.
            unsafe { device.calls()?.cuMemHostRegister_v2(piece.cast::<c_void>(), length, PORTABLE) }?;
            region.pieces.push(piece as usize);
        }
        Ok(region)
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.memory.range().1
    }

    pub(crate) fn address(&self) -> usize {
        self.memory.range().0 as usize
    }
}

impl Drop for PinnedRegion {
    fn drop(&mut self) {
        for piece in &self.pieces {
            // SAFETY: registered above; tickets keep the region while a copy uses it.
            let unregistered = self
                .device
                .calls()
                .and_then(|calls| unsafe { calls.cuMemHostUnregister(*piece as *mut c_void) });
            if unregistered.is_err() {
                // Still pinned for all we know, so it must stay mapped.
                std::mem::forget(Arc::clone(&self.memory));
            }
        }
    }
}

/// A name of device memory for another process: the allocation, and what part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvHandle {
    /// The driver's handle; it names the whole allocation.
    pub handle: [u8; 64],
    /// Where the part begins in it, in bytes: a tensor rarely begins where its allocation does.
    pub offset: u64,
    /// Bytes of the part.
    pub bytes: u64,
}

/// Memory on the device that is ours, in one allocation.
#[derive(Debug)]
pub struct LandingSlab {
    device: Device,
    at: CUdeviceptr,
    bytes: usize,
}

impl LandingSlab {
    /// Allocates it, plainly and not from a pool, since only such memory can be opened by another process.
    ///
    /// # Errors
    /// The driver's: too little memory is free.
    pub fn create(device: &Device, bytes: usize) -> Result<Self, GpuError> {
        let mut at = 0;
        // SAFETY: writes one address, which is freed with `self`.
        unsafe { device.calls()?.cuMemAlloc_v2(&mut at, bytes) }?;
        Ok(Self { device: device.clone(), at, bytes })
    }

    /// Its name for another process, which then reads and writes it as it likes.
    ///
    /// # Errors
    /// The driver's.
    pub fn export(&self) -> Result<KvHandle, GpuError> {
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: writes one handle; the memory is ours.
        unsafe { self.device.calls()?.cuIpcGetMemHandle(&mut handle, self.at) }?;
        Ok(KvHandle { handle: handle.reserved.map(|byte| byte as u8), offset: 0, bytes: self.bytes as u64 })
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn address(&self) -> u64 {
        self.at
    }
}

impl Drop for LandingSlab {
    fn drop(&mut self) {
        // SAFETY: ours; tickets keep it while work uses it. A failure leaves it to the end of the process.
        let _ = self.device.calls().and_then(|calls| unsafe { calls.cuMemFree_v2(self.at) });
    }
}

/// An engine's paged KV cache, opened here by its handle and checked against its layout.
#[derive(Debug)]
pub struct ImportedKv {
    device: Device,
    base: CUdeviceptr,
    layout: Layout,
    /// The kernels' table of layers.
    table: Option<LandingSlab>,
}

impl ImportedKv {
    /// Opens it. The mapping outlives its engine: close it (drop) when the engine's session has ended.
    ///
    /// # Errors
    /// The driver's: no such allocation, of this very process, or its process has gone. Or the layout needs more than
    /// the part that was named, or that part is not inside the allocation.
    pub fn open(device: &Device, handle: KvHandle, layout: Layout) -> Result<Self, GpuError> {
        let mut base = 0;
        let driver_handle = CUipcMemHandle { reserved: handle.handle.map(|byte| byte as _) };
        let calls = device.calls()?;
        // SAFETY: writes one address, which is closed with `kv`; a wrong handle is refused.
        unsafe { calls.cuIpcOpenMemHandle_v2(&mut base, driver_handle, LAZY_PEER_ACCESS) }?;
        let mut kv = Self { device: device.clone(), base, layout, table: None };
        let (mut start, mut bytes) = (0, 0);
        // SAFETY: writes the range of what was just opened.
        unsafe { calls.cuMemGetAddressRange_v2(&mut start, &mut bytes, base) }?;
        let inside = handle.offset.checked_add(handle.bytes).is_some_and(|end| end <= bytes as u64);
        if !inside || kv.layout.cache_bytes() > handle.bytes {
            let needed = kv.layout.cache_bytes();
            let KvHandle { offset, bytes: part, .. } = handle;
            let why = format!("{needed} bytes in a part of {part} at {offset} of an allocation of {bytes}");
            return Err(GpuError::refused("ImportedKv::open", why));
        }
        kv.table = Some(kv.upload(base + handle.offset)?);
        Ok(kv)
    }

    /// The kernels' table: `Layer` of `cuda/pages.cu`, one for each.
    fn upload(&self, cache: u64) -> Result<LandingSlab, GpuError> {
        let rows = self.layout.layers().iter().zip(self.layout.offsets());
        let words = rows.flat_map(|(layer, offset)| {
            let Layer { pages, stride, rows, row_bytes, row_stride } = *layer;
            [cache + pages, stride, layer.page_bytes(), offset, rows, row_bytes, row_stride]
        });
        let table: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let slab = LandingSlab::create(&self.device, table.len())?;
        let stream = CopyStream::create(&self.device, 0)?;
        let from = table.as_ptr().cast::<c_void>();
        // SAFETY: the slab has the table's size, and both stay until the stream has drained, on the next line.
        let copied = unsafe {
            self.device.calls()?.cuMemcpyHtoDAsync_v2(slab.address(), from, table.len(), stream.stream)
        };
        if let Err(error) = copied.and_then(|()| stream.drain()) {
            // The copy may still run, unless the stream says otherwise when it is asked again.
            if stream.drain().is_err() {
                std::mem::forget((table, slab));
            }
            return Err(error);
        }
        Ok(slab)
    }

    /// Its layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn table(&self) -> u64 {
        self.table.as_ref().expect("set before `open` gives it out").address()
    }
}

impl Drop for ImportedKv {
    fn drop(&mut self) {
        // SAFETY: opened by us; tickets keep it while work uses it.
        let _ = self.device.calls().and_then(|calls| unsafe { calls.cuIpcCloseMemHandle(self.base) });
    }
}

/// Refuses a range that is not inside a buffer.
pub(crate) fn within(call: &'static str, at: usize, bytes: usize, size: usize) -> Result<(), GpuError> {
    match at.checked_add(bytes) {
        Some(end) if end <= size => Ok(()),
        _ => Err(GpuError::refused(call, format!("{bytes} bytes at {at} of a buffer of {size}"))),
    }
}
