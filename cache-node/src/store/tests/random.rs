//! Seeded random histories: whatever engines, proxies, jobs and clocks do, in any order, the invariants hold (checked
//! by the world after every step), nobody reads bytes that are not its key's, and everything comes back in the end.

use larder_protocol::PinId;
use larder_protocol::control::{PinRequest, QuotaRequest, ReleaseRequest, TenantQuota};
use proptest::prelude::*;

use super::*;

const CHUNK: u64 = 128 << 10;

/// One thing that happens. Numbers are taken modulo what exists.
#[derive(Debug, Clone)]
enum Happening {
    Connect { n: u64, large: bool },
    Lose { n: u64 },
    Die { n: u64 },
    Commit { n: u64, first: u64, count: u64 },
    Lookup { n: u64, first: u64, count: u64 },
    Stage { n: u64, first: u64, runs: u64 },
    Load { which: usize },
    Complete { which: usize },
    Release { which: usize },
    Pin { n: u64, first: u64, runs: u64, seconds: u64 },
    Unpin { which: usize },
    Quota { tenant: u64, chunks: Option<u64> },
    Clear,
    Attach { n: u64 },
    Fetch { which: usize },
    Arrive { which: usize },
    Work { which: usize },
    Damage { nth: usize },
    Rot { nth: usize },
    Wait { seconds: u64 },
}

fn happening() -> impl Strategy<Value = Happening> {
    let n = 0_u64..4;
    prop_oneof![
        3 => (n.clone(), any::<bool>()).prop_map(|(n, large)| Happening::Connect { n, large }),
        1 => n.clone().prop_map(|n| Happening::Lose { n }),
        1 => n.clone().prop_map(|n| Happening::Die { n }),
        10 => (n.clone(), 0_u64..60, 1_u64..9).prop_map(|(n, first, count)| Happening::Commit { n, first, count }),
        6 => (n.clone(), 0_u64..60, 1_u64..6).prop_map(|(n, first, count)| Happening::Lookup { n, first, count }),
        2 => (n, 0_u64..60, 1_u64..12).prop_map(|(n, first, runs)| Happening::Stage { n, first, runs }),
        4 => any::<usize>().prop_map(|which| Happening::Load { which }),
        3 => any::<usize>().prop_map(|which| Happening::Complete { which }),
        2 => any::<usize>().prop_map(|which| Happening::Release { which }),
        2 => (0_u64..4, 0_u64..60, 1_u64..12, 0_u64..60)
            .prop_map(|(n, first, runs, seconds)| Happening::Pin { n, first, runs, seconds }),
        1 => any::<usize>().prop_map(|which| Happening::Unpin { which }),
        1 => (0_u64..3, prop::option::of(0_u64..12))
            .prop_map(|(tenant, chunks)| Happening::Quota { tenant, chunks }),
        1 => Just(Happening::Clear),
        2 => (0_u64..4).prop_map(|n| Happening::Attach { n }),
        4 => any::<usize>().prop_map(|which| Happening::Fetch { which }),
        4 => any::<usize>().prop_map(|which| Happening::Arrive { which }),
        16 => any::<usize>().prop_map(|which| Happening::Work { which }),
        1 => any::<usize>().prop_map(|nth| Happening::Damage { nth }),
        1 => any::<usize>().prop_map(|nth| Happening::Rot { nth }),
        2 => (1_u64..20).prop_map(|seconds| Happening::Wait { seconds }),
    ]
}

/// A lease as its engine knows it, with what each chunk must read as.
struct Known {
    engine: u64,
    scheduler: ConnectionId,
    lease: LeaseId,
    chunks: Vec<(u32, u64, u64)>,
    open_loads: u32,
    /// The engine's processes may still be copying.
    alive: bool,
}

/// What a GPU reads until it says that it does not any more, whoever lives or dies.
struct Reading {
    /// A fetch's; none for what is brought to a landing slab.
    job: Option<JobId>,
    lease: LeaseId,
    chunks: Vec<(u32, u64, u64)>,
}

struct History {
    world: World,
    /// Connected engines: run number and whether it is of the large layout.
    engines: HashMap<u64, (u64, bool)>,
    runs: u64,
    known: Vec<Known>,
    /// Runs whose connections are gone and whose processes are not known dead.
    lingering: Vec<u64>,
    heard: usize,
    /// What of the GPUs' work was taken up.
    taken: usize,
    reading: Vec<Reading>,
    tickets: u64,
    /// Whether damage was done: then a chunk may read as damaged until it is verified again.
    damaged: bool,
}

