//! A GPU's link: transfers wait their turn, are done as planned, and end with a word about their memory.
//!
//! Nothing here blocks or has a thread of its own: who owns a link calls [`Link::poll`]. A transfer begins only when the
//! engine's event was reached, asked of the event and not waited for in a stream, so an engine that hangs or died holds
//! up its own transfers and no other's.

use std::sync::Arc;

use crate::error::GpuError;
use crate::event::{Event, EventHandle};
use crate::imported::ImportedKv;
use crate::kernels::{Kernels, SLOTS};
use crate::memory::{LandingSlab, PinnedRegion};
use crate::plan::{Policy, Way, plan};
use crate::queue::{Depth, Kind, Limits, Queue};
use crate::stream::CopyStream;
use crate::ticket::Ticket;

/// Transfers whose engine is not ready; one more is refused.
const UNREADY_MAX: usize = 1024;

/// Where a chunk lies on our side.
#[derive(Debug, Clone)]
pub enum Place {
    /// In pinned host memory.
    Host(Arc<PinnedRegion>, usize),
    /// In a slab on the device, where staging has put it; loads only.
    Slab(Arc<LandingSlab>, usize),
}

/// A transfer that is asked for.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Into the engine's pages, or out of them.
    pub kind: Kind,
    /// Where the chunk begins.
    pub place: Place,
    /// The engine's cache.
    pub kv: Arc<ImportedKv>,
    /// The engine's blocks.
    pub blocks: Vec<u32>,
    /// Which block of the chunk the first of them is.
    pub first: u32,
    /// Recorded by the engine behind what it does with these pages before.
    pub after: Option<Arc<Event>>,
}

/// Names a transfer of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransferId(u64);

/// What became of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It is on its way. The engine waits for the event before it uses the pages; sooner there is none to wait for.
    Begun(TransferId, EventHandle),
    /// It is over.
    Ended {
        /// Which.
        id: TransferId,
        /// Whether all of it was done. After a failure some pages may have been written.
        result: Result<(), GpuError>,
        /// Nothing of it moves any more. Where this is false nobody knows, and its memory must not be used again.
        is_quiet: bool,
    },
}

/// How a link works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkSettings {
    /// How transfers are done.
    pub policy: Policy,
    /// How much may wait and be on its way.
    pub limits: Limits,
}

/// A link to one GPU.
#[derive(Debug)]
pub struct Link {
    kernels: Arc<Kernels>,
    loads: Arc<CopyStream>,
    stores: Arc<CopyStream>,
    landing: Landing,
    settings: LinkSettings,
    unready: Vec<(TransferId, Transfer)>,
    queue: Queue<(TransferId, Transfer)>,
    going: Vec<Going>,
    news: Vec<Progress>,
    next: u64,
}

/// Slots of a slab through which chunks pass.
#[derive(Debug)]
struct Landing {
    slab: Arc<LandingSlab>,
    slot_bytes: usize,
    slots: usize,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Going {
    id: TransferId,
    kind: Kind,
    bytes: u64,
    ticket: Ticket,
    /// Of the landing slab.
    slot: usize,
}

impl Link {
    /// A link whose chunks have at most `chunk_bytes`, of which `slots` may pass through `kernels`' device at once.
    ///
    /// # Errors
    /// The driver's: too little memory is free on the device.
    pub fn create(
        kernels: &Arc<Kernels>,
        chunk_bytes: usize,
        slots: usize,
        settings: LinkSettings,
    ) -> Result<Self, GpuError> {
        let device = kernels.device();
        // Slots begin at multiples of 16, as the kernels like it best.
        let slot_bytes = chunk_bytes.max(1).checked_next_multiple_of(16);
        let all = slot_bytes.and_then(|bytes| bytes.checked_mul(slots)).filter(|bytes| *bytes > 0);
        let (Some(slot_bytes), Some(all), 1..=SLOTS) = (slot_bytes, all, slots) else {
            let why = format!("{slots} slots of {chunk_bytes} bytes; 1 to {SLOTS} slots can be used at once");
            return Err(GpuError::refused("Link::create", why));
        };
        let (low, high) = device.priorities()?;
        Ok(Self {
            kernels: Arc::clone(kernels),
            loads: Arc::new(CopyStream::create(device, high)?),
            stores: Arc::new(CopyStream::create(device, low)?),
            landing: Landing {
                slab: Arc::new(LandingSlab::create(device, all)?),
                slot_bytes,
                slots,
                free: (0..slots).map(|slot| slot * slot_bytes).collect(),
            },
            settings,
            unready: Vec::new(),
            queue: Queue::new(settings.limits),
            going: Vec::new(),
            news: Vec::new(),
            next: 0,
        })
    }

