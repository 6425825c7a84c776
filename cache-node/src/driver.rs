//! The one task that owns the store: takes events one by one, steps the store, carries out what it says.
//!
//! `select` is the only wait; `apply` never waits and owns all state, so there are no locks and no half-done steps.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use larder_protocol::control::{
    PinAnswer, PinRequest, PinsAnswer, QuotaAnswer, QuotaRequest, QuotasAnswer, ReleaseRequest, StageAnswer,
    StageRequest,
};
use larder_protocol::message::{Farewell, Refused, ToNode};
use larder_protocol::{LeaseId, PinId, ToEngine, code::RefusedCode};
use larder_tiering::disk::Limits;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Interval, MissedTickBehavior};

use crate::device::{self as device_settings, Gpus};
use crate::engine_port::connection::{Outbox, Tasks};
use crate::medium::memory::{Others, SharedMemory};
use crate::peer::Peer;
use crate::store::{ConnectionId, Damage, Input, Output, SessionId, Settings, Stats, Store, Ticket};
use crate::transfer::disk::DiskThreads;
use crate::transfer::{Clock, CopyJob, Transfer};

mod device;

/// How often time alone moves the store: the grain of lease expiry and of deadlines of what waits for the disk.
const TICK: Duration = Duration::from_millis(10);

/// Events that may wait. Readers wait when it is full, so a busy node slows its engines' questions, not its memory.
pub const EVENTS_MAX: usize = 1024;

/// A connection was accepted.
#[derive(Debug)]
pub struct Arrival {
    /// The connection.
    pub connection: ConnectionId,
    /// Its process, if it can be watched.
    pub peer: Option<Peer>,
    /// Where its frames go.
    pub outbox: Outbox,
    /// Its reading task.
    pub tasks: Tasks,
}

/// What the driver is told.
#[derive(Debug)]
pub enum Event {
    /// A connection was accepted.
    Accepted(Arrival),
    /// A message of an engine.
    Message {
        /// From where.
        connection: ConnectionId,
        /// The message.
        message: ToNode,
        /// Descriptors that came for it.
        descriptors: Vec<OwnedFd>,
    },
    /// Anything else of the engine port.
    Engine(Input),
    /// The proxy asks to stage.
    Stage(StageRequest, oneshot::Sender<StageAnswer>),
    /// The proxy asks what staging would give.
    Probe(StageRequest, oneshot::Sender<StageAnswer>),
    /// Somebody wants the beginning of a prompt kept.
    Pin(PinRequest, oneshot::Sender<PinAnswer>),
    /// Somebody wants to see what is pinned.
    Pins(oneshot::Sender<PinsAnswer>),
    /// Somebody gives a lease or a pin back; answered by whether it was there.
    GiveBack(ReleaseRequest, oneshot::Sender<bool>),
    /// Somebody sets a tenant's quota; answered by nothing if no more tenants can be known.
    SetQuota(QuotaRequest, oneshot::Sender<Option<QuotaAnswer>>),
    /// Somebody wants to see the quotas.
    Quotas(oneshot::Sender<QuotasAnswer>),
    /// Somebody wants everything forgotten; answered by how many chunks were, and how many stay.
    Clear(oneshot::Sender<(u64, u64)>),
    /// A test damages something; answered by whether there was something to damage.
    Damage(Damage, oneshot::Sender<bool>),
    /// Somebody wants to see.
    Stats(oneshot::Sender<Box<Stats>>),
    /// The node is to end: say goodbye to every engine. Answered when that is queued.
    End(oneshot::Sender<()>),
}

/// Where jobs of all threads are answered.
pub type Results = (mpsc::UnboundedSender<Input>, mpsc::UnboundedReceiver<Input>);

/// The memory shared with engines, all but their regions.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The host slab.
    pub slab: Arc<SharedMemory>,
    /// One u64 for each slot number.
    pub generations: Arc<SharedMemory>,
}