impl History {
    fn new(admit_uses: Option<u32>) -> Self {
        let world = match admit_uses {
            None => World::new(settings()),
            Some(uses) => World::with_disk(settings(), uses),
        };
        Self {
            world,
            engines: HashMap::new(),
            runs: 10,
            known: Vec::new(),
            lingering: Vec::new(),
            heard: 0,
            taken: 0,
            reading: Vec::new(),
            tickets: 0,
            damaged: false,
        }
    }

    fn happen(&mut self, happening: &Happening) {
        match *happening {
            Happening::Connect { n, large } => self.connect(n, large),
            Happening::Lose { n } => self.lose(n),
            Happening::Die { n } => self.die(n),
            Happening::Commit { n, first, count } => self.commit(n, first, count),
            Happening::Lookup { n, first, count } => self.lookup(n, first, count),
            Happening::Stage { n, first, runs } => self.stage(n, first, runs),
            Happening::Load { which } => self.load(which),
            Happening::Complete { which } => self.complete(which),
            Happening::Release { which } => self.release(which),
            Happening::Pin { n, first, runs, seconds } => self.pin(n, first, runs, seconds),
            Happening::Unpin { which } => self.unpin(which),
            Happening::Quota { tenant, chunks } => {
                let max_bytes = chunks.map(|chunks| chunks * CHUNK);
                let request = QuotaRequest { tenant: format!("t{tenant}"), max_bytes };
                self.world.step(Input::SetQuota { ticket: Ticket(0), request });
            }
            Happening::Clear => self.world.step(Input::Clear { ticket: Ticket(0) }),
            Happening::Attach { n } => self.attach(n),
            Happening::Fetch { which } => self.fetch(which),
            Happening::Arrive { which } => self.arrive(which),
            Happening::Work { which } => {
                if !self.world.jobs.is_empty() {
                    let index = which % self.world.jobs.len();
                    self.world.work(index);
                }
            }
            Happening::Damage { nth } => {
                let damage = Damage::Flip { key: None, nth: nth % 32, byte: 0, bit: 0 };
                self.damaged |= self.world.store.stats().chunks > nth as u64 % 32;
                self.world.step(Input::Damage { ticket: Ticket(0), damage });
            }
            Happening::Rot { nth } => {
                let count = self.world.disk.len().max(1);
                self.world.disk.values_mut().nth(nth % count).into_iter().for_each(|it| it.damaged = true);
            }
            Happening::Wait { seconds } => self.world.later(seconds),
        }
        self.hear();
        self.take_up();
        self.readers_see_their_bytes();
        self.tenants_are_within_their_quotas();
    }

    fn connect(&mut self, n: u64, large: bool) {
        if self.engines.contains_key(&n) {
            return;
        }
        self.runs += 1;
        let (bytes, weights) = if large { (4 * CHUNK, 2) } else { (CHUNK, 1) };
        self.world.engine(self.runs, &register(bytes, weights));
        self.engines.insert(n, (self.runs, large));
    }

    fn scheduler(&self, n: u64) -> Option<ConnectionId> {
        self.engines.get(&n).map(|(run, _)| ConnectionId(2 * run))
    }

    fn lose(&mut self, n: u64) {
        let Some((run, _)) = self.engines.remove(&n) else { return };
        self.world.step(Input::Closed { connection: ConnectionId(2 * run) });
        self.lingering.push(run);
        self.known.retain(|known| known.engine != run || known.open_loads > 0);
    }

    fn die(&mut self, n: u64) {
        let run = match self.engines.remove(&n) {
            Some((run, _)) => {
                self.world.step(Input::Closed { connection: ConnectionId(2 * run + 1) });
                run
            }
            None => match self.lingering.pop() {
                Some(run) => run,
                None => return,
            },
        };
        self.lingering.retain(|lingering| *lingering != run);
        self.known.iter_mut().filter(|known| known.engine == run).for_each(|known| known.alive = false);
        self.known.retain(|known| known.alive);
        self.world.step(Input::ProcessDead { connection: ConnectionId(2 * run + 1) });
    }

    fn commit(&mut self, n: u64, first: u64, count: u64) {
        let Some(scheduler) = self.scheduler(n) else { return };
        let session = self.world.session(scheduler);
        if self.world.store.sessions[&session].region_busy.is_empty() {
            self.world.commit(scheduler, first..first + count, Some(Tag(u128::from(first))));
        }
    }

