//! The kernels on a device, and the notes through which they get block numbers.

#![expect(unsafe_code, reason = "starts kernels with parameters that it has checked")]

use std::ffi::{CStr, CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUfunction, CUmodule};

use crate::device::Device;
use crate::error::GpuError;
use crate::imported::ImportedKv;
use crate::layout::{CHUNK_BLOCKS_MAX, Layout, Order};
use crate::memory::{HostBytes, LandingSlab, PinnedRegion};
use crate::stream::CopyStream;

const PAGES_PTX: &str = include_str!("../cuda/pages.ptx");
const CHECKSUM_PTX: &str = include_str!("../cuda/checksum.ptx");

/// The kernels of each order: scatter and gather, as [`Direction`] numbers them.
const PAGES: [(Order, [&CStr; 2]); 3] = [
    (Order::LayerFirst, [c"larder_scatter", c"larder_gather"]),
    (Order::BlockFirst, [c"larder_scatter_blocks", c"larder_gather_blocks"]),
    (Order::Latent, [c"larder_scatter_latent", c"larder_gather_latent"]),
];

/// Bytes of a block that one thread block moves where a block is one page: `TILE_BYTES` of `cuda/pages.cu`.
const TILE_BYTES: u64 = 16 << 10;
/// Threads of a block that copies a page: 256 x 16 bytes are a page of 4 KiB in one go.
const PAGE_THREADS: u32 = 256;
/// Threads of a block that sums pieces, one each.
const SUM_THREADS: u32 = 128;

/// Transfers that may be on their way at once; one more is refused, and its caller waits for another to end.
pub(crate) const SLOTS: usize = 256;
const SLOT_BYTES: usize = CHUNK_BLOCKS_MAX as usize * 4;

/// Which way pages go; numbers the kernels of [`PAGES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Scatter,
    Gather,
}

/// The kernels, loaded on one device.
#[derive(Debug)]
pub struct Kernels {
    device: Device,
    modules: Vec<CUmodule>,
    /// Of each order: scatter and gather.
    pages: [[CUfunction; 2]; 3],
    checksum: CUfunction,
    notes: Notes,
}

// SAFETY: modules and functions are the context's and may be used from any thread.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

/// Block numbers on their way to the device: a slot for each transfer, pinned here and plain there.
#[derive(Debug)]
struct Notes {
    written: Arc<HostBytes>,
    host: Arc<PinnedRegion>,
    device: Arc<LandingSlab>,
    free: Mutex<Vec<usize>>,
}

/// A transfer's slot of the notes; free again when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    kernels: Arc<Kernels>,
    index: usize,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.kernels.notes.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

impl Kernels {
    /// Loads the PTX that is part of this package; the driver translates it for the device.
    ///
    /// # Errors
    /// The driver's.
    pub fn load(device: &Device) -> Result<Arc<Self>, GpuError> {
        let written = HostBytes::new(SLOTS * SLOT_BYTES);
        let notes = Notes {
            host: Arc::new(PinnedRegion::register(device, Arc::clone(&written) as _)?),
            device: Arc::new(LandingSlab::create(device, SLOTS * SLOT_BYTES)?),
            free: Mutex::new((0..SLOTS).collect()),
            written,
        };
        let none = std::ptr::null_mut();
        let mut kernels = Self {
            device: device.clone(),
            modules: Vec::new(),
            pages: [[none; 2]; 3],
            checksum: none,
            notes,
        };
        let pages = kernels.module(PAGES_PTX)?;
        for (order, names) in PAGES {
            for (direction, name) in names.into_iter().enumerate() {
                kernels.pages[order as usize][direction] = kernels.function(pages, name)?;
            }
        }
        let checksum = kernels.module(CHECKSUM_PTX)?;
        kernels.checksum = kernels.function(checksum, c"larder_checksum")?;
        Ok(Arc::new(kernels))
    }

    fn module(&mut self, ptx: &str) -> Result<CUmodule, GpuError> {
        let text = CString::new(ptx).expect("PTX is text without zeroes");
        let mut module = std::ptr::null_mut();
        // SAFETY: writes one module, which is unloaded with `self`; the text has an end and is copied.
        unsafe { self.device.calls()?.cuModuleLoadData(&mut module, text.as_ptr().cast()) }?;
        self.modules.push(module);
        Ok(module)
    }

    fn function(&self, module: CUmodule, name: &CStr) -> Result<CUfunction, GpuError> {
        let mut function = std::ptr::null_mut();
        // SAFETY: writes one function, which lives as long as its module.
        unsafe { self.device.calls()?.cuModuleGetFunction(&mut function, module, name.as_ptr()) }?;
        Ok(function)
    }

