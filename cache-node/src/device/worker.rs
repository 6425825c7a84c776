//! The thread's loop: takes what it is told, begins what may begin, tells what has ended.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use larder_kernels::{Driver, Kind, Place, Progress, Transfer, TransferId, Uuid};
use larder_protocol::LeaseId;
use tokio::sync::mpsc::UnboundedSender;

use super::card::Card;
use super::filling::Filling;
use super::landing::PartPlace;
use super::pinning::Pinning;
use super::rank::Rank;
use super::{Command, Memory, Settings};
use crate::medium::memory::SharedMemory;
use crate::store::{ConnectionId, DeviceInput, DeviceOp, DeviceStats, Input, JobId, Pages, SessionId};

mod engines;

/// Between two looks at what is on its way: a fraction of what 1 MiB takes on a PCIe 4 link.
const LOOK: Duration = Duration::from_micros(20);
/// The same when nothing has happened for a while: what is on its way, up to 64 MiB, keeps the link busy meanwhile.
const LOOK_MAX: Duration = Duration::from_micros(500);

/// A transfer, wherever it is: its GPU, its link, its number there.
type TransferKey = (Uuid, usize, TransferId);

/// A fetch or save.
#[derive(Debug)]
struct Job {
    connection: ConnectionId,
    kind: Kind,
    /// Transfers that have not begun.
    to_begin: usize,
    /// Transfers that have not ended.
    open: usize,
    error: Option<String>,
    is_quiet: bool,
}

/// A fetch or save whose engine is not ready.
#[derive(Debug)]
struct Unready {
    job: JobId,
    /// A fetch's.
    lease: Option<LeaseId>,
    connection: ConnectionId,
    kind: Kind,
    places: Vec<u64>,
    pages: Pages,
}

/// A transfer's job, and what it reads of the landing slab.
#[derive(Debug, Clone, Copy)]
struct Part {
    job: JobId,
    landed: Option<(PartPlace, LeaseId)>,
}

struct Worker {
    settings: Settings,
    driver: Option<Driver>,
    slab: Arc<SharedMemory>,
    pinning: Pinning,
    results: UnboundedSender<Input>,
    cards: HashMap<Uuid, Card>,
    ranks: HashMap<ConnectionId, Rank>,
    unready: Vec<Unready>,
    jobs: HashMap<JobId, Job>,
    transfers: HashMap<TransferKey, Part>,
    /// Leases whose chunks are being brought to GPUs.
    landing: Vec<LeaseId>,
    /// What is to be said, once the figures show it.
    news: Vec<DeviceInput>,
}

/// Works until it is told to quit, or nobody is left to tell it anything.
pub(super) fn work(
    settings: Settings,
    slab: Arc<SharedMemory>,
    inbox: &Receiver<Command>,
    to_itself: Sender<Command>,
    results: UnboundedSender<Input>,
    stats: &Mutex<DeviceStats>,
) {
    let driver = match Driver::load() {
        Ok(driver) => Some(driver),
        Err(none) => {
            tracing::info!("no GPU is used: {none}");
            None
        }
    };
    let mut worker = Worker {
        settings,
        driver,
        slab,
        pinning: Pinning::new(to_itself),
        results,
        cards: HashMap::new(),
        ranks: HashMap::new(),
        unready: Vec::new(),
        jobs: HashMap::new(),
        transfers: HashMap::new(),
        landing: Vec::new(),
        news: Vec::new(),
    };
    worker.run(inbox, stats);
}

impl Worker {
    fn run(&mut self, inbox: &Receiver<Command>, stats: &Mutex<DeviceStats>) {
        let mut pause = LOOK;
        loop {
            let idle =
                self.unready.is_empty() && self.landing.is_empty() && self.cards.values().all(Card::is_idle);
            let told = match idle {
                true => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => inbox.recv_timeout(pause),
            };
            let mut happened = match told {
                Ok(command) => self.take(command),
                Err(RecvTimeoutError::Timeout) => Some(false),
                Err(RecvTimeoutError::Disconnected) => None,
            };
            while let Some(so_far) = happened
                && let Ok(command) = inbox.try_recv()
            {
                happened = self.take(command).map(|did| did || so_far);
            }
            let Some(told) = happened else { return self.drain() };
            let moved = self.poll();
            pause = if told || moved { LOOK } else { (pause * 2).min(LOOK_MAX) };
            *stats.lock().unwrap_or_else(PoisonError::into_inner) = self.stats();
            for input in self.news.drain(..) {
                // If nobody listens the node is ending.
                let _ = self.results.send(Input::Device(input));
            }
        }
    }

