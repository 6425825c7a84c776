//! Engines that store and load, and compare all they are given with what must be there.

use std::collections::{BTreeSet, HashMap, HashSet};

use larder_cache_node::store::{ConnectionId, Input, SessionId};
use larder_protocol::message::{
    Commit, Complete, Hello, Load, Lookup, Register, Registered, Release, Role, ToNode,
};
use larder_protocol::{BlockKey, LeaseId, Tag, ToEngine};

use crate::rng::Rng;
use crate::world::World;

/// Chunks of one prompt at most.
pub(crate) const DEPTH: u64 = 6;

/// Tokens of a chunk.
const TOKENS: u32 = 32;

/// A lease, and what it must read as.
#[derive(Debug)]
struct Held {
    lease: LeaseId,
    /// Slot, generation and the chunk's number.
    chunks: Vec<(u32, u64, u64)>,
    loading: bool,
}

/// One engine's session.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) scheduler: ConnectionId,
    worker: ConnectionId,
    session: SessionId,
    registered: Registered,
    weights: u8,
    part_bytes: u64,
    free: BTreeSet<u32>,
    commits: HashMap<u64, (Vec<u32>, Vec<u64>)>,
    lookups: HashMap<u64, Vec<u64>>,
    leases: Vec<Held>,
    next: u64,
}

/// What was ever sent to be stored: nothing else may be found.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    sent: HashSet<(u8, u64)>,
    pub(crate) compared: u64,
    pub(crate) pending: u64,
    pub(crate) stored: u64,
}

/// The bytes of a chunk: they follow from the engine's weights and the chunk's number alone.
fn content(weights: u8, number: u64, bytes: u64) -> Vec<u8> {
    let mut rng = Rng::new(number << 8 | u64::from(weights));
    let words = (0..bytes.div_ceil(8)).flat_map(|_| rng.next().to_le_bytes());
    words.take(bytes as usize).collect()
}

fn keys(numbers: &[u64]) -> Vec<BlockKey> {
    numbers.iter().filter_map(|number| BlockKey::new(&number.to_be_bytes())).collect()
}

fn ends(numbers: &[u64]) -> Vec<u32> {
    numbers.iter().map(|number| (number % 100) as u32 * TOKENS + TOKENS).collect()
}

/// The chunks of a prompt from `first` on.
pub(crate) fn prompt(prompt: u64, first: u64, count: u64) -> Vec<u64> {
    (first..(first + count).min(DEPTH)).map(|depth| prompt * 100 + depth).collect()
}

impl Engine {
    /// Connects an engine. Two kinds of weights, with chunks of different sizes.
    pub(crate) fn connect(world: &mut World, number: u64, weights: u8) -> Result<Self, String> {
        let (scheduler, worker) = (ConnectionId(2 * number), ConnectionId(2 * number + 1));
        let part_bytes = if weights == 1 { 9000 } else { 70_000 };
        let register = Register {
            id: 1,
            model: "m".into(),
            hash: "sha256_cbor".into(),
            weights: vec![weights; 32],
            epoch: 0,
            layout: vec![2; 32],
            dtype: "float32".into(),
            tokens_per_block: TOKENS,
            blocks_per_chunk: 1,
            part_bytes,
            world: 1,
        };
        for (connection, role) in [(worker, Role::Worker), (scheduler, Role::Scheduler)] {
            world.step(Input::Accepted { connection, watched: true })?;
            let hello = Hello {
                versions: vec![1, 2],
                role,
                rank: 0,
                engine: format!("e{number}"),
                endpoint: None,
                software: None,
            };
            for message in [ToNode::from(hello), ToNode::from(register.clone())] {
                world.step(Input::Message { connection, message, fresh: LeaseId(0) })?;
            }
        }
        let registered = world.said.drain(..).find_map(|(to, message)| match message {
            ToEngine::Registered(registered) if to == scheduler => Some(registered),
            _ => None,
        });
        let registered = registered.ok_or("an engine is not registered")?;
        let session = *world.sessions.get(&scheduler).ok_or("a registered engine has no session")?;
        Ok(Self {
            scheduler,
            worker,
            session,
            free: (0..registered.region_slots).collect(),
            registered,
            weights,
            part_bytes,
            commits: HashMap::new(),
            lookups: HashMap::new(),
            leases: Vec::new(),
            next: 1,
        })
    }