    fn lookup(&mut self, n: u64, first: u64, count: u64) {
        let Some(scheduler) = self.scheduler(n) else { return };
        let lookup = Lookup {
            id: 5,
            keys: keys(first..first + count),
            end_tokens: (1..=count as u32).map(|index| index * 32).collect(),
            request: None,
            tag: Some(Tag(u128::from(first))),
            prompt_tokens: Some(count as u32 * 32 + 1),
        };
        self.world.say(scheduler, lookup);
    }

    fn stage(&mut self, n: u64, first: u64, runs: u64) {
        let Some((run, _)) = self.engines.get(&n) else { return };
        self.tickets += 1;
        let request = larder_protocol::control::StageRequest {
            tag: Some(Tag(u128::from(first))),
            chain: (0..runs).map(|index| ChainPoint(first * 1000 + index)).collect(),
            run_bytes: 128,
            prompt_bytes: runs * 128,
            engine: Some(format!("e{run}")),
            deadline_ms: None,
            max_bytes: None,
            tenant: (first % 4 < 3).then(|| format!("t{}", first % 4)),
        };
        let fresh = self.world.fresh();
        self.world.step(Input::Stage { ticket: Ticket(self.tickets), request, fresh });
    }

    fn pin(&mut self, n: u64, first: u64, runs: u64, seconds: u64) {
        let Some((run, _)) = self.engines.get(&n) else { return };
        self.tickets += 1;
        let request = PinRequest {
            chain: (0..runs).map(|index| ChainPoint(first * 1000 + index)).collect(),
            run_bytes: 128,
            prompt_bytes: runs * 128,
            engine: Some(format!("e{run}")),
            ttl_ms: seconds * 1000,
            max_bytes: None,
        };
        let fresh = PinId(u128::from(self.tickets));
        self.world.step(Input::Pin { ticket: Ticket(self.tickets), request, fresh });
    }

    fn unpin(&mut self, which: usize) {
        let pins = self.world.store.pins(self.world.now).pins;
        if !pins.is_empty() {
            let request = ReleaseRequest { lease: None, pin: pins[which % pins.len()].pin };
            self.world.step(Input::GiveBack { ticket: Ticket(0), request });
            assert_eq!(self.world.released.pop(), Some(true));
        }
    }

    /// Nobody has more than their quota but what is in use.
    fn tenants_are_within_their_quotas(&mut self) {
        let over = |tenant: &TenantQuota| tenant.max_bytes.is_some_and(|max| tenant.held_bytes > max);
        if self.world.store.quotas().tenants.iter().any(over) {
            // What was in use when the quota was set may have come free since.
            self.world.step(Input::Tick);
            for tenant in self.world.store.quotas().tenants.iter().filter(|tenant| over(tenant)) {
                assert!(self.world.store.are_all_in_use(&tenant.tenant), "{tenant:?}");
            }
        }
    }

    /// Takes in what was said since: leases and grants, with what their chunks must read as.
    fn hear(&mut self) {
        let said = self.world.said[self.heard..].to_vec();
        self.heard = self.world.said.len();
        for (scheduler, message) in said {
            let (lease, slots, generations) = match message {
                ToEngine::Leased(leased) => (leased.lease, leased.slots, leased.generations),
                ToEngine::Grant(grant) => (grant.lease, grant.slots, grant.generations),
                _ => continue,
            };
            let contents = slots.iter().zip(&generations).map(|(slot, generation)| {
                let name = self.world.store.arena.held(*slot).expect("leased chunks are held").name.clone();
                let content = u64::from_be_bytes(name.key.as_bytes().try_into().unwrap());
                (*slot, *generation, content)
            });
            let chunks = contents.collect();
            self.known.push(Known {
                engine: scheduler.0 / 2,
                scheduler,
                lease,
                chunks,
                open_loads: 0,
                alive: true,
            });
        }
    }

    fn pick(&mut self, which: usize, wanted: impl Fn(&Known) -> bool) -> Option<&mut Known> {
        let engines: Vec<u64> = self.engines.values().map(|(run, _)| *run).collect();
        let mut fitting: Vec<&mut Known> =
            self.known.iter_mut().filter(|known| engines.contains(&known.engine) && wanted(known)).collect();
        let count = fitting.len();
        (count > 0).then(|| fitting.swap_remove(which % count))
    }

    fn load(&mut self, which: usize) {
        let Some(known) = self.pick(which, |_| true) else { return };
        let (scheduler, lease, count) = (known.scheduler, known.lease, known.chunks.len() as u32);
        self.world.load(scheduler, lease, count);
        if matches!(self.world.last(scheduler), ToEngine::Okay(_)) {
            let known = self.known.iter_mut().find(|known| known.lease == lease).unwrap();
            known.open_loads += 1;
        }
    }