/// A disk tier, started.
#[derive(Debug)]
pub struct DiskTier {
    /// What it works within.
    pub limits: Limits,
    /// Segments of earlier runs and their lengths.
    pub earlier: Vec<(u64, u64)>,
    /// Files of recipes of earlier runs.
    pub earlier_recipes: Vec<u64>,
    /// Tells what is in them, and ends.
    pub found: mpsc::Receiver<Input>,
    /// The threads.
    pub threads: DiskThreads,
}

/// The owner of the store.
#[derive(Debug)]
pub struct Driver {
    store: Store,
    disk: Option<DiskThreads>,
    /// What earlier runs left on disk, as it is found.
    found: Option<mpsc::Receiver<Input>>,
    clock: Clock,
    shared: Shared,
    transfer: Transfer,
    gpus: Gpus,
    /// What came with the message that the store is being told of.
    descriptors: Vec<OwnedFd>,
    events: mpsc::Receiver<Event>,
    results: mpsc::UnboundedReceiver<Input>,
    tick: Interval,
    outboxes: HashMap<ConnectionId, (Outbox, Tasks)>,
    watchers: HashMap<ConnectionId, AbortHandle>,
    deaths: (mpsc::UnboundedSender<ConnectionId>, mpsc::UnboundedReceiver<ConnectionId>),
    regions: HashMap<SessionId, Arc<SharedMemory>>,
    /// Connections found unusable while outputs were carried out.
    lost: Vec<ConnectionId>,
    answers: HashMap<Ticket, oneshot::Sender<StageAnswer>>,
    damages: HashMap<Ticket, oneshot::Sender<bool>>,
    clears: HashMap<Ticket, oneshot::Sender<(u64, u64)>>,
    pins: HashMap<Ticket, oneshot::Sender<PinAnswer>>,
    releases: HashMap<Ticket, oneshot::Sender<bool>>,
    quotas: HashMap<Ticket, oneshot::Sender<Option<QuotaAnswer>>>,
    tickets: u64,
}

