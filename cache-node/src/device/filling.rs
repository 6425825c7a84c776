//! Bringing chunks' parts into a GPU's landing slab, and looking at them there.

use std::sync::Arc;
use std::time::Duration;

use larder_kernels::reference::{self, PIECE_BYTES};
use larder_kernels::{
    CopyStream, Device, GpuError, HostBytes, Kernels, LandingSlab, PinnedRegion, Place, Ticket,
};
use larder_protocol::LeaseId;

use super::landing::{Fill, Landing, PartPlace};
use crate::medium::memory::SharedMemory;

/// Parts on their way at once: a load that comes waits for these at most, and for no more than [`FILL_BYTES_MAX`].
const FILLS_MAX: usize = 4;
/// Bytes on their way at once, beyond the first part: a millisecond of a PCIe 4 link.
const FILL_BYTES_MAX: u64 = 16 << 20;
/// Bytes of a part whose sums fit into a fill's share of the memory for them; a larger one is not looked at, and so not
/// brought where it would have to be. No chunk is larger: it must fit into an extent.
const SUMMED_BYTES_MAX: u64 = crate::config::EXTENT_BYTES;
const SUMS_BYTES: usize = (SUMMED_BYTES_MAX as usize).div_ceil(PIECE_BYTES) * 8;

/// A GPU's landing slab.
#[derive(Debug)]
pub(super) struct Filling {
    kernels: Arc<Kernels>,
    stream: Arc<CopyStream>,
    slab: Arc<LandingSlab>,
    pub(super) landing: Landing,
    going: Vec<Going>,
    sums: Option<Sums>,
    pub(super) counts: Counts,
}

/// What was brought and loaded; only grows.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) landed: u64,
    pub(super) failed: u64,
    pub(super) wrong: u64,
    pub(super) scattered: u64,
}

/// Where sums come to, if parts are to be looked at.
#[derive(Debug)]
struct Sums {
    bytes: Arc<HostBytes>,
    pinned: Arc<PinnedRegion>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Going {
    fill: Fill,
    tickets: Vec<Ticket>,
    /// Its share of the memory for sums.
    share: Option<usize>,
}

impl Filling {
    /// Allocates the slab; `verify`: parts are looked at once they are there.
    pub(super) fn create(
        kernels: &Arc<Kernels>,
        device: &Device,
        bytes: u64,
        verify: bool,
    ) -> Result<Self, GpuError> {
        let sums = |()| {
            let bytes = HostBytes::new(SUMS_BYTES * FILLS_MAX);
            let pinned = Arc::new(PinnedRegion::register(device, Arc::clone(&bytes) as _)?);
            Ok(Sums { bytes, pinned, free: (0..FILLS_MAX).collect() })
        };
        Ok(Self {
            kernels: Arc::clone(kernels),
            stream: Arc::new(CopyStream::create(device, 0)?),
            slab: Arc::new(LandingSlab::create(device, usize::try_from(bytes).unwrap_or(usize::MAX))?),
            landing: Landing::new(bytes),
            going: Vec::new(),
            sums: verify.then_some(()).map(sums).transpose()?,
            counts: Counts::default(),
        })
    }

    pub(super) fn want(
        &mut self,
        lease: LeaseId,
        needed_by: Duration,
        parts: impl Iterator<Item = (PartPlace, u64)>,
    ) {
        self.landing.want(lease, needed_by, parts);
    }

    /// Where a part lies, if it is there, until [`Filling::scattered`].
    pub(super) fn take(&mut self, place: PartPlace) -> Option<Place> {
        let at = self.landing.take(place)?;
        Some(Place::Slab(Arc::clone(&self.slab), at as usize))
    }

    pub(super) fn scattered(&mut self, place: PartPlace, lease: LeaseId, result: (bool, bool)) {
        let (is_good, is_quiet) = result;
        self.counts.scattered += u64::from(is_good);
        self.landing.scattered(place, lease, is_quiet);
    }

    /// Whether host memory that a lease pins is read, or is going to be.
    pub(super) fn reads(&self, lease: LeaseId) -> bool {
        self.landing.waits_for(lease) || self.going.iter().any(|going| going.fill.lease == lease)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.going.is_empty() && self.landing.is_settled()
    }

