//! KV between pinned host memory and pages that an engine owns on a GPU.
//!
//! [`Driver::load`] asks whether there is a GPU at all; everything else comes from it: a [`Device`] by UUID,
//! [`CopyStream`] and [`Event`] to order work, [`PinnedRegion`] for host memory, [`LandingSlab`] for our memory on the
//! device, [`ImportedKv`] for the engine's, [`Kernels`] to move between the two, and a [`Ticket`] that owns what a
//! transfer uses until it is done. [`reference`] says on the CPU what the kernels do.
//!
//! The only package that names cudarc. Kernels are PTX that is checked in (`build-ptx.sh`), so a build needs neither
//! CUDA nor clang.

mod calls;
mod device;
mod driver;
mod error;
mod event;
mod imported;
mod kernels;
mod layout;
mod link;
mod memory;
mod plan;
mod queue;
pub mod reference;
pub mod selftest;
mod stream;
mod ticket;
mod virtual_memory;

pub use device::{Device, Uuid};
pub use driver::{Driver, NoGpu};
pub use error::GpuError;
pub use event::{Event, EventHandle};
pub use imported::{ImportedKv, KvHandle, KvPart, KvPieces};
pub use kernels::Kernels;
pub use layout::{Layer, Layout, LayoutError, Order};
pub use link::{Link, LinkSettings, Place, Progress, Transfer, TransferId};
pub use memory::{HostBytes, HostMemory, LandingSlab, PinnedRegion};
pub use plan::{Policy, Run, Way, plan};
pub use queue::{Depth, Kind, Limits, Queue};
pub use stream::CopyStream;
pub use ticket::Ticket;
pub use virtual_memory::Piece;