    fn say(&mut self, world: &mut World, fresh: u64, message: impl Into<ToNode>) -> Result<(), String> {
        let (connection, message) = (self.scheduler, message.into());
        world.step(Input::Message { connection, message, fresh: LeaseId(u128::from(fresh)) })
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn store(
        &mut self,
        world: &mut World,
        truth: &mut Truth,
        numbers: &[u64],
    ) -> Result<(), String> {
        let slots: Vec<u32> = self.free.iter().copied().take(numbers.len()).collect();
        if slots.len() < numbers.len() || numbers.is_empty() {
            return Ok(());
        }
        for (slot, number) in slots.iter().zip(numbers) {
            self.free.remove(slot);
            let offset = u64::from(*slot) * self.registered.region_stride;
            world.put(self.session, offset, &content(self.weights, *number, self.part_bytes));
            truth.sent.insert((self.weights, *number));
        }
        let id = self.id();
        self.commits.insert(id, (slots.clone(), numbers.to_vec()));
        let commit = Commit {
            id,
            keys: keys(numbers),
            end_tokens: ends(numbers),
            region_slots: slots,
            request: None,
            tag: Some(Tag(u128::from(numbers[0] / 100))),
            prompt_tokens: None,
            parent: numbers[0]
                .checked_sub(1)
                .filter(|_| !numbers[0].is_multiple_of(100))
                .and_then(|before| keys(&[before]).pop()),
        };
        self.say(world, 0, commit)
    }

    pub(crate) fn look_up(&mut self, world: &mut World, fresh: u64, numbers: Vec<u64>) -> Result<(), String> {
        let id = self.id();
        let lookup = Lookup {
            id,
            keys: keys(&numbers),
            end_tokens: ends(&numbers),
            request: None,
            tag: None,
            prompt_tokens: None,
        };
        self.lookups.insert(id, numbers);
        self.say(world, fresh, lookup)
    }

    /// Takes in what it is told.
    pub(crate) fn hear(&mut self, truth: &mut Truth, message: ToEngine) {
        match message {
            ToEngine::Committed(committed) => {
                let (slots, numbers) = self.commits.remove(&committed.id).unwrap_or_default();
                self.free.extend(slots);
                truth.stored += numbers.len() as u64;
            }
            ToEngine::Leased(leased) => {
                let numbers = self.lookups.remove(&leased.id).unwrap_or_default();
                self.hold(leased.lease, &leased.slots, &leased.generations, &numbers);
            }
            ToEngine::Grant(grant) => {
                let number = |key: &BlockKey| key.as_bytes().try_into().map_or(0, u64::from_be_bytes);
                let numbers: Vec<u64> = grant.keys.iter().map(number).collect();
                self.hold(grant.lease, &grant.slots, &grant.generations, &numbers);
            }
            ToEngine::Pending(_) => truth.pending += 1,
            _ => {}
        }
    }

    fn hold(&mut self, lease: LeaseId, slots: &[u32], generations: &[u64], numbers: &[u64]) {
        let chunks = slots.iter().zip(generations).zip(numbers);
        let chunks = chunks.map(|((slot, generation), number)| (*slot, *generation, *number)).collect();
        self.leases.push(Held { lease, chunks, loading: false });
    }

    /// Does something with one of its leases: begins a load, ends one, or gives the lease back.
    pub(crate) fn use_lease(&mut self, world: &mut World, rng: &mut Rng) -> Result<(), String> {
        let index = rng.index(self.leases.len());
        let Some(held) = self.leases.get_mut(index) else { return Ok(()) };
        let (lease, count) = (held.lease, held.chunks.len() as u32);
        if held.loading {
            held.loading = false;
            let id = self.id();
            return self.say(world, 0, Complete { id, lease, ok: true, failed: None });
        }
        if rng.once_in(3) {
            self.leases.swap_remove(index);
            let id = self.id();
            return self.say(world, 0, Release { id, lease });
        }
        let id = self.id();
        self.say(world, 0, Load { id, lease, first: 0, count })?;
        let answer = world.said.pop();
        let okay = matches!(&answer, Some((_, ToEngine::Okay(okay))) if okay.id == id);
        if okay {
            self.leases[index].loading = true;
        } else {
            // Expired meanwhile.
            self.leases.swap_remove(index);
        }
        Ok(())
    }

    /// Whatever it may be copying now is what was stored under that key, or its generation tells that it is not.
    pub(crate) fn compare(&self, world: &World, truth: &mut Truth) -> Result<(), String> {
        for held in self.leases.iter().filter(|held| held.loading) {
            for (slot, generation, number) in &held.chunks {
                if !truth.sent.contains(&(self.weights, *number)) {
                    return Err(format!("chunk {number} was never stored, and lease {} has it", held.lease));
                }
                let offset = self.registered.slot_offset(*slot).ok_or("a slot outside the slab")?;
                let Some(bytes) = world.get(*slot, *generation, offset, self.part_bytes as usize) else {
                    return Err(format!("chunk {number} was taken from lease {} under load", held.lease));
                };
                if bytes != content(self.weights, *number, self.part_bytes) {
                    return Err(format!("chunk {number} is not what was stored under its key"));
                }
                truth.compared += 1;
            }
        }
        Ok(())
    }

    /// Its processes are gone.
    pub(crate) fn die(self, world: &mut World) -> Result<(), String> {
        for connection in [self.scheduler, self.worker] {
            world.step(Input::Closed { connection })?;
        }
        for connection in [self.scheduler, self.worker] {
            world.step(Input::ProcessDead { connection })?;
        }
        Ok(())
    }
}