    fn complete(&mut self, which: usize) {
        let Some(known) = self.pick(which, |known| known.open_loads > 0) else { return };
        known.open_loads -= 1;
        let (scheduler, lease) = (known.scheduler, known.lease);
        self.world.complete(scheduler, lease);
        assert!(matches!(self.world.last(scheduler), ToEngine::Okay(_)), "an open load is completed");
    }

    fn release(&mut self, which: usize) {
        let Some(known) = self.pick(which, |_| true) else { return };
        let (scheduler, lease) = (known.scheduler, known.lease);
        self.world.release(scheduler, lease);
    }

    fn attach(&mut self, n: u64) {
        let Some(scheduler) = self.scheduler(n) else { return };
        self.world.say(ConnectionId(scheduler.0 + 1), super::moving::attach());
    }

    /// The engine has the node load for it.
    fn fetch(&mut self, which: usize) {
        let Some(known) = self.pick(which, |_| true) else { return };
        let (worker, lease, count) =
            (ConnectionId(known.scheduler.0 + 1), known.lease, known.chunks.len() as u32);
        let fetch = Fetch { id: 8, lease, first: 0, skip: 0, blocks: (0..count).collect(), after: None };
        self.world.say(worker, fetch);
    }

    /// Notes what the GPUs begin to read.
    fn take_up(&mut self) {
        for op in &self.world.device[self.taken..] {
            let (job, lease) = match op {
                DeviceOp::Fetch { job, lease, .. } => (Some(*job), *lease),
                DeviceOp::Land { lease, .. } => (None, *lease),
                _ => continue,
            };
            let known = self.known.iter().find(|known| known.lease == lease).expect("it was granted");
            self.reading.push(Reading { job, lease, chunks: known.chunks.clone() });
        }
        self.taken = self.world.device.len();
    }

    /// A GPU has read one of them.
    fn arrive(&mut self, which: usize) {
        if self.reading.is_empty() {
            return;
        }
        let Reading { job, lease, .. } = self.reading.swap_remove(which % self.reading.len());
        let input = match job {
            Some(job) => DeviceInput::Ended { job, result: Ok(()), is_quiet: true },
            None => DeviceInput::Landed { lease },
        };
        self.world.step(Input::Device(input));
    }

    /// Whoever has a load open can read, and a GPU that has not said its word, at any moment: either its key's bytes, or the generation tells that it
    /// must not count them (a chunk quarantined meanwhile). Never another key's bytes under the right generation.
    fn readers_see_their_bytes(&self) {
        let loads =
            self.known.iter().filter(|known| known.open_loads > 0).map(|known| (known.lease, &known.chunks));
        let gpus = self.reading.iter().map(|reading| (reading.lease, &reading.chunks));
        for (lease, chunks) in loads.chain(gpus) {
            for (slot, generation, content) in chunks {
                match self.world.read(*slot, *generation) {
                    Some(bytes) => assert_eq!(bytes.content, *content, "lease {lease}"),
                    None => assert!(self.damaged, "only a quarantine takes a slot from an open load"),
                }
            }
        }
    }

    /// Lets everything end: all jobs done, all engines dead, all leases expired.
    fn end(&mut self) {
        self.world.work_all();
        self.hear();
        self.take_up();
        for n in 0..4 {
            self.die(n);
        }
        while !self.lingering.is_empty() {
            self.die(0);
        }
        self.world.later(3600);
        self.world.work_all();
        self.take_up();
        self.readers_see_their_bytes();
        while !self.reading.is_empty() {
            self.arrive(0);
        }
        let stats = self.world.store.stats();
        assert_eq!((stats.pinned_bytes, stats.leases, stats.sessions), (0, 0, 0));
        assert_eq!((stats.pins, stats.pin_bytes), (0, 0));
        assert_eq!((stats.verifications, stats.copies, stats.writing_slots), (0, 0, 0));
        assert_eq!((stats.disk.writes, stats.disk.loads), (0, 0));
        assert!(self.world.store.waiting.is_empty());
        assert!(self.world.store.commits.is_empty() && self.world.store.sessions.is_empty());
        assert!(self.world.store.connections.is_empty() && self.world.store.jobs.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn invariants_hold_and_everything_comes_back(
        admit_uses in prop::option::weighted(0.7, 0_u32..3),
        happenings in prop::collection::vec(happening(), 1..400),
    ) {
        let mut history = History::new(admit_uses);
        for happening in &happenings {
            history.happen(happening);
        }
        history.end();
    }
}