    /// Takes a command; None if it is to end.
    fn take(&mut self, command: Command) -> Option<bool> {
        match command {
            Command::Attach(DeviceOp::Attach { connection, rank, part, attach }, descriptors, region) => {
                let result = self.attach(connection, rank, part, &attach, descriptors);
                if result.is_ok() {
                    self.pin(connection, region);
                }
                self.say(DeviceInput::Attached { connection, id: attach.id, result });
            }
            Command::Do(DeviceOp::Detach { connection }) => self.detach(connection),
            Command::Do(DeviceOp::Fetch { job, lease, connection, places, pages }) => {
                let (kind, lease) = (Kind::Load, Some(lease));
                self.unready.push(Unready { job, lease, connection, kind, places, pages });
            }
            Command::Do(DeviceOp::Save { job, connection, places, pages }) => {
                let (kind, lease) = (Kind::Store, None);
                self.unready.push(Unready { job, lease, connection, kind, places, pages });
            }
            Command::Do(DeviceOp::Land { lease, session, needed_by, places }) => {
                self.land(lease, session, needed_by, &places);
            }
            Command::Do(DeviceOp::Unland { lease }) => {
                let tiers = self.cards.values_mut().filter_map(|card| card.filling.as_mut());
                tiers.for_each(|tier| tier.landing.unwant(lease));
            }
            Command::Pinned(memory, result) => self.pinning.ended(memory, result),
            Command::Quit => return None,
            Command::Do(DeviceOp::Attach { .. }) | Command::Attach(..) => {
                unreachable!("pages are attached by `Gpus::attach`, which takes nothing else")
            }
        }
        Some(true)
    }

    /// Brings the beginning of a lease's chunks to the GPUs of all ranks.
    fn land(&mut self, lease: LeaseId, session: SessionId, needed_by: Duration, places: &[u64]) {
        self.landing.push(lease);
        if self.pinning.get(Memory::Slab).is_none() {
            // Nothing can be brought from there; where pinning fails it would wait for ever.
            return;
        }
        for rank in self.ranks.values().filter(|rank| rank.session == session) {
            let Some(card) = self.cards.get_mut(&rank.device).filter(|card| !card.lost) else { continue };
            let (bytes, number) = (rank.part_bytes as u64, u64::from(rank.number));
            let parts = places.iter().map(|place| (place + number * bytes, bytes));
            card.filling.iter_mut().for_each(|tier| tier.want(lease, needed_by, parts.clone()));
        }
    }

    /// Brings on what is to land, and tells of leases of which nothing is read any more.
    fn fill(&mut self) -> bool {
        let (mut happened, mut lost) = (false, Vec::new());
        if let Some(host) = self.pinning.get(Memory::Slab) {
            for (uuid, card) in self.cards.iter_mut().filter(|(_, card)| !card.lost) {
                let may_begin = !card.is_busy();
                let Some(tier) = &mut card.filling else { continue };
                match tier.poll((&self.slab, host), may_begin) {
                    Ok(did) => happened |= did,
                    Err(_) => lost.push(*uuid),
                }
            }
        }
        lost.into_iter().for_each(|uuid| self.lose(uuid));
        let cards = &self.cards;
        let reads = |lease: &LeaseId| {
            cards.values().any(|card| card.filling.as_ref().is_some_and(|it| it.reads(*lease)))
        };
        let (still, over): (Vec<_>, Vec<_>) = std::mem::take(&mut self.landing).into_iter().partition(reads);
        self.landing = still;
        happened |= !over.is_empty();
        over.into_iter().for_each(|lease| self.say(DeviceInput::Landed { lease }));
        happened
    }