    /// Takes a transfer; [`Link::poll`] says what becomes of it.
    ///
    /// # Errors
    /// It cannot be done: its chunk is larger than the link's, its blocks are not of the cache, or too many wait. It is
    /// not taken then.
    pub fn submit(&mut self, transfer: Transfer) -> Result<TransferId, GpuError> {
        let refused = |why| Err(GpuError::refused("Link::submit", why));
        let chunk_bytes = transfer.kv.layout().chunk_bytes();
        if chunk_bytes > self.landing.slot_bytes as u64 {
            return refused(format!(
                "a chunk of {chunk_bytes} bytes for slots of {}",
                self.landing.slot_bytes
            ));
        }
        if let Some(why) = transfer.kv.layout().refuses(&transfer.blocks, transfer.first) {
            return refused(why);
        }
        if transfer.kind == Kind::Store && matches!(transfer.place, Place::Slab(..)) {
            return refused("a store goes to host memory".to_owned());
        }
        let id = TransferId(self.next);
        if transfer.after.is_none() {
            if self.queue.push(transfer.kind, chunk_bytes, (id, transfer)).is_err() {
                return refused(format!("as many wait as may: {:?}", self.queue.depth()));
            }
        } else if self.unready.len() < UNREADY_MAX {
            self.unready.push((id, transfer));
        } else {
            return refused(format!("{UNREADY_MAX} transfers wait for their engines"));
        }
        self.next += 1;
        Ok(id)
    }

    /// Ends what is done, begins what may begin, and says so. Never blocks but after a failure.
    pub fn poll(&mut self) -> Vec<Progress> {
        self.ready();
        self.reap();
        while !self.landing.free.is_empty()
            && let Some((kind, bytes, (id, transfer))) = self.queue.begin(self.may_store())
        {
            self.begin(id, kind, bytes, &transfer);
        }
        std::mem::take(&mut self.news)
    }

    /// Stores take half of the slots at most, so that a load that comes finds one at once; where there is only one, that.
    fn may_store(&self) -> bool {
        let stores = self.going.iter().filter(|going| going.kind == Kind::Store).count();
        stores < (self.landing.slots / 2).max(1)
    }

    /// Waits for what is on its way, blocking the thread; nothing new begins.
    pub fn drain(&mut self) -> Vec<Progress> {
        for Going { id, kind, bytes, ticket, slot } in std::mem::take(&mut self.going) {
            let result = ticket.wait();
            self.ended(id, kind, bytes, slot, result);
        }
        std::mem::take(&mut self.news)
    }

    /// Gives up what waits for an engine's cache, since the engine has gone; what is on its way ends by itself.
    pub fn forget(&mut self, kv: &Arc<ImportedKv>) {
        let other = |transfer: &Transfer| !Arc::ptr_eq(&transfer.kv, kv);
        let waiting = self.queue.forget(|(_, transfer)| other(transfer));
        let unready = self.unready.extract_if(.., |(_, transfer)| !other(transfer));
        for (id, _) in waiting.into_iter().chain(unready.collect::<Vec<_>>()) {
            let gone = GpuError::refused("Link::forget", "its engine has gone".to_owned());
            self.news.push(Progress::Ended { id, result: Err(gone), is_quiet: true });
        }
    }

    /// Records `event` behind all loads, or all stores, that have begun: a stream that waits for it waits for them.
    ///
    /// # Errors
    /// The driver's.
    pub fn record(&self, kind: Kind, event: &Event) -> Result<(), GpuError> {
        let stream = if kind == Kind::Load { &self.loads } else { &self.stores };
        stream.record(event)
    }

