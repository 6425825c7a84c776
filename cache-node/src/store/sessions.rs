//! Connections and sessions: who may say what, and what ends when one goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use larder_protocol::code::{ErrorCode, RejectCode};
use larder_protocol::message::{ErrorAnswer, Farewell, Hello, LIST_LEN_MAX, Reject, Role, ToNode, Welcome};
use larder_protocol::{DecodeFault, FRAME_BYTES_MAX, FrameFault, LeaseId, StoreNamespace, Version};

use super::registration::Layout;
use super::{ConnectionId, DeviceOp, Output, SessionId, Store, send};

/// Faulty messages a connection may send before it is closed. A correct plugin sends none; a newer one, a few.
const FAULTS_MAX: u32 = 16;

/// The most ranks of a session.
pub(super) const WORLD_MAX: u32 = 1024;

#[derive(Debug)]
pub(super) struct Connection {
    /// None until a hello was accepted.
    pub(super) session: Option<SessionId>,
    pub(super) role: Role,
    pub(super) registered: bool,
    /// It has asked for its pages to be opened.
    pub(super) attached: bool,
    /// What it speaks; the first until a hello was accepted.
    pub(super) version: Version,
    watched: bool,
    faults: u32,
    /// When it was accepted.
    since: Duration,
}

#[derive(Debug)]
pub(super) struct Session {
    engine: String,
    endpoint: Option<String>,
    pub(super) scheduler: Option<ConnectionId>,
    pub(super) workers: BTreeMap<u32, ConnectionId>,
    pub(super) layout: Option<Layout>,
    /// All connections are there and registered: the session serves.
    pub(super) ready: bool,
    /// A connection was lost; only open loads are left of it.
    pub(super) ended: bool,
    /// Connections whose processes were given the slab and are not known dead.
    pub(super) mapped: BTreeSet<ConnectionId>,
    /// Region slots under a running commit.
    pub(super) region_busy: BTreeSet<u32>,
    /// Region slots that saves write, and how many do.
    pub(super) region_saving: BTreeMap<u32, u32>,
    pub(super) leases: BTreeSet<LeaseId>,
}

impl Session {
    /// A save into a region slot is over.
    pub(super) fn saved(&mut self, slot: u32) {
        if let Some(saves) = self.region_saving.get_mut(&slot) {
            *saves -= 1;
            if *saves == 0 {
                self.region_saving.remove(&slot);
            }
        }
    }
}

/// One engine, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineStats {
    /// Its name.
    pub engine: String,
    /// Its endpoint, if it has one.
    pub endpoint: Option<String>,
    /// Its model, once registered.
    pub model: Option<String>,
    /// Its namespace, once registered.
    pub namespace: Option<StoreNamespace>,
    /// Whether it serves.
    pub ready: bool,
    /// Its leases.
    pub leases: u64,
}

/// Why no session was found for an engine's name.
pub(super) enum NoSession {
    None,
    Ambiguous,
    NotReady,
}

impl Store {
    pub(super) fn accepted(&mut self, id: ConnectionId, watched: bool, now: Duration) {
        let connection = Connection {
            session: None,
            role: Role::Scheduler,
            registered: false,
            attached: false,
            version: Version::V1,
            watched,
            faults: 0,
            since: now,
        };
        self.connections.insert(id, connection);
    }

    /// Closes connections that never said hello.
    pub(super) fn close_silent(&mut self, now: Duration, out: &mut Vec<Output>) {
        let timeout = self.settings.hello_timeout;
        let silent = self.connections.iter().filter(|(_, connection)| {
            connection.session.is_none() && connection.since.saturating_add(timeout) <= now
        });
        let mut silent: Vec<ConnectionId> = silent.map(|(id, _)| *id).collect();
        silent.sort_unstable();
        for id in silent {
            self.hang_up(id, "no hello in time", out);
        }
    }

    pub(super) fn message(
        &mut self,
        id: ConnectionId,
        message: ToNode,
        fresh: LeaseId,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (session, role) = (connection.session, connection.role);
        let moves = connection.version >= Version::V3;
        match (message, session, role) {
            (ToNode::Hello(hello), None, _) => self.hello(id, hello, out),
            (ToNode::Goodbye(_), _, _) => self.hang_up(id, "goodbye", out),
            (ToNode::Register(register), Some(session), _) => self.register(id, session, register, out),
            (ToNode::Lookup(lookup), Some(session), Role::Scheduler) => {
                self.lookup(id, session, lookup, fresh, now, out);
            }
            (ToNode::Load(load), Some(session), Role::Scheduler) => self.load(id, session, &load, now, out),
            (ToNode::Complete(complete), Some(session), Role::Scheduler) => {
                self.complete(id, session, &complete, now, out);
            }
            (ToNode::Release(release), Some(session), Role::Scheduler) => {
                self.release(id, session, &release, out);
            }
            (ToNode::Offload(offload), Some(session), Role::Scheduler) => {
                self.offload(id, session, &offload, out);
            }
            (ToNode::Commit(commit), Some(session), Role::Scheduler) => {
                self.commit(id, session, commit, now, out);
            }
            (ToNode::Epoch(epoch), Some(session), Role::Scheduler) => {
                self.set_epoch(id, session, epoch.id, epoch.epoch, out);
            }
            (ToNode::Attach(attach), Some(session), Role::Worker) if moves => {
                self.attach(id, session, attach, out);
            }
            (ToNode::Fetch(fetch), Some(session), Role::Worker) if moves => {
                self.fetch(id, session, fetch, now, out);
            }
            (ToNode::Save(save), Some(session), Role::Worker) if moves => self.save(id, session, save, out),
            (message, ..) => {
                let text = format!("{} is not expected here: wrong state or role", message.kind());
                out.push(error(id, None, ErrorCode::Unexpected, text));
                self.hang_up(id, "unexpected message", out);
            }
        }
    }

