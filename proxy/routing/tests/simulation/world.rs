//! A seeded event loop: clients, one fleet, and the engines that it cannot see into.

use std::collections::{BTreeMap, HashSet};

use larder_routing::{EndpointId, Fleet, Now, Outcome, PolicyKind, RouteRequest, Settings, Ticket, Usage};

use crate::engine::{BLOCK_TOKENS, Engine, Job};

/// 4 bytes a token.
const RUN_BYTES: u32 = BLOCK_TOKENS as u32 * 4;

/// SplitMix64 (Steele, Lea and Flood 2014).
pub(crate) struct Random(pub(crate) u64);

pub(crate) fn scatter(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        scatter(self.0)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Exponentially distributed.
    pub(crate) fn spread(&mut self, mean: f64) -> f64 {
        let uniform = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        -mean * (1.0 - uniform).ln()
    }
}

/// One prompt and what follows it.
pub(crate) struct Prompt {
    pub(crate) client: usize,
    pub(crate) chain: Vec<u64>,
    pub(crate) decode_s: f64,
}

/// Who sends prompts.
pub(crate) trait Clients {
    /// When each client sends first.
    fn begin(&mut self, random: &mut Random) -> Vec<f64>;
    /// The client's next prompt, or `None` once the run is over.
    fn send(&mut self, client: usize, random: &mut Random) -> Option<Prompt>;
    /// Seconds from sending (open loop) or from the answer (closed loop) to the client's next prompt.
    fn pause(&mut self, client: usize, random: &mut Random) -> f64;
    /// Whether clients wait for their answers.
    fn closed(&self) -> bool;
}

enum Event {
    Send(usize),
    FirstToken(usize),
    End(usize),
}

struct Flying {
    ticket: Ticket,
    engine: usize,
    client: usize,
    chain: Vec<u64>,
    sent_at: f64,
    decode_s: f64,
    cached_tokens: u64,
}

pub(crate) struct Setup {
    pub(crate) policy: PolicyKind,
    pub(crate) seed: u64,
    pub(crate) engines: usize,
    pub(crate) capacity_blocks: usize,
    pub(crate) tokens_per_s: f64,
    /// What the fleet is told of the engines' capacity, as a factor: it is corrected by feedback.
    pub(crate) told: f64,
}

#[derive(Debug, PartialEq, Default)]
pub(crate) struct Report {
    pub(crate) requests: u64,
    /// Different blocks in all prompts.
    pub(crate) unique_blocks: usize,
    pub(crate) hit_rate: f64,
    pub(crate) ttft_mean_s: f64,
    /// Per engine.
    pub(crate) uncached_tokens: Vec<u64>,
    pub(crate) served: Vec<u64>,
    /// The most that decoded at once, per engine.
    pub(crate) decoding_most: Vec<u32>,
    /// Promised over actually cached tokens.
    pub(crate) promised: f64,
    pub(crate) price_mean: f64,
    pub(crate) reasons: BTreeMap<&'static str, u64>,
}

/// Largest over mean.
pub(crate) fn imbalance(counts: &[u64]) -> f64 {
    let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    counts.iter().copied().max().unwrap_or(0) as f64 / mean
}

pub(crate) struct World<'a> {
    fleet: Fleet,
    ids: Vec<EndpointId>,
    engines: Vec<Engine>,
    clients: &'a mut dyn Clients,
    random: Random,
    events: BTreeMap<(u64, u64), Event>,
    order: u64,
    flying: Vec<Option<Flying>>,
    report: Report,
    unique: HashSet<u64>,
    prompt_tokens: u64,
    cached_tokens: u64,
}

pub(crate) fn run(setup: &Setup, clients: &mut dyn Clients) -> Report {
    let mut fleet = Fleet::new(Settings {
        policy: setup.policy,
        seed: setup.seed,
        default_kv_tokens: (setup.capacity_blocks as f64 * BLOCK_TOKENS as f64 * setup.told) as u64,
        ..Settings::default()
    });
    let ids = (0..setup.engines).map(|e| fleet.add_endpoint(&format!("engine {e}"), Now::ZERO)).collect();
    let engines =
        (0..setup.engines).map(|_| Engine::new(setup.capacity_blocks, setup.tokens_per_s)).collect();
    let mut world = World {
        fleet,
        ids,
        engines,
        clients,
        random: Random(setup.seed),
        events: BTreeMap::new(),
        order: 0,
        flying: Vec::new(),
        report: Report { decoding_most: vec![0; setup.engines], ..Report::default() },
        unique: HashSet::new(),
        prompt_tokens: 0,
        cached_tokens: 0,
    };
    world.run();
    world.report()
}