    /// How far the link is behind; what waits for its engine is not counted.
    pub fn depth(&self) -> Depth {
        self.queue.depth()
    }

    /// Whether nothing waits and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.unready.is_empty() && self.going.is_empty() && self.queue.depth() == Depth::default()
    }

    /// Queues what its engine is ready for.
    fn ready(&mut self) {
        for (id, transfer) in std::mem::take(&mut self.unready) {
            match transfer.after.as_ref().map_or(Ok(true), |event| event.is_reached()) {
                Ok(false) => self.unready.push((id, transfer)),
                Ok(true) => {
                    let bytes = transfer.kv.layout().chunk_bytes();
                    if self.queue.push(transfer.kind, bytes, (id, transfer)).is_err() {
                        let why = format!("as many wait as may: {:?}", self.queue.depth());
                        let full = GpuError::refused("Link::poll", why);
                        self.news.push(Progress::Ended { id, result: Err(full), is_quiet: true });
                    }
                }
                Err(error) => {
                    self.news.push(Progress::Ended { id, result: Err(error), is_quiet: true });
                }
            }
        }
    }

    fn reap(&mut self) {
        for going in std::mem::take(&mut self.going) {
            let Going { id, kind, bytes, ticket, slot } = going;
            let result = match ticket.is_done() {
                Ok(false) => {
                    self.going.push(Going { id, kind, bytes, ticket, slot });
                    continue;
                }
                Ok(true) => ticket.wait(),
                Err(error) => Err(error),
            };
            self.ended(id, kind, bytes, slot, result);
        }
    }

    fn begin(&mut self, id: TransferId, kind: Kind, bytes: u64, transfer: &Transfer) {
        let slot = self.landing.free.pop().expect("asked before");
        let begun = self.give(kind, transfer, slot).and_then(|ticket| Ok((ticket.event().export()?, ticket)));
        match begun {
            Ok((event, ticket)) => {
                self.news.push(Progress::Begun(id, event));
                self.going.push(Going { id, kind, bytes, ticket, slot });
            }
            Err(error) => self.ended(id, kind, bytes, slot, Err(error)),
        }
    }

    fn give(&self, kind: Kind, transfer: &Transfer, slot: usize) -> Result<Ticket, GpuError> {
        let Transfer { place, kv, blocks, first, .. } = transfer;
        let stream = if kind == Kind::Load { &self.loads } else { &self.stores };
        let (host, at) = match place {
            Place::Slab(slab, at) => {
                return Ticket::scatter(&self.kernels, stream, (slab, *at), kv, (blocks, *first));
            }
            Place::Host(host, at) => (host, *at),
        };
        let slab = (&self.landing.slab, slot);
        let policy = self.settings.policy;
        match (kind, plan(kv.layout(), blocks, *first, policy)) {
            (Kind::Load, Way::Copies(runs)) => {
                Ticket::load_runs(&self.kernels, stream, (host, at), kv, (&runs, policy.batch))
            }
            (Kind::Store, Way::Copies(runs)) => {
                Ticket::store_runs(&self.kernels, stream, kv, (&runs, policy.batch), (host, at))
            }
            (Kind::Load, Way::Kernel) => {
                Ticket::load(&self.kernels, stream, (host, at), slab, kv, (blocks, *first))
            }
            (Kind::Store, Way::Kernel) => {
                Ticket::store(&self.kernels, stream, kv, (blocks, *first), slab, (host, at))
            }
        }
    }

    fn ended(&mut self, id: TransferId, kind: Kind, bytes: u64, slot: usize, result: Result<(), GpuError>) {
        let stream = if kind == Kind::Load { &self.loads } else { &self.stores };
        // After a failure only the stream can say that nothing moves any more.
        let is_quiet = result.is_ok() || stream.drain().is_ok();
        if is_quiet {
            self.landing.free.push(slot);
        }
        self.queue.ended(kind, bytes);
        self.news.push(Progress::Ended { id, result, is_quiet });
    }
}
