//! What happens, drawn from the seed, one thing after the other.

use std::time::Duration;

use larder_cache_node::medium::disk::media::Media as _;
use larder_cache_node::medium::disk::media::fake::Fault;
use larder_cache_node::store::{Input, Ticket};
use larder_protocol::control::{ChainPoint, StageRequest};
use larder_protocol::{LeaseId, Tag};

use crate::engines::{DEPTH, Engine, Truth, prompt};
use crate::rng::Rng;
use crate::world::World;
use crate::{Failure, Settings};

/// Prompts in use: their chunks are more than memory holds, and than the disk does.
const PROMPTS: u64 = 40;

/// Engines at one time.
const ENGINES: usize = 3;

/// What a run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Chunks compared with what they must be.
    pub compared_chunks: u64,
    /// Chunks sent to be stored.
    pub stored_chunks: u64,
    /// Lookups told to ask again.
    pub pending_lookups: u64,
    /// Chunks found on disk by another life of the node.
    pub recovered_chunks: u64,
    /// Chunks read from disk.
    pub loaded_chunks: u64,
    /// Chunks found damaged on disk.
    pub damaged_chunks: u64,
    /// Recipes of an earlier life of the node.
    pub recovered_recipes: u64,
    /// Times that the node died.
    pub crashes: u64,
}

pub(crate) struct History {
    settings: Settings,
    rng: Rng,
    world: World,
    engines: Vec<Engine>,
    truth: Truth,
    report: Report,
    numbers: u64,
}

