//! Device memory that is made, named and mapped in three steps: physical memory, addresses, the one into the other.
//!
//! Engines have their caches in such memory where their allocator grows segments in place
//! (`PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`) or puts caches to sleep; it has no 64-byte handle, but each
//! piece has a descriptor. <https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__VA.html>.

#![expect(unsafe_code, reason = "calls the driver with physical memory and addresses that it owns")]

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use cudarc::driver::sys::CUdeviceptr;

use crate::device::Device;
use crate::error::GpuError;

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const DESCRIPTOR: c_uint = 1;
/// `CU_MEM_ALLOCATION_TYPE_PINNED`, the only one there is.
const PINNED: c_uint = 1;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
const ON_DEVICE: c_uint = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: c_uint = 3;
/// `CU_MEM_ALLOC_GRANULARITY_MINIMUM`.
const MINIMUM: c_uint = 0;

/// Pieces of one range: an engine's allocator makes them of 2 or 20 MiB, so this is a cache of 80 GiB. Their
/// descriptors are open only while they are mapped.
const PIECES_MAX: usize = 4096;

/// `CUmemLocation`. These three are ours since cudarc's differ between its versions of CUDA, in which their bytes do
/// not.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Location {
    kind: c_uint,
    id: c_int,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Properties {
    kind: c_uint,
    handles: c_uint,
    location: Location,
    windows: *mut c_void,
    flags: [u8; 8],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Access {
    location: Location,
    flags: c_uint,
}

/// Physical memory, named for another process.
#[derive(Debug)]
pub struct Piece {
    /// Its descriptor; another process gets it over a unix socket.
    pub fd: OwnedFd,
    /// All its bytes.
    pub bytes: u64,
}

/// Physical memory that this process holds; once it is mapped the mapping holds it too.
struct Physical<'a> {
    device: &'a Device,
    handle: u64,
}

impl Drop for Physical<'_> {
    fn drop(&mut self) {
        // SAFETY: ours, and given back once. A failure leaves it to the end of the process.
        let _ = self.device.calls().and_then(|calls| unsafe { calls.cuMemRelease(self.handle) });
    }
}

/// Physical memory, mapped one piece after the other into addresses of ours.
#[derive(Debug)]
pub(crate) struct Mapped {
    device: Device,
    at: CUdeviceptr,
    bytes: usize,
    /// Bytes of each piece that is mapped, from `at` on.
    pieces: Vec<usize>,
}

impl Mapped {
    /// New memory of at least `bytes`, in pieces of `piece_bytes`; both are rounded up to what the device can give.
    pub(crate) fn create(device: &Device, bytes: usize, piece_bytes: usize) -> Result<Self, GpuError> {
        let properties = Properties {
            kind: PINNED,
            handles: DESCRIPTOR,
            location: Location { kind: ON_DEVICE, id: device.number() },
            windows: std::ptr::null_mut(),
            flags: [0; 8],
        };
        let mut granularity = 0;
        // SAFETY: writes one number, reads the properties.
        unsafe { device.calls()?.cuMemGetAllocationGranularity(&mut granularity, &properties, MINIMUM) }?;
        let piece = piece_bytes.max(1).checked_next_multiple_of(granularity.max(1));
        let all = piece.and_then(|piece| bytes.max(1).checked_next_multiple_of(piece));
        let (Some(piece), Some(all)) = (piece, all) else {
            return Err(GpuError::refused(
                "Mapped::create",
                format!("{bytes} bytes in pieces of {piece_bytes}"),
            ));
        };
        let mut mapped = Self::reserve(device, all, all / piece)?;
        for _ in 0..all / piece {
            let mut handle = 0;
            // SAFETY: writes one handle, which is released when `physical` is dropped.
            unsafe { device.calls()?.cuMemCreate(&mut handle, piece, &properties, 0) }?;
            mapped.map(&Physical { device, handle }, piece)?;
        }
        mapped.allow()?;
        Ok(mapped)
    }