    /// Ends what has come, and brings more where no load waits. Whether anything happened; an error is one of those after
    /// which nobody knows what still moves.
    pub(super) fn poll(
        &mut self,
        host: (&SharedMemory, &Arc<PinnedRegion>),
        may_begin: bool,
    ) -> Result<bool, GpuError> {
        let mut happened = false;
        for going in std::mem::take(&mut self.going) {
            let done = going.tickets.iter().all(|ticket| !matches!(ticket.is_done(), Ok(false)));
            match done {
                false => self.going.push(going),
                true => {
                    happened = true;
                    self.end(going, host.0)?;
                }
            }
        }
        while may_begin && self.has_room() {
            let verify = self.sums.is_some();
            let Some(fill) = self.landing.next(|bytes| if verify { sums_of(bytes) } else { 0 }) else {
                break;
            };
            happened = true;
            self.begin(fill, host.1)?;
        }
        Ok(happened)
    }

    /// The GPU is not used any more. Of what was on its way leases are told only if nothing of it moves.
    pub(super) fn lose(&mut self) {
        self.landing.forget_waiting();
        if self.stream.drain().is_ok() {
            self.going.clear();
        }
    }

    fn has_room(&self) -> bool {
        let bytes: u64 = self.going.iter().map(|going| going.fill.bytes).sum();
        self.going.is_empty() || (self.going.len() < FILLS_MAX && bytes < FILL_BYTES_MAX)
    }

    fn begin(&mut self, fill: Fill, host: &Arc<PinnedRegion>) -> Result<(), GpuError> {
        let share = self.sums.as_mut().and_then(|sums| sums.free.pop());
        let (mut tickets, mut result) = (Vec::new(), Ok(()));
        for step in 0..if self.sums.is_some() { 3 } else { 1 } {
            match self.step(step, fill, share, host) {
                Ok(ticket) => tickets.push(ticket),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let Err(error) = result else {
            self.going.push(Going { fill, tickets, share });
            return Ok(());
        };
        drop(tickets);
        self.give_up(fill, share, &error)
    }

    /// Copies the part in, sums its pieces, copies the sums out.
    fn step(
        &self,
        step: u32,
        fill: Fill,
        share: Option<usize>,
        host: &Arc<PinnedRegion>,
    ) -> Result<Ticket, GpuError> {
        let (kernels, stream) = (&self.kernels, &self.stream);
        let (at, bytes) = (fill.at as usize, fill.bytes as usize);
        let sums_at = at + bytes.next_multiple_of(8);
        match (step, &self.sums, share) {
            (1, ..) => Ticket::checksum(kernels, stream, &self.slab, (at, bytes), sums_at),
            (2, Some(sums), Some(share)) => {
                let to = (&sums.pinned, share * SUMS_BYTES);
                Ticket::copy_out(kernels, stream, (&self.slab, sums_at), to, bytes.div_ceil(PIECE_BYTES) * 8)
            }
            _ => Ticket::copy_in(kernels, stream, (host, fill.place as usize), (&self.slab, at), bytes),
        }
    }

    fn end(&mut self, going: Going, slab: &SharedMemory) -> Result<(), GpuError> {
        let Going { fill, tickets, share } = going;
        let results: Vec<_> = tickets.into_iter().map(Ticket::wait).collect();
        if let Some(error) = results.into_iter().find_map(Result::err) {
            return self.give_up(fill, share, &error);
        }
        let is_right = match (&mut self.sums, share) {
            (Some(sums), Some(share)) => {
                let found =
                    sums.bytes.read(share * SUMS_BYTES, (fill.bytes as usize).div_ceil(PIECE_BYTES) * 8);
                sums.free.push(share);
                let expected =
                    slab.with_bytes(&[(fill.place, fill.bytes)], |bytes| reference::checksum(bytes[0]));
                found.chunks(8).eq(expected.iter().map(|sum| sum.to_le_bytes()))
            }
            _ => true,
        };
        self.counts.landed += u64::from(is_right);
        if !is_right {
            self.counts.wrong += 1;
            tracing::error!(
                bytes = fill.bytes,
                "a chunk has come to a GPU with wrong bytes, and is not used there"
            );
        }
        self.landing.filled(fill.place, is_right);
        Ok(())
    }

    /// It failed: whether anything of it moves yet, only the stream can say.
    fn give_up(&mut self, fill: Fill, share: Option<usize>, error: &GpuError) -> Result<(), GpuError> {
        tracing::warn!(%error, "a chunk cannot be brought to a GPU");
        self.counts.failed += 1;
        if let Err(error) = self.stream.drain() {
            // Its lease is never told that it is over.
            self.going.push(Going { fill, tickets: Vec::new(), share });
            return Err(error);
        }
        if let (Some(sums), Some(share)) = (&mut self.sums, share) {
            sums.free.push(share);
        }
        self.landing.filled(fill.place, false);
        Ok(())
    }
}

/// Bytes that a part's sums take behind it in the slab.
fn sums_of(bytes: u64) -> u64 {
    bytes.next_multiple_of(8) - bytes + bytes.div_ceil(PIECE_BYTES as u64) * 8
}