impl World<'_> {
    fn run(&mut self) {
        for (client, first) in self.clients.begin(&mut self.random).into_iter().enumerate() {
            self.at(first, Event::Send(client));
        }
        while let Some(((micros, _), event)) = self.events.pop_first() {
            let now = micros as f64 / 1e6;
            match event {
                Event::Send(client) => self.send(client, now),
                Event::FirstToken(request) => self.first_token(request, now),
                Event::End(request) => self.end(request, now),
            }
        }
    }

    fn at(&mut self, seconds: f64, event: Event) {
        self.order += 1;
        self.events.insert(((seconds * 1e6) as u64, self.order), event);
    }

    fn send(&mut self, client: usize, now: f64) {
        let Some(Prompt { client, chain, decode_s }) = self.clients.send(client, &mut self.random) else {
            return;
        };
        let request = RouteRequest {
            chain: &chain,
            run_bytes: RUN_BYTES,
            prompt_bytes: chain.len() as u64 * u64::from(RUN_BYTES),
            media: 0,
            session: Some(client as u64),
            streamed: true,
            exclude: &[],
        };
        let decision = self.fleet.route(&request, Now::from_secs_f64(now)).expect("all are available");
        self.report.requests += 1;
        self.unique.extend(&chain);
        self.report.price_mean += decision.price;
        *self.report.reasons.entry(decision.reason.label()).or_default() += 1;
        let engine = self.ids.iter().position(|id| *id == decision.endpoint).expect("a known endpoint");
        let flying = Flying {
            ticket: decision.ticket,
            engine,
            client,
            chain: chain.clone(),
            sent_at: now,
            decode_s,
            cached_tokens: 0,
        };
        self.flying.push(Some(flying));
        self.engines[engine].push(Job { chain, request: self.flying.len() - 1 });
        self.start(engine, now);
        if !self.clients.closed() {
            let pause = self.clients.pause(client, &mut self.random);
            self.at(now + pause, Event::Send(client));
        }
    }

    fn start(&mut self, engine: usize, now: f64) {
        let Some(started) = self.engines[engine].start(now) else { return };
        let request = started.job.request;
        if let Some(flying) = &mut self.flying[request] {
            flying.cached_tokens = started.cached_tokens;
        }
        self.at(started.first_token_at, Event::FirstToken(request));
    }

    fn first_token(&mut self, request: usize, now: f64) {
        let Some(flying) = &self.flying[request] else { return };
        self.fleet.first_token(&flying.ticket, Now::from_secs_f64(now));
        let (engine, ends) = (flying.engine, now + flying.decode_s);
        self.report.ttft_mean_s += now - flying.sent_at;
        self.engines[engine].prefilled();
        let most = &mut self.report.decoding_most[engine];
        *most = (*most).max(self.engines[engine].decoding);
        self.at(ends, Event::End(request));
        self.start(engine, now);
    }

    fn end(&mut self, request: usize, now: f64) {
        let Some(flying) = self.flying[request].take() else { return };
        self.engines[flying.engine].end(&flying.chain);
        let prompt_tokens = flying.chain.len() as u64 * BLOCK_TOKENS;
        self.prompt_tokens += prompt_tokens;
        self.cached_tokens += flying.cached_tokens;
        let usage = Usage { prompt_tokens, cached_tokens: Some(flying.cached_tokens) };
        self.fleet.finish(flying.ticket, Outcome::Completed { usage: Some(usage) }, Now::from_secs_f64(now));
        if self.clients.closed() {
            let pause = self.clients.pause(flying.client, &mut self.random);
            self.at(now + pause, Event::Send(flying.client));
        }
    }

    fn report(mut self) -> Report {
        let stats = self.fleet.snapshot(Now::ZERO);
        assert_eq!(stats.in_flight, 0);
        let promised: u64 = stats.endpoints.iter().map(|e| e.predicted_cached_tokens).sum();
        let report = &mut self.report;
        report.promised = promised as f64 / self.cached_tokens.max(1) as f64;
        report.unique_blocks = self.unique.len();
        report.hit_rate = self.cached_tokens as f64 / self.prompt_tokens as f64;
        report.ttft_mean_s /= report.requests as f64;
        report.price_mean /= report.requests as f64;
        report.uncached_tokens = self.engines.iter().map(|e| e.uncached_tokens).collect();
        report.served = self.engines.iter().map(|e| e.requests).collect();
        self.report
    }
}