impl Driver {
    /// A driver of a fresh store. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If a transfer thread cannot be started.
    pub fn new(
        settings: Settings,
        shared: Shared,
        threads: usize,
        events: mpsc::Receiver<Event>,
        (sender, results): Results,
        disk: Option<DiskTier>,
        gpus: device_settings::Settings,
    ) -> std::io::Result<Self> {
        let clock = Clock::start();
        let mut store = Store::new(settings);
        let (mut threads_of_disk, mut found) = (None, None);
        if let Some(disk) = disk {
            store = store.with_disk(disk.limits, &disk.earlier).with_recipe_log(&disk.earlier_recipes);
            (threads_of_disk, found) = (Some(disk.threads), Some(disk.found));
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            store,
            disk: threads_of_disk,
            found,
            clock,
            gpus: Gpus::start(gpus, Arc::clone(&shared.slab), sender.clone())?,
            descriptors: Vec::new(),
            transfer: Transfer::start(threads, Arc::clone(&shared.slab), clock, sender)?,
            shared,
            events,
            results,
            tick,
            outboxes: HashMap::new(),
            watchers: HashMap::new(),
            deaths: mpsc::unbounded_channel(),
            regions: HashMap::new(),
            lost: Vec::new(),
            answers: HashMap::new(),
            damages: HashMap::new(),
            clears: HashMap::new(),
            pins: HashMap::new(),
            releases: HashMap::new(),
            quotas: HashMap::new(),
            tickets: 0,
        })
    }

    /// Works until every sender of events is gone.
    pub async fn run(mut self) {
        while let Some(event) = self.select().await {
            self.apply(event);
        }
    }

    /// The next event. Results of jobs first: they free what others wait for.
    async fn select(&mut self) -> Option<Event> {
        tokio::select! {
            biased;
            Some(result) = self.results.recv() => Some(Event::Engine(result)),
            Some(connection) = self.deaths.1.recv() => Some(Event::Engine(Input::ProcessDead { connection })),
            event = self.events.recv() => event,
            found = recv(&mut self.found) => Some(Event::Engine(found)),
            _ = self.tick.tick() => Some(Event::Engine(Input::Tick)),
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Accepted(arrival) => self.accepted(arrival),
            Event::Message { connection, message, descriptors } => {
                self.descriptors = descriptors;
                self.step(Input::Message { connection, message, fresh: LeaseId(random_id()) });
                self.descriptors.clear();
            }
            Event::Engine(input) => self.step(input),
            Event::Stage(request, reply) => {
                let ticket = self.ticket();
                self.answers.insert(ticket, reply);
                self.step(Input::Stage { ticket, request, fresh: LeaseId(random_id()) });
            }
            Event::Probe(request, reply) => {
                let ticket = self.ticket();
                self.answers.insert(ticket, reply);
                self.step(Input::Probe { ticket, request });
            }
            Event::Pin(request, reply) => {
                let ticket = self.ticket();
                self.pins.insert(ticket, reply);
                self.step(Input::Pin { ticket, request, fresh: PinId(random_id()) });
            }
            Event::Pins(reply) => drop(reply.send(self.store.pins(self.clock.now()))),
            Event::GiveBack(request, reply) => {
                let ticket = self.ticket();
                self.releases.insert(ticket, reply);
                self.step(Input::GiveBack { ticket, request });
            }
            Event::SetQuota(request, reply) => {
                let ticket = self.ticket();
                self.quotas.insert(ticket, reply);
                self.step(Input::SetQuota { ticket, request });
            }
            Event::Quotas(reply) => drop(reply.send(self.store.quotas())),
            Event::Damage(damage, reply) => {
                let ticket = self.ticket();
                self.damages.insert(ticket, reply);
                self.step(Input::Damage { ticket, damage });
            }
            Event::Clear(reply) => {
                let ticket = self.ticket();
                self.clears.insert(ticket, reply);
                self.step(Input::Clear { ticket });
            }
            Event::Stats(reply) => {
                let stats = Stats { device: self.gpus.stats(), ..self.store.stats() };
                let _ = reply.send(Box::new(stats));
            }
            Event::End(reply) => {
                let farewell = ToEngine::from(Farewell { reason: "the node is ending".to_owned() });
                for (_, (outbox, _)) in self.outboxes.drain() {
                    outbox.send(&farewell);
                }
                self.step(Input::Ending);
                let _ = reply.send(());
            }
        }
    }

    fn accepted(&mut self, arrival: Arrival) {
        let Arrival { connection, peer, outbox, tasks } = arrival;
        let watched = peer.is_some();
        if let Some(peer) = peer {
            let deaths = self.deaths.0.clone();
            let watcher = tokio::spawn(async move {
                peer.dead().await;
                let _ = deaths.send(connection);
            });
            self.watchers.insert(connection, watcher.abort_handle());
        } else {
            tracing::warn!(
                connection = connection.0,
                "an engine's process cannot be watched: slots it is copying \
                are kept for good if its connection is lost"
            );
        }
        self.outboxes.insert(connection, (outbox, tasks));
        self.step(Input::Accepted { connection, watched });
    }

    fn step(&mut self, input: Input) {
        let mut next = Some(input);
        while let Some(input) = next {
            if let Input::Closed { connection } = &input {
                self.outboxes.remove(connection);
            }
            for output in self.store.step(input, self.clock.now()) {
                self.carry_out(output);
            }
            // Connections found lost meanwhile, only now: outputs of one step are carried out together.
            next = self.lost.pop().map(|connection| Input::Closed { connection });
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::SetGeneration { slot, generation } => {
                self.shared.generations.set(u64::from(slot), generation);
            }
            Output::Send { connection, message } => {
                let sent = self.outboxes.get(&connection).is_none_or(|(outbox, _)| outbox.send(&message));
                self.lost_unless(sent, connection);
            }
            Output::Register { connection, session, message } => {
                self.register(connection, session, &message);
            }
            Output::Grant { connection, message, ticket, answer } => {
                let Some(reply) = self.answers.remove(&ticket) else { return };
                let Some((outbox, _)) = self.outboxes.get(&connection) else { return };
                let sent = outbox.send_then(&message, reply, answer);
                self.lost_unless(sent, connection);
            }
            Output::Answer { ticket, answer } => {
                // Whoever asked may have given up.
                self.answers.remove(&ticket).map(|reply| reply.send(answer));
            }
            Output::Close { connection } => drop(self.outboxes.remove(&connection)),
            Output::Forget { connection } => {
                if let Some(watcher) = self.watchers.remove(&connection) {
                    watcher.abort();
                }
            }
            Output::DropRegion { session } => drop(self.regions.remove(&session)),
            Output::Copy { copy, session, from, to, bytes } => {
                let region = Arc::clone(self.regions.get(&session).expect("a serving session has a region"));
                self.transfer.copy(CopyJob { copy, region, from, to, bytes });
            }
            Output::Verify { verify, checks, stop_at } => self.transfer.verify(verify, checks, stop_at),
            Output::Disk { op, offset } => {
                let disk = self.disk.as_ref().expect("only a disk tier gives out its work");
                disk.carry_out(op, offset);
            }
            Output::Device(op) => self.device(op),
            Output::Recipes(op) => {
                let disk = self.disk.as_ref().expect("only beside a disk tier are recipes kept");
                disk.keep_recipes(op);
            }
            Output::Scrub { name, at, chunk } => {
                let disk = self.disk.as_ref().expect("only a disk tier is scrubbed");
                disk.scrub(name, at, chunk);
            }
            Output::Pinned { ticket, answer } => {
                self.pins.remove(&ticket).map(|reply| reply.send(answer));
            }
            Output::Released { ticket, released } => {
                self.releases.remove(&ticket).map(|reply| reply.send(released));
            }
            Output::QuotaSet { ticket, answer } => {
                self.quotas.remove(&ticket).map(|reply| reply.send(answer));
            }
            Output::Cleared { ticket, chunks, kept } => {
                let Some(reply) = self.clears.remove(&ticket) else { return };
                // Whoever asked may have given up.
                let answer = move || {
                    let _ = reply.send((chunks, kept));
                };
                match &self.disk {
                    // Only once the segments are removed: what a kill right after this would bring back was not forgotten.
                    Some(disk) => disk.then(answer),
                    None => answer(),
                }
            }
            Output::Damaged { ticket, found, flip } => {
                if let Some((offset, bit)) = flip {
                    self.shared.slab.flip(offset, bit);
                }
                self.damages.remove(&ticket).map(|reply| reply.send(found));
            }
        }
    }

    fn register(
        &mut self,
        connection: ConnectionId,
        session: SessionId,
        message: &larder_protocol::message::Registered,
    ) {
        let Some((outbox, _)) = self.outboxes.get(&connection) else { return };
        let region = match self.regions.get(&session) {
            Some(region) => Arc::clone(region),
            None => match SharedMemory::create("larder-region", message.region_bytes, Others::Write) {
                Ok(region) => Arc::clone(self.regions.entry(session).or_insert(Arc::new(region))),
                Err(error) => {
                    let text = format!("a region of {} bytes cannot be made: {error}", message.region_bytes);
                    tracing::error!(session = session.0, %text, "an engine is refused");
                    let refused = Refused { id: message.id, code: RefusedCode::Region, message: text };
                    outbox.send(&refused.into());
                    return self.lost.push(connection);
                }
            },
        };
        let descriptors = match message.fds {
            0 => Vec::new(),
            _ => vec![Arc::clone(&self.shared.slab), Arc::clone(&self.shared.generations), region],
        };
        let sent = outbox.send_with(&message.clone().into(), descriptors);
        self.lost_unless(sent, connection);
    }

    /// An engine that cannot be told anything any more is treated as gone.
    fn lost_unless(&mut self, sent: bool, connection: ConnectionId) {
        if !sent {
            tracing::warn!(
                connection = connection.0,
                "an engine does not read what it is sent; connection closed"
            );
            self.lost.push(connection);
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }
}

/// The next thing found, for as long as there is something to find.
async fn recv(found: &mut Option<mpsc::Receiver<Input>>) -> Input {
    if let Some(receiver) = found {
        if let Some(input) = receiver.recv().await {
            return input;
        }
        *found = None;
    }
    std::future::pending().await
}

/// An id nobody can guess.
///
/// # Panics
/// If the system has no randomness: ids that can be guessed would let one engine name another's lease.
pub fn random_id() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gives randomness");
    u128::from_be_bytes(bytes)
}
