//! An engine's paged KV cache, opened here.

#![expect(unsafe_code, reason = "calls the driver with another process's memory, which it opens and closes")]

use std::ffi::c_void;

use cudarc::driver::sys::{CUdeviceptr, CUipcMemHandle};

use crate::device::Device;
use crate::error::GpuError;
use crate::layout::{Layer, Layout};
use crate::memory::LandingSlab;
use crate::stream::CopyStream;
use crate::virtual_memory::{Mapped, Piece};

/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`, the only flag there is.
const LAZY_PEER_ACCESS: u32 = 1;
/// Parts of a cache: engines allocate each layer, or its keys and its values, on their own.
const PARTS_MAX: usize = 8192;

/// Device memory of one plain allocation, named for another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvHandle {
    /// The driver's handle; it names the whole allocation.
    pub handle: [u8; 64],
    /// Where the part begins in it, in bytes: a tensor rarely begins where its allocation does.
    pub offset: u64,
    /// Bytes of the part.
    pub bytes: u64,
}

/// Device memory that is mapped from pieces, named for another process.
#[derive(Debug)]
pub struct KvPieces {
    /// The pieces, in the order of their addresses.
    pub pieces: Vec<Piece>,
    /// Where the part begins in them, in bytes.
    pub offset: u64,
    /// Bytes of the part.
    pub bytes: u64,
}

/// A part of a cache, by either kind of name.
#[derive(Debug)]
pub enum KvPart {
    /// By a 64-byte handle.
    Handle(KvHandle),
    /// By descriptors.
    Pieces(KvPieces),
}

impl From<KvHandle> for KvPart {
    fn from(handle: KvHandle) -> Self {
        Self::Handle(handle)
    }
}

impl From<KvPieces> for KvPart {
    fn from(pieces: KvPieces) -> Self {
        Self::Pieces(pieces)
    }
}

/// A part that is open.
#[derive(Debug)]
struct Part {
    _memory: Opened,
    at: CUdeviceptr,
    bytes: u64,
}

#[derive(Debug)]
enum Opened {
    Handle { device: Device, base: CUdeviceptr },
    Pieces { _mapped: Mapped },
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Self::Handle { device, base } = self {
            // SAFETY: opened by us; tickets keep it while work uses it.
            let _ = device.calls().and_then(|calls| unsafe { calls.cuIpcCloseMemHandle(*base) });
        }
    }
}

impl Part {
    fn open(device: &Device, part: KvPart) -> Result<Self, GpuError> {
        let (memory, base, all, offset, bytes) = match part {
            KvPart::Handle(name) => {
                let mut base = 0;
                let handle = CUipcMemHandle { reserved: name.handle.map(|byte| byte as _) };
                let calls = device.calls()?;
                // SAFETY: writes one address, which is closed with `memory`; a wrong handle is refused.
                unsafe { calls.cuIpcOpenMemHandle_v2(&mut base, handle, LAZY_PEER_ACCESS) }?;
                let memory = Opened::Handle { device: device.clone(), base };
                let (mut start, mut all) = (0, 0);
                // SAFETY: writes the range of what was just opened.
                unsafe { calls.cuMemGetAddressRange_v2(&mut start, &mut all, base) }?;
                (memory, base, all, name.offset, name.bytes)
            }
            KvPart::Pieces(name) => {
                let mapped = Mapped::import(device, &name.pieces)?;
                let (base, all) = (mapped.address(), mapped.bytes());
                (Opened::Pieces { _mapped: mapped }, base, all, name.offset, name.bytes)
            }
        };
        if offset.checked_add(bytes).is_none_or(|end| end > all as u64) {
            let why = format!("a part of {bytes} bytes at {offset} of an allocation of {all}");
            return Err(GpuError::refused("ImportedKv::open", why));
        }
        Ok(Self { _memory: memory, at: base + offset, bytes })
    }
}

/// An engine's paged KV cache, opened here by its handles and checked against its layout.
#[derive(Debug)]
pub struct ImportedKv {
    device: Device,
    layout: Layout,
    parts: Vec<Part>,
    /// The kernels' table of layers.
    table: Option<LandingSlab>,
}

impl ImportedKv {
    /// Opens it. The layout's cache is all parts, one after the other; no layer lies in two of them. The mapping
    /// outlives its engine: close it (drop) when the engine's session has ended.
    ///
    /// # Errors
    /// The driver's: no such allocation, of this very process, or its process has gone. Or a part is not inside its
    /// allocation, or a layer inside no part.
    pub fn open(device: &Device, parts: Vec<KvPart>, layout: Layout) -> Result<Self, GpuError> {
        if parts.len() > PARTS_MAX {
            let why = format!("{} parts; {PARTS_MAX} can be opened", parts.len());
            return Err(GpuError::refused("ImportedKv::open", why));
        }
        let parts = parts.into_iter().map(|part| Part::open(device, part)).collect::<Result<_, _>>()?;
        let mut kv = Self { device: device.clone(), layout, parts, table: None };
        kv.table = Some(kv.upload()?);
        Ok(kv)
    }

    /// The kernels' table: `Layer` of `cuda/pages.cu`, one for each.
    fn upload(&self) -> Result<LandingSlab, GpuError> {
        let mut table = Vec::new();
        for (layer, offset) in self.layout.layers().iter().zip(self.layout.offsets()) {
            let Layer { pages, stride, rows, row_bytes, row_stride } = *layer;
            let at = self.address(pages, self.layout.layer_bytes(layer))?;
            for word in [at, stride, layer.page_bytes(), offset, rows, row_bytes, row_stride] {
                table.extend(word.to_le_bytes());
            }
        }
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

    /// Where a range of the cache lies in this process, if it lies in one part.
    pub(crate) fn address(&self, at: u64, bytes: u64) -> Result<CUdeviceptr, GpuError> {
        let mut begin = 0;
        for part in &self.parts {
            let inside = at.checked_sub(begin).filter(|inside| *inside < part.bytes);
            if let Some(inside) = inside.filter(|inside| bytes <= part.bytes - inside) {
                return Ok(part.at + inside);
            }
            begin += part.bytes;
        }
        let why = format!(
            "a layer of {bytes} bytes at {at} in {} parts of {begin} bytes together",
            self.parts.len()
        );
        Err(GpuError::refused("ImportedKv::open", why))
    }

    /// Its layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn table(&self) -> u64 {
        self.table.as_ref().expect("set before `open` gives it out").address()
    }
}