    fn hello(&mut self, id: ConnectionId, hello: Hello, out: &mut Vec<Output>) {
        match self.admit(id, hello) {
            Ok(version) => {
                let welcome = Welcome {
                    version: version.number(),
                    node: self.settings.node,
                    frame_bytes_max: FRAME_BYTES_MAX as u32,
                    list_len_max: LIST_LEN_MAX as u32,
                };
                out.push(send(id, welcome));
            }
            Err((code, message)) => {
                out.push(send(id, Reject { code, message }));
                self.hang_up(id, "rejected", out);
            }
        }
    }

    fn admit(&mut self, id: ConnectionId, hello: Hello) -> Result<Version, (RejectCode, String)> {
        let version = Version::highest_common(&hello.versions).ok_or_else(|| {
            let known: Vec<u16> = Version::ALL.iter().map(|version| version.number()).collect();
            (RejectCode::Version, format!("offered {:?}, this node speaks {known:?}", hello.versions))
        })?;
        if hello.engine.is_empty() || hello.rank >= WORLD_MAX {
            let text = format!("engine must be named and rank below {WORLD_MAX}, got {}", hello.rank);
            return Err((RejectCode::BadHello, text));
        }
        let named = self.sessions.iter().find(|(_, found)| !found.ended && found.engine == hello.engine);
        let session = match named {
            Some((session, _)) => *session,
            None if self.live_sessions() >= self.settings.sessions_max => {
                let text = format!("{} sessions are the limit (limits.sessions)", self.settings.sessions_max);
                return Err((RejectCode::Full, text));
            }
            None => self.new_session(&hello),
        };
        let found = self.sessions.get_mut(&session).expect("was found or made above");
        let taken = match hello.role {
            Role::Scheduler => found.scheduler.is_some(),
            Role::Worker => found.workers.contains_key(&hello.rank),
        };
        if taken {
            let text = format!("engine {:?} already has this role and rank connected", hello.engine);
            return Err((RejectCode::EngineInUse, text));
        }
        match hello.role {
            Role::Scheduler => found.scheduler = Some(id),
            Role::Worker => drop(found.workers.insert(hello.rank, id)),
        }
        found.endpoint = found.endpoint.take().or(hello.endpoint);
        let connection = self.connections.get_mut(&id).expect("only a known connection says hello");
        connection.version = version;
        connection.session = Some(session);
        connection.role = hello.role;
        Ok(version)
    }

    fn new_session(&mut self, hello: &Hello) -> SessionId {
        let id = SessionId(self.number());
        let session = Session {
            engine: hello.engine.clone(),
            endpoint: None,
            scheduler: None,
            workers: BTreeMap::new(),
            layout: None,
            ready: false,
            ended: false,
            mapped: BTreeSet::new(),
            region_busy: BTreeSet::new(),
            region_saving: BTreeMap::new(),
            leases: BTreeSet::new(),
        };
        self.sessions.insert(id, session);
        id
    }

    pub(super) fn undecodable(&mut self, id: ConnectionId, fault: &DecodeFault, out: &mut Vec<Output>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        self.counts.faults += 1;
        let (code, request, close) = match fault {
            DecodeFault::Frame(_) => (ErrorCode::BadFrame, None, true),
            DecodeFault::UnknownKind { id, .. } => (ErrorCode::UnknownKind, *id, false),
            DecodeFault::Message { id, .. } => (ErrorCode::BadMessage, *id, false),
        };
        connection.faults += 1;
        let too_many = connection.faults > FAULTS_MAX;
        out.push(error(id, request, code, fault.to_string()));
        if too_many {
            let text = format!("more than {FAULTS_MAX} faulty messages");
            out.push(error(id, None, ErrorCode::TooManyFaults, text));
        }
        if close || too_many {
            self.hang_up(id, "faulty messages", out);
        }
    }

