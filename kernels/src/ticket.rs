//! A transfer on its way, with everything that it uses.

use std::sync::Arc;

use crate::error::GpuError;
use crate::event::Event;
use crate::imported::ImportedKv;
use crate::kernels::{Direction, Kernels, Slot};
use crate::memory::{LandingSlab, PinnedRegion};
use crate::plan::Run;
use crate::queue::Kind;
use crate::stream::CopyStream;

/// What a transfer uses, none of which may be freed under it.
#[derive(Debug)]
struct Held {
    stream: Arc<CopyStream>,
    _slab: Option<Arc<LandingSlab>>,
    _host: Option<Arc<PinnedRegion>>,
    _kv: Option<Arc<ImportedKv>>,
    slot: Slot,
}

/// A transfer that was given to a stream. It keeps its memory until its event has fired; dropped earlier, it waits.
#[derive(Debug)]
pub struct Ticket {
    held: Option<Held>,
    event: Option<Event>,
    recorded: bool,
}

impl Ticket {
    /// Host to engine: copies a chunk at `host` to `slab` and scatters its blocks `first..` into the engine's `blocks`.
    ///
    /// # Errors
    /// A range outside its buffer, a block outside the cache, too many transfers on their way, or the driver's. Nothing
    /// is on its way then; some of the pages may have been written.
    pub fn load(
        kernels: &Arc<Kernels>,
        stream: &Arc<CopyStream>,
        (host, from): (&Arc<PinnedRegion>, usize),
        (slab, at): (&Arc<LandingSlab>, usize),
        kv: &Arc<ImportedKv>,
        (blocks, first): (&[u32], u32),
    ) -> Result<Self, GpuError> {
        let held = Held::new(kernels, stream, Some(slab), Some(host), Some(kv))?;
        let bytes = kv.layout().chunk_bytes() as usize;
        Self::start(held, |held| {
            stream.copy_in((slab, at), (host, from), bytes)?;
            kernels.pages(Direction::Scatter, stream, (slab, at), kv, (&held.slot, blocks, first))
        })
    }

    /// Engine to host: gathers the engine's `blocks` into blocks `first..` of a chunk at `slab` and copies it to `host`.
    ///
    /// # Errors
    /// As [`Ticket::load`].
    pub fn store(
        kernels: &Arc<Kernels>,
        stream: &Arc<CopyStream>,
        kv: &Arc<ImportedKv>,
        (blocks, first): (&[u32], u32),
        (slab, at): (&Arc<LandingSlab>, usize),
        (host, to): (&Arc<PinnedRegion>, usize),
    ) -> Result<Self, GpuError> {
        let held = Held::new(kernels, stream, Some(slab), Some(host), Some(kv))?;
        let bytes = kv.layout().chunk_bytes() as usize;
        Self::start(held, |held| {
            kernels.pages(Direction::Gather, stream, (slab, at), kv, (&held.slot, blocks, first))?;
            stream.copy_out((host, to), (slab, at), bytes)
        })
    }

    /// Host to engine without a slab: a copy for each run of the chunk at `host`; in one call where `batch` asks for it
    /// and the driver can.
    ///
    /// # Errors
    /// As [`Ticket::load`].
    pub fn load_runs(
        kernels: &Arc<Kernels>,
        stream: &Arc<CopyStream>,
        host: (&Arc<PinnedRegion>, usize),
        kv: &Arc<ImportedKv>,
        runs: (&[Run], bool),
    ) -> Result<Self, GpuError> {
        let held = Held::new(kernels, stream, None, Some(host.0), Some(kv))?;
        Self::start(held, |_| stream.copy_runs(Kind::Load, host, kv, runs))
    }

    /// Engine to host without a slab, as above.
    ///
    /// # Errors
    /// As [`Ticket::load`].
    pub fn store_runs(
        kernels: &Arc<Kernels>,
        stream: &Arc<CopyStream>,
        kv: &Arc<ImportedKv>,
        runs: (&[Run], bool),
        host: (&Arc<PinnedRegion>, usize),
    ) -> Result<Self, GpuError> {
        let held = Held::new(kernels, stream, None, Some(host.0), Some(kv))?;
        Self::start(held, |_| stream.copy_runs(Kind::Store, host, kv, runs))
    }