    /// Begins and ends what there is to; whether there was anything.
    fn poll(&mut self) -> bool {
        let mut happened = self.submit_ready();
        let mut news = Vec::new();
        for (uuid, card) in &mut self.cards {
            news.extend(card.poll().into_iter().map(|(size, progress)| (*uuid, size, progress)));
        }
        happened |= !news.is_empty();
        for (uuid, size, progress) in news {
            self.progress(uuid, size, progress);
        }
        happened |= self.fill();
        let ranks = &self.ranks;
        for (uuid, card) in &mut self.cards {
            card.keep(|size| ranks.values().any(|rank| rank.device == *uuid && rank.part_bytes == size));
        }
        happened
    }

    /// Gives to the links what its engine is ready for.
    fn submit_ready(&mut self) -> bool {
        let before = self.unready.len();
        for unready in std::mem::take(&mut self.unready) {
            match self.is_ready(&unready) {
                Ok(false) => self.unready.push(unready),
                Ok(true) => self.submit(unready),
                Err(error) => self.end(unready.job, Err(error), true),
            }
        }
        self.unready.len() < before
    }

    fn is_ready(&self, unready: &Unready) -> Result<bool, String> {
        let rank = self.ranks.get(&unready.connection).ok_or("this rank's pages are not open")?;
        let Some(number) = unready.pages.after else { return Ok(true) };
        let event = rank.event(number).ok_or_else(|| format!("the engine has named no event {number}"))?;
        event.is_reached().map_err(|error| error.to_string())
    }

    fn submit(&mut self, unready: Unready) {
        let Unready { job, lease, connection, kind, places, pages } = unready;
        let rank = &self.ranks[&connection];
        let memory = if kind == Kind::Load { Memory::Slab } else { Memory::Region(rank.session) };
        let Some(host) = self.pinning.get(memory).cloned() else {
            return self.end(job, Err("the node's memory is not pinned yet".to_owned()), true);
        };
        let Some(card) = self.cards.get_mut(&rank.device).filter(|card| !card.lost) else {
            return self.end(job, Err("the GPU is lost".to_owned()), true);
        };
        let link = card.links.get_mut(&rank.part_bytes).expect("a rank's link is kept");
        let mut state = Job { connection, kind, to_begin: 0, open: 0, error: None, is_quiet: true };
        let (mut first, mut rest) = (pages.skip as usize, &pages.blocks[..]);
        for place in places {
            let (own, others) = rest.split_at(rest.len().min(rank.chunk_blocks - first));
            let landed = lease.and_then(|lease| {
                let at = card.filling.as_mut()?.take(place)?;
                Some((at, (place, lease)))
            });
            let (at, landed) = landed
                .map_or((Place::Host(Arc::clone(&host), place as usize), None), |(at, landed)| {
                    (at, Some(landed))
                });
            let transfer = Transfer {
                kind,
                place: at,
                kv: Arc::clone(&rank.kv),
                blocks: own.to_vec(),
                first: first as u32,
                after: None,
            };
            match link.submit(transfer) {
                Ok(id) => {
                    self.transfers.insert((rank.device, rank.part_bytes, id), Part { job, landed });
                }
                Err(error) => {
                    if let (Some((place, lease)), Some(tier)) = (landed, &mut card.filling) {
                        tier.scattered(place, lease, (false, true));
                    }
                    state.error = Some(error.to_string());
                    break;
                }
            }
            (state.to_begin, state.open) = (state.to_begin + 1, state.open + 1);
            (first, rest) = (0, others);
        }
        if state.open == 0 {
            return self.end(job, Err(state.error.unwrap_or_default()), true);
        }
        self.jobs.insert(job, state);
    }