    pub(super) fn unframed(&mut self, id: ConnectionId, fault: &FrameFault, out: &mut Vec<Output>) {
        if self.connections.contains_key(&id) {
            self.counts.faults += 1;
            out.push(error(id, None, ErrorCode::BadFrame, fault.to_string()));
            self.hang_up(id, "faulty frames", out);
        }
    }

    /// Closes a connection from this side.
    fn hang_up(&mut self, id: ConnectionId, reason: &str, out: &mut Vec<Output>) {
        out.push(send(id, Farewell { reason: reason.to_owned() }));
        out.push(Output::Close { connection: id });
        self.closed(id, out);
    }

    pub(super) fn closed(&mut self, id: ConnectionId, out: &mut Vec<Output>) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if connection.attached {
            out.push(Output::Device(DeviceOp::Detach { connection: id }));
        }
        match connection.session {
            None => out.push(Output::Forget { connection: id }),
            Some(session) => {
                self.end_session(session, out);
                // A process that was given no slab, or cannot be watched, has nothing more to tell.
                let mapped = self.sessions.get(&session).is_some_and(|session| session.mapped.contains(&id));
                if !(mapped && connection.watched) {
                    out.push(Output::Forget { connection: id });
                }
            }
        }
    }

    /// One connection is gone: the rest of the session goes with it, except open loads.
    fn end_session(&mut self, id: SessionId, out: &mut Vec<Output>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.ended {
            return;
        }
        session.ended = true;
        session.ready = false;
        let leases = session.leases.clone();
        let others: Vec<ConnectionId> =
            session.scheduler.into_iter().chain(session.workers.values().copied()).collect();
        out.push(Output::DropRegion { session: id });
        leases.into_iter().for_each(|lease| self.end_unless_loading(lease));
        for other in others {
            if self.connections.contains_key(&other) {
                self.hang_up(other, "the session lost a connection", out);
            }
        }
        self.bury(id, out);
    }

    pub(super) fn process_dead(&mut self, id: ConnectionId, out: &mut Vec<Output>) {
        let holder = self.sessions.iter_mut().find(|(_, session)| session.mapped.contains(&id));
        let Some((session, found)) = holder else { return };
        let session = *session;
        found.mapped.remove(&id);
        if found.ended {
            out.push(Output::Forget { connection: id });
            self.bury(session, out);
        }
    }

    /// Removes an ended session once nothing of it can be copying: its processes are dead, or it has no load open, and
    /// the node copies nothing for it.
    pub(super) fn bury(&mut self, id: SessionId, out: &mut Vec<Output>) {
        let Some(session) = self.sessions.get(&id) else { return };
        if !session.ended || (!session.mapped.is_empty() && !session.leases.is_empty()) {
            return;
        }
        session.leases.clone().into_iter().for_each(|lease| self.end_dead(lease));
        if self.sessions.get(&id).is_some_and(|session| !session.leases.is_empty()) {
            // The node itself still reads them; it is buried when that has ended.
            return;
        }
        let session = self.sessions.remove(&id).expect("was found above");
        out.extend(session.mapped.into_iter().map(|connection| Output::Forget { connection }));
    }

    /// The serving session that answers to a name, or the only one if none is given.
    pub(super) fn session_named(&self, name: Option<&str>) -> Result<SessionId, NoSession> {
        let answers = |session: &Session| {
            !session.ended
                && name.is_none_or(|name| session.engine == name || session.endpoint.as_deref() == Some(name))
        };
        let mut found = self.sessions.iter().filter(|(_, session)| answers(session));
        match (found.next(), found.next()) {
            (None, _) => Err(NoSession::None),
            (Some(_), Some(_)) => Err(NoSession::Ambiguous),
            (Some((id, session)), None) if session.ready => Ok(*id),
            (Some(_), None) => Err(NoSession::NotReady),
        }
    }

    pub(super) fn live_sessions(&self) -> usize {
        self.sessions.values().filter(|session| !session.ended).count()
    }

    /// Leases of sessions that have ended: each has a load open whose processes are not known dead.
    pub(super) fn orphaned_leases(&self) -> u64 {
        self.sessions
            .values()
            .filter(|session| session.ended)
            .map(|session| session.leases.len() as u64)
            .sum()
    }

    pub(super) fn engines(&self) -> Vec<EngineStats> {
        let stats = |session: &Session| EngineStats {
            engine: session.engine.clone(),
            endpoint: session.endpoint.clone(),
            model: session.layout.as_ref().map(|layout| layout.register.model.clone()),
            namespace: session.layout.as_ref().map(|layout| layout.namespace),
            ready: session.ready,
            leases: session.leases.len() as u64,
        };
        let mut engines: Vec<EngineStats> =
            self.sessions.values().filter(|session| !session.ended).map(stats).collect();
        engines.sort_by(|one, two| one.engine.cmp(&two.engine));
        engines
    }
}

pub(super) fn error(connection: ConnectionId, id: Option<u64>, code: ErrorCode, message: String) -> Output {
    send(connection, ErrorAnswer { id, code, message })
}