impl History {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            rng: Rng::new(settings.seed),
            world: World::new(settings.verify),
            settings,
            engines: Vec::new(),
            truth: Truth::default(),
            report: Report::default(),
            numbers: 10,
        }
    }

    pub(crate) fn run(mut self) -> Result<Report, Failure> {
        let settings = self.settings;
        for step in 0..self.settings.steps {
            self.happen().map_err(|what| Failure { settings, step, what })?;
        }
        let step = self.settings.steps;
        self.end().map_err(|what| Failure { settings, step, what })?;
        self.report.compared_chunks = self.truth.compared;
        self.report.stored_chunks = self.truth.stored;
        self.report.pending_lookups = self.truth.pending;
        Ok(self.report)
    }

    fn happen(&mut self) -> Result<(), String> {
        match self.rng.below(100) {
            0..45 => self.work()?,
            45..60 => self.store()?,
            60..72 => self.look_up()?,
            72..86 => self.use_lease()?,
            86..89 => self.stage()?,
            89..94 => self.wait()?,
            94..96 => self.fail(),
            96..98 => self.come_and_go()?,
            98 if self.rng.once_in(8) => self.world.step(Input::Clear { ticket: Ticket(0) })?,
            98 => self.damage(),
            _ => {
                if self.rng.once_in(4) {
                    self.crash();
                }
            }
        }
        self.hear();
        for engine in &self.engines {
            engine.compare(&self.world, &mut self.truth)?;
        }
        if self.world.media.has_crashed() {
            self.crash();
        }
        Ok(())
    }

    fn work(&mut self) -> Result<(), String> {
        let which = self.rng.index(self.world.waiting());
        self.world.work(which)
    }

    fn engine(&mut self) -> Option<&mut Engine> {
        let index = self.rng.index(self.engines.len());
        self.engines.get_mut(index)
    }

    /// A prompt; low numbers are asked for more often.
    fn prompt(&mut self) -> u64 {
        self.rng.below(PROMPTS).min(self.rng.below(PROMPTS))
    }

    fn store(&mut self) -> Result<(), String> {
        let (number, count) = (self.prompt(), 1 + self.rng.below(DEPTH));
        let first = if self.rng.once_in(4) { self.rng.below(3) } else { 0 };
        let index = self.rng.index(self.engines.len());
        match self.engines.get_mut(index) {
            Some(engine) => engine.store(&mut self.world, &mut self.truth, &prompt(number, first, count)),
            None => self.connect(),
        }
    }

    fn look_up(&mut self) -> Result<(), String> {
        let number = self.prompt();
        self.numbers += 1;
        let (fresh, index) = (self.numbers, self.rng.index(self.engines.len()));
        match self.engines.get_mut(index) {
            Some(engine) => engine.look_up(&mut self.world, fresh, prompt(number, 0, DEPTH)),
            None => Ok(()),
        }
    }

    fn use_lease(&mut self) -> Result<(), String> {
        let index = self.rng.index(self.engines.len());
        match self.engines.get_mut(index) {
            Some(engine) => engine.use_lease(&mut self.world, &mut self.rng),
            None => Ok(()),
        }
    }

    fn stage(&mut self) -> Result<(), String> {
        let number = self.prompt();
        let Some(engine) = self.engine().map(|engine| format!("e{}", engine.scheduler.0 / 2)) else {
            return Ok(());
        };
        self.numbers += 1;
        let request = StageRequest {
            tag: Some(Tag(u128::from(number))),
            chain: (0..DEPTH).map(|run| ChainPoint(number * 1000 + run)).collect(),
            run_bytes: 128,
            prompt_bytes: DEPTH * 128,
            engine: Some(engine),
            deadline_ms: self.rng.once_in(2).then_some(50),
            max_bytes: None,
            tenant: None,
        };
        let (ticket, fresh) = (Ticket(self.numbers), LeaseId(u128::from(self.numbers)));
        self.world.step(Input::Stage { ticket, request, fresh })
    }

    /// Mostly a moment; now and then an hour.
    fn wait(&mut self) -> Result<(), String> {
        let milliseconds = match self.rng.below(20) {
            0 => 3_600_000,
            1..4 => 1000 + self.rng.below(10_000),
            _ => 1 + self.rng.below(50),
        };
        self.world.now += Duration::from_millis(milliseconds);
        self.world.step(Input::Tick)
    }

    /// One of the disk's next calls goes wrong.
    fn fail(&mut self) {
        let bytes = self.rng.index(100_000);
        let fault = match self.rng.below(12) {
            0 => Fault::Short(bytes),
            1 => Fault::Torn(bytes),
            2 => Fault::Io,
            3 => Fault::Full,
            4 => Fault::Flip(bytes),
            5..8 => Fault::Crash(bytes),
            8 => return self.world.media.set_unreadable(true),
            _ => return self.world.media.set_unreadable(false),
        };
        let calls = self.rng.below(6);
        self.world.media.fail(calls, fault);
    }

    fn damage(&mut self) {
        let segments = self.world.media.segments().unwrap_or_default();
        let Some(segment) = segments.get(self.rng.index(segments.len())) else { return };
        let length = self.world.media.length(*segment).unwrap_or(0);
        self.world.media.flip(*segment, self.rng.index(length as usize));
    }

    fn come_and_go(&mut self) -> Result<(), String> {
        if self.engines.len() < ENGINES {
            return self.connect();
        }
        if self.rng.once_in(4) {
            let index = self.rng.index(self.engines.len());
            return self.engines.swap_remove(index).die(&mut self.world);
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), String> {
        self.hear();
        self.numbers += 1;
        let weights = 1 + self.rng.below(2) as u8;
        let engine = Engine::connect(&mut self.world, self.numbers, weights)?;
        self.engines.push(engine);
        Ok(())
    }

    /// The node dies, perhaps with the power, and comes back.
    fn crash(&mut self) {
        self.note();
        self.report.crashes += 1;
        if self.rng.once_in(2) {
            let rng = &mut self.rng;
            let share = 1 + rng.below(4);
            self.world.media.lose_power(|| rng.once_in(share));
        }
        self.engines.clear();
        self.world.restart();
        self.world.media.set_unreadable(false);
    }

    /// Adds what this life of the node counted.
    fn note(&mut self) {
        let counts = self.world.store.stats().disk.counts;
        self.report.recovered_chunks += counts.recovered_chunks;
        self.report.recovered_recipes += self.world.store.stats().counts.recovered_recipes;
        self.report.loaded_chunks += counts.loaded_chunks;
        self.report.damaged_chunks += counts.damaged_chunks;
    }

    fn hear(&mut self) {
        for (to, message) in std::mem::take(&mut self.world.said) {
            let engine = self.engines.iter_mut().find(|engine| engine.scheduler == to);
            engine.into_iter().for_each(|engine| engine.hear(&mut self.truth, message.clone()));
        }
    }

    /// Everything comes to its end: nothing may be left over.
    fn end(&mut self) -> Result<(), String> {
        self.world.media.restart();
        self.world.media.set_unreadable(false);
        while self.world.waiting() > 0 {
            self.world.work(0)?;
        }
        for engine in std::mem::take(&mut self.engines) {
            engine.die(&mut self.world)?;
        }
        for _ in 0..3 {
            self.world.now += Duration::from_secs(3600);
            self.world.step(Input::Tick)?;
            while self.world.waiting() > 0 {
                self.world.work(0)?;
            }
        }
        self.note();
        let stats = self.world.store.stats();
        let left = [
            ("pinned bytes", stats.pinned_bytes),
            ("leases", stats.leases),
            ("sessions", stats.sessions),
            ("verifications", stats.verifications),
            ("copies", stats.copies),
            ("slots being written", stats.writing_slots),
            ("writes to disk", stats.disk.writes),
            ("loads from disk", stats.disk.loads),
            ("unread segments", stats.disk.unread_segments),
        ];
        match left.iter().find(|(_, count)| *count > 0) {
            Some((what, count)) => Err(format!("{count} {what} are left at the end")),
            None => Ok(()),
        }
    }
}