    fn progress(&mut self, uuid: Uuid, size: usize, progress: Progress) {
        match progress {
            Progress::Begun(id, _) => {
                let Some(Part { job, .. }) = self.transfers.get(&(uuid, size, id)).copied() else { return };
                let found = self.jobs.get_mut(&job).expect("a transfer's job is known");
                found.to_begin -= 1;
                if found.to_begin == 0 && found.error.is_none() {
                    self.announce(job, (uuid, size));
                }
            }
            Progress::Ended { id, result, is_quiet } => {
                let Some(Part { job, landed }) = self.transfers.remove(&(uuid, size, id)) else { return };
                let tier = self.cards.get_mut(&uuid).and_then(|card| card.filling.as_mut());
                if let (Some((place, lease)), Some(tier)) = (landed, tier) {
                    tier.scattered(place, lease, (result.is_ok(), is_quiet));
                }
                let found = self.jobs.get_mut(&job).expect("a transfer's job is known");
                if let Err(error) = result {
                    tracing::warn!(gpu = %uuid, %error, is_quiet, "a transfer failed");
                    found.error.get_or_insert(error.to_string());
                }
                found.is_quiet &= is_quiet;
                found.open -= 1;
                if found.open == 0 {
                    let ended = self.jobs.remove(&job).expect("was found above");
                    self.end(job, ended.error.map_or(Ok(()), Err), ended.is_quiet);
                }
                if !is_quiet {
                    self.lose(uuid);
                }
            }
        }
    }

    /// All of a job has begun: the engine may wait for it in its streams.
    fn announce(&mut self, job: JobId, (uuid, size): (Uuid, usize)) {
        let found = &self.jobs[&job];
        let Some(rank) = self.ranks.get_mut(&found.connection) else { return };
        let Some(link) = self.cards.get(&uuid).and_then(|card| card.links.get(&size)) else { return };
        let (number, event) = rank.next_event();
        match link.record(found.kind, event) {
            Ok(()) => self.say(DeviceInput::Begun { job, event: number }),
            // The engine then waits for the end.
            Err(error) => tracing::warn!(gpu = %uuid, %error, "an event cannot be recorded"),
        }
    }

    /// A GPU of which nobody knows what still moves is not used any more.
    fn lose(&mut self, uuid: Uuid) {
        let Some(card) = self.cards.get_mut(&uuid).filter(|card| !card.lost) else { return };
        tracing::error!(gpu = %uuid, "a GPU is lost to this process: engines on it compute, or copy for themselves");
        card.lost = true;
        card.filling.iter_mut().for_each(Filling::lose);
        for rank in self.ranks.values().filter(|rank| rank.device == uuid) {
            card.links.values_mut().for_each(|link| link.forget(&rank.kv));
        }
    }

    fn end(&mut self, job: JobId, result: Result<(), String>, is_quiet: bool) {
        self.say(DeviceInput::Ended { job, result, is_quiet });
    }

    fn say(&mut self, input: DeviceInput) {
        self.news.push(input);
    }

    /// Waits for what is on its way; nothing new begins.
    fn drain(&mut self) {
        for link in self.cards.values_mut().flat_map(|card| card.links.values_mut()) {
            link.drain();
        }
    }

    fn stats(&self) -> DeviceStats {
        let mut links: Vec<_> = self.cards.iter().flat_map(|(uuid, card)| card.stats(*uuid)).collect();
        links.sort_by(|one, two| (&one.gpu, one.chunk_bytes).cmp(&(&two.gpu, two.chunk_bytes)));
        DeviceStats {
            ranks: self.ranks.len() as u64,
            unready: self.unready.len() as u64,
            pinned_bytes: self.pinning.pinned_bytes(),
            lost: self.cards.values().filter(|card| card.lost).count() as u64,
            landed: self.landed(|tier| tier.counts.landed),
            failed_landings: self.landed(|tier| tier.counts.failed),
            wrong_landings: self.landed(|tier| tier.counts.wrong),
            scattered: self.landed(|tier| tier.counts.scattered),
            displaced: self.landed(|tier| tier.landing.displaced),
            landing_bytes: self.landed(|tier| tier.landing.held().0),
            landing_chunks: self.landed(|tier| tier.landing.held().1),
            links,
        }
    }

    /// A figure of all GPUs' device tiers.
    fn landed(&self, figure: impl Fn(&Filling) -> u64) -> u64 {
        self.cards.values().filter_map(|card| card.filling.as_ref()).map(figure).sum()
    }
}