    /// The device they are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Takes a slot, or says that all are on their way.
    pub(crate) fn slot(self: &Arc<Self>) -> Result<Slot, GpuError> {
        let index = self.notes.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let index = index.ok_or_else(|| {
            GpuError::refused("Kernels::slot", format!("{SLOTS} transfers are on their way"))
        })?;
        Ok(Slot { kernels: Arc::clone(self), index })
    }

    /// Moves pages between a chunk at `at` of the slab and the engine's blocks. All of it is kept by the ticket.
    pub(crate) fn pages(
        &self,
        direction: Direction,
        stream: &CopyStream,
        (slab, at): (&LandingSlab, usize),
        kv: &ImportedKv,
        (slot, blocks, first): (&Slot, &[u32], u32),
    ) -> Result<(), GpuError> {
        if let Some(why) = kv.layout().refuses(blocks, first) {
            return Err(GpuError::refused("Kernels::pages", why));
        }
        crate::memory::within("Kernels::pages", at, kv.layout().chunk_bytes() as usize, slab.bytes())?;
        let place = slot.index * SLOT_BYTES;
        let numbers: Vec<u8> = blocks.iter().flat_map(|block| block.to_le_bytes()).collect();
        self.notes.written.write(place, &numbers);
        stream.copy_in((&self.notes.device, place), (&self.notes.host, place), blocks.len() * 4)?;
        let function = self.pages[kv.layout().order() as usize][direction as usize];
        let (chunk, table, numbers) =
            (slab.address() + at as u64, kv.table(), self.notes.device.address() + place as u64);
        let grid = (across(kv.layout())?, blocks.len() as u32, PAGE_THREADS);
        // SAFETY: the parameters are those of `cuda/pages.cu`, in its order; every access is inside the chunk, the
        // table, the numbers and the cache, which `Layout` was checked against.
        unsafe {
            self.start(
                function,
                stream,
                grid,
                &mut [pointer(&chunk), pointer(&table), pointer(&numbers), pointer(&first)],
            )
        }
    }

    /// Sums the pieces of a chunk of `bytes` at `at` of the slab into `sums` of it, 8 bytes for each.
    pub(crate) fn sums(
        &self,
        stream: &CopyStream,
        slab: &LandingSlab,
        (at, bytes): (usize, usize),
        sums: usize,
    ) -> Result<(), GpuError> {
        let pieces = bytes.div_ceil(crate::reference::PIECE_BYTES);
        crate::memory::within("Kernels::sums", at, bytes, slab.bytes())?;
        crate::memory::within("Kernels::sums", sums, pieces * 8, slab.bytes())?;
        let blocks = u32::try_from(pieces.div_ceil(SUM_THREADS as usize)).unwrap_or(0);
        if !at.is_multiple_of(8) || !sums.is_multiple_of(8) || blocks == 0 {
            let why =
                format!("{bytes} bytes at {at}, sums at {sums}: both at multiples of 8, and some bytes");
            return Err(GpuError::refused("Kernels::sums", why));
        }
        let (chunk, bytes, sums) = (slab.address() + at as u64, bytes as u64, slab.address() + sums as u64);
        // SAFETY: the parameters are those of `cuda/checksum.cu`; both ranges are inside the slab.
        unsafe {
            self.start(
                self.checksum,
                stream,
                (blocks, 1, SUM_THREADS),
                &mut [pointer(&chunk), pointer(&bytes), pointer(&sums)],
            )
        }
    }

    /// # Safety
    /// The parameters are as many, and of the types, that the kernel has, and its accesses are inside live memory.
    unsafe fn start(
        &self,
        function: CUfunction,
        stream: &CopyStream,
        (x, y, threads): (u32, u32, u32),
        parameters: &mut [*mut c_void],
    ) -> Result<(), GpuError> {
        let (calls, at, none) = (self.device.calls()?, parameters.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: the caller's promise; the driver copies the parameters before it answers.
        unsafe { calls.cuLaunchKernel(function, x, y, 1, threads, 1, 1, 0, stream.stream, at, none) }
    }
}

/// The first dimension of a grid that moves pages: layers, or the tiles of a block.
fn across(layout: &Layout) -> Result<u32, GpuError> {
    let layers = layout.layers();
    let count = match layout.order() {
        Order::LayerFirst | Order::Latent => layers.len() as u64,
        Order::BlockFirst => layers[0].page_bytes().div_ceil(TILE_BYTES),
    };
    // A grid's first dimension ends at 2^31 - 1.
    i32::try_from(count).map(i32::cast_unsigned).map_err(|_| {
        GpuError::refused("Kernels::pages", format!("a block of {count} tiles of {TILE_BYTES} bytes"))
    })
}

fn pointer<T>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}

impl Drop for Kernels {
    fn drop(&mut self) {
        for module in &self.modules {
            // SAFETY: loaded by us; tickets keep the kernels while one runs.
            let _ = self.device.calls().and_then(|calls| unsafe { calls.cuModuleUnload(*module) });
        }
    }
}