    /// Slab to engine: scatters a chunk that was staged, inside the GPU.
    ///
    /// # Errors
    /// As [`Ticket::load`].
    pub fn scatter(
        kernels: &Arc<Kernels>,
        stream: &Arc<CopyStream>,
        (slab, at): (&Arc<LandingSlab>, usize),
        kv: &Arc<ImportedKv>,
        (blocks, first): (&[u32], u32),
    ) -> Result<Self, GpuError> {
        let held = Held::new(kernels, stream, Some(slab), None, Some(kv))?;
        Self::start(held, |held| {
            kernels.pages(Direction::Scatter, stream, (slab, at), kv, (&held.slot, blocks, first))
        })
    }

    /// Host to slab and nothing more: what staging does.
    ///
    /// # Errors
    /// As [`Ticket::load`].
    pub fn copy_in(
        kernels: &Arc<Kernels>,
        stream: &Arc<CopyStream>,
        (host, from): (&Arc<PinnedRegion>, usize),
        (slab, at): (&Arc<LandingSlab>, usize),
        bytes: usize,
    ) -> Result<Self, GpuError> {
        let held = Held::new(kernels, stream, Some(slab), Some(host), None)?;
        Self::start(held, |_| stream.copy_in((slab, at), (host, from), bytes))
    }

    /// Slab to host and nothing more.
    ///
    /// # Errors
    /// As [`Ticket::load`].
    pub fn copy_out(
        kernels: &Arc<Kernels>,
        stream: &Arc<CopyStream>,
        (slab, at): (&Arc<LandingSlab>, usize),
        (host, to): (&Arc<PinnedRegion>, usize),
        bytes: usize,
    ) -> Result<Self, GpuError> {
        let held = Held::new(kernels, stream, Some(slab), Some(host), None)?;
        Self::start(held, |_| stream.copy_out((host, to), (slab, at), bytes))
    }

    /// The part sums of a chunk of `bytes` at `at` of the slab, into `sums` of it: 8 bytes for each 4 KiB.
    ///
    /// # Errors
    /// As [`Ticket::load`]; both places must be multiples of 8.
    pub fn checksum(
        kernels: &Arc<Kernels>,
        stream: &Arc<CopyStream>,
        slab: &Arc<LandingSlab>,
        (at, bytes): (usize, usize),
        sums: usize,
    ) -> Result<Self, GpuError> {
        let held = Held::new(kernels, stream, Some(slab), None, None)?;
        Self::start(held, |_| kernels.sums(stream, slab, (at, bytes), sums))
    }

    fn start(held: Held, give: impl FnOnce(&Held) -> Result<(), GpuError>) -> Result<Self, GpuError> {
        // From here on an error drops the ticket, which waits for what had been given.
        let mut ticket = Self { held: Some(held), event: None, recorded: false };
        let held = ticket.held.as_ref().expect("just put there");
        ticket.event = Some(Event::create(&held.stream.device)?);
        give(held)?;
        held.stream.record(ticket.event.as_ref().expect("just put there"))?;
        ticket.recorded = true;
        Ok(ticket)
    }

    /// Its event: another stream, or by its handle another process, waits for it.
    pub fn event(&self) -> &Event {
        self.event.as_ref().expect("made before a ticket is given out")
    }

    /// Whether it is done.
    ///
    /// # Errors
    /// The driver's: the device is lost, or a kernel failed. What was written then cannot be known.
    pub fn is_done(&self) -> Result<bool, GpuError> {
        self.event().is_reached()
    }

    /// Waits until it is done, blocking the thread, and gives its memory back.
    ///
    /// # Errors
    /// As [`Ticket::is_done`].
    pub fn wait(mut self) -> Result<(), GpuError> {
        self.settle()
    }

    fn settle(&mut self) -> Result<(), GpuError> {
        let Some(held) = self.held.take() else { return Ok(()) };
        let done = match &self.event {
            Some(event) if self.recorded => event.wait(),
            _ => held.stream.drain(),
        };
        // An error of the wait itself says nothing about the copies; the stream is the second to be asked.
        if done.is_err() && held.stream.drain().is_err() {
            // The device may still write there, for all we know: better lost than given to another.
            std::mem::forget(held);
        }
        done
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Nobody asked how it ended.
        let _ = self.settle();
    }
}

impl Held {
    fn new(
        kernels: &Arc<Kernels>,
        stream: &Arc<CopyStream>,
        slab: Option<&Arc<LandingSlab>>,
        host: Option<&Arc<PinnedRegion>>,
        kv: Option<&Arc<ImportedKv>>,
    ) -> Result<Self, GpuError> {
        let slot = kernels.slot()?;
        Ok(Self {
            stream: Arc::clone(stream),
            _slab: slab.cloned(),
            _host: host.cloned(),
            _kv: kv.cloned(),
            slot,
        })
    }
}
