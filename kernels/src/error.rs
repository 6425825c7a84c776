//! What a call of the driver answers when it fails.

/// A failed call. What it was to do did not happen or cannot be known; the transfer is given up and the request
/// computes its prefix itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call} failed: {name} ({code})")]
pub struct GpuError {
    /// The driver's function.
    pub call: &'static str,
    /// Its code, as in `CUresult`.
    pub code: u32,
    /// The driver's name of the code.
    pub name: String,
}

/// `CUDA_ERROR_INVALID_VALUE`: also what this package answers itself for a range outside a buffer.
pub(crate) const INVALID_VALUE: u32 = 1;
/// `CUDA_ERROR_NOT_READY`: an event that was not reached yet, which is no failure.
pub(crate) const NOT_READY: u32 = 600;

impl GpuError {
    /// A call that this package refuses before the driver sees it.
    pub(crate) fn refused(call: &'static str, why: String) -> Self {
        Self { call, code: INVALID_VALUE, name: why }
    }
}