    /// Another process's memory. The descriptors are no longer needed afterwards.
    pub(crate) fn import(device: &Device, pieces: &[Piece]) -> Result<Self, GpuError> {
        let sizes = pieces.iter().map(|piece| usize::try_from(piece.bytes).ok());
        let all = sizes.clone().try_fold(0usize, |sum, bytes| sum.checked_add(bytes?));
        let all =
            all.ok_or_else(|| GpuError::refused("Mapped::import", "pieces beyond all memory".into()))?;
        let mut mapped = Self::reserve(device, all, pieces.len())?;
        for (piece, bytes) in pieces.iter().zip(sizes.flatten()) {
            let mut handle = 0;
            let descriptor = piece.fd.as_raw_fd() as usize as *mut c_void;
            // SAFETY: writes one handle, which is released when `physical` is dropped; the driver duplicates the
            // descriptor, which the caller keeps open.
            unsafe { device.calls()?.cuMemImportFromShareableHandle(&mut handle, descriptor, DESCRIPTOR) }?;
            mapped.map(&Physical { device, handle }, bytes)?;
        }
        mapped.allow()?;
        Ok(mapped)
    }

    fn reserve(device: &Device, bytes: usize, pieces: usize) -> Result<Self, GpuError> {
        if !(1..=PIECES_MAX).contains(&pieces) {
            let why = format!("{pieces} pieces; 1 to {PIECES_MAX} can be mapped");
            return Err(GpuError::refused("Mapped::reserve", why));
        }
        let mut at = 0;
        // SAFETY: writes one address, which is given back with `self`.
        unsafe { device.calls()?.cuMemAddressReserve(&mut at, bytes, 0, 0, 0) }?;
        Ok(Self { device: device.clone(), at, bytes, pieces: Vec::new() })
    }

    /// Maps a piece behind those that are.
    fn map(&mut self, physical: &Physical<'_>, bytes: usize) -> Result<(), GpuError> {
        let at = self.at + self.pieces.iter().sum::<usize>() as u64;
        // SAFETY: inside our addresses, where nothing is mapped yet; a wrong size is refused by the driver.
        unsafe { self.device.calls()?.cuMemMap(at, bytes, 0, physical.handle, 0) }?;
        self.pieces.push(bytes);
        Ok(())
    }

    fn allow(&self) -> Result<(), GpuError> {
        let access =
            Access { location: Location { kind: ON_DEVICE, id: self.device.number() }, flags: READ_WRITE };
        // SAFETY: all of it is mapped; the driver reads one description.
        unsafe { self.device.calls()?.cuMemSetAccess(self.at, self.bytes, &access, 1) }
    }

    /// Names each piece for another process: asked of the addresses, as an engine must ask whose allocator made them.
    pub(crate) fn export(&self) -> Result<Vec<Piece>, GpuError> {
        let mut at = self.at;
        let mut named = Vec::new();
        for bytes in self.pieces.iter().copied() {
            let (mut handle, mut fd) = (0, -1);
            // SAFETY: writes one handle, which is released when `physical` is dropped; the address is mapped.
            unsafe { self.device.calls()?.cuMemRetainAllocationHandle(&mut handle, at as *mut c_void) }?;
            let physical = Physical { device: &self.device, handle };
            // SAFETY: writes one descriptor.
            unsafe {
                self.device.calls()?.cuMemExportToShareableHandle(&mut fd, physical.handle, DESCRIPTOR, 0)
            }?;
            // SAFETY: the driver has just opened it for us.
            named.push(Piece { fd: unsafe { OwnedFd::from_raw_fd(fd) }, bytes: bytes as u64 });
            at += bytes as u64;
        }
        Ok(named)
    }

    pub(crate) fn address(&self) -> CUdeviceptr {
        self.at
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let mapped: usize = self.pieces.iter().sum();
        let _ = self.device.calls().and_then(|calls| {
            if mapped > 0 {
                // SAFETY: mapped by us; tickets keep it while work uses it.
                unsafe { calls.cuMemUnmap(self.at, mapped) }?;
            }
            // SAFETY: ours, and nothing is mapped in it any more. A failure leaves it to the end of the process.
            unsafe { calls.cuMemAddressFree(self.at, self.bytes) }
        });
    }
}
