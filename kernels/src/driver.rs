//! Is there a driver, and a GPU? Asked once; without one the node runs with host memory and disk.

#![expect(unsafe_code, reason = "opens the driver's library and asks it for its version and devices")]

use std::path::Path;
use std::sync::Arc;

use crate::calls::Calls;
use crate::device::{Device, Uuid};
use crate::error::GpuError;

/// Names a driver in an unusual place; opened before the usual names are tried.
const LIBRARY_VARIABLE: &str = "LARDER_LIBCUDA";

/// Why there is no GPU to use. None of these is a failure of the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoGpu {
    /// No library of the driver's names is installed.
    #[error("no CUDA driver is installed (no libcuda.so)")]
    NoDriver,
    /// The library that was named cannot be opened.
    #[error("the driver at {path} cannot be opened: {why}")]
    NotOpened {
        /// What was named.
        path: String,
        /// What the loader said.
        why: String,
    },
    /// The driver lacks a function that this package calls.
    #[error("the CUDA driver is too old: it has no {function}")]
    TooOld {
        /// The driver's name of it.
        function: &'static str,
    },
    /// The driver is there and says no: no device, a stub library, a driver and kernel of different versions.
    #[error(transparent)]
    Refused(#[from] GpuError),
}

/// The CUDA driver, initialised.
#[derive(Debug, Clone)]
pub struct Driver {
    calls: Arc<Calls>,
    version: i32,
}

impl Driver {
    /// Loads the driver: the one that the environment variable `LARDER_LIBCUDA` names, or the installed one. Never
    /// panics.
    ///
    /// # Errors
    /// Why there is none to use.
    pub fn load() -> Result<Self, NoGpu> {
        let named = std::env::var_os(LIBRARY_VARIABLE);
        Self::load_from(named.as_ref().map(Path::new))
    }

    /// Loads the driver in a file, or the installed one. Once a driver was loaded in a process it stays the one, whatever
    /// is named later.
    ///
    /// # Errors
    /// Why there is none to use.
    pub fn load_from(library: Option<&Path>) -> Result<Self, NoGpu> {
        if let Some(path) = library {
            // SAFETY: the operator names this library as the CUDA driver; what its initialisers do is on that word.
            let opened = unsafe { libloading::Library::new(path) };
            let opened = opened.map_err(|error| NoGpu::NotOpened {
                path: path.display().to_string(),
                why: error.to_string(),
            })?;
            // Stays open: the loader then answers its SONAME, which is how cudarc asks for it.
            std::mem::forget(opened);
        }
        // SAFETY: opens libraries by the driver's names; the installed driver is trusted.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err(NoGpu::NoDriver);
        }
        // SAFETY: it is present, said the line above.
        let mut calls = unsafe { Calls::find() }.map_err(|function| NoGpu::TooOld { function })?;
        // SAFETY: 0 is the only flag there is.
        unsafe { calls.cuInit(0) }?;
        // SAFETY: as above, and cuInit has succeeded.
        unsafe { calls.find_optional() };
        let mut version = 0;
        // SAFETY: writes one int.
        unsafe { calls.cuDriverGetVersion(&mut version) }?;
        Ok(Self { calls: Arc::new(calls), version })
    }

    /// The newest CUDA version that the driver knows, as 1000 x major + 10 x minor.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Whether it can take many copies in one call. Where it cannot, each is a call of its own.
    pub fn has_batch_copies(&self) -> bool {
        self.calls.has_batch()
    }

    /// The UUIDs of the devices that this process may see, in its own order.
    ///
    /// # Errors
    /// The driver's.
    pub fn devices(&self) -> Result<Vec<Uuid>, GpuError> {
        let mut count = 0;
        // SAFETY: writes one int.
        unsafe { self.calls.cuDeviceGetCount(&mut count) }?;
        (0..count).map(|ordinal| self.uuid(ordinal).map(|(_, uuid)| uuid)).collect()
    }

    /// The device with a UUID. Never by number: an engine and a node can see different ones.
    ///
    /// # Errors
    /// No device has it, or the driver's.
    pub fn device(&self, uuid: Uuid) -> Result<Device, GpuError> {
        let mut count = 0;
        // SAFETY: writes one int.
        unsafe { self.calls.cuDeviceGetCount(&mut count) }?;
        for ordinal in 0..count {
            let (number, found) = self.uuid(ordinal)?;
            if found == uuid {
                return Device::open(Arc::clone(&self.calls), number, uuid);
            }
        }
        Err(GpuError::refused("Driver::device", format!("none of {count} devices is {uuid}")))
    }

    fn uuid(&self, ordinal: i32) -> Result<(i32, Uuid), GpuError> {
        let (mut number, mut uuid) = (0, [0; 16]);
        // SAFETY: writes one device number.
        unsafe { self.calls.cuDeviceGet(&mut number, ordinal) }?;
        // SAFETY: writes 16 bytes.
        unsafe { self.calls.cuDeviceGetUuid_v2(&mut uuid, number) }?;
        Ok((number, Uuid(uuid)))
    }
}
