//! Recipes on disk: when they are written, that they come back, and which files go.

use larder_protocol::control::{StageReason, StageRequest};

use super::*;
use crate::medium::disk::media::Media as _;
use crate::medium::disk::media::fake::Fake;
use crate::medium::disk::recipes::{self, Journal};
use crate::recipe::Kept;

/// A world beside a disk of memory, whose recipes are kept there.
struct Kitchen {
    world: World,
    media: Fake,
    journal: Journal,
    engine: ConnectionId,
}

impl Kitchen {
    /// The node starts, with what is on the disk.
    fn start(media: Fake, settings: Settings) -> Self {
        let files = media.segments().unwrap();
        let mut world = World::with_disk(settings, 0);
        world.store = world.store.with_recipe_log(&files);
        let engine = world.engine(1, &register(128 << 10, 1));
        let mut kitchen = Self { world, media, journal: Journal::new(), engine };
        let found = kitchen.kept();
        kitchen.world.step(Input::Recipes { found, last: true });
        kitchen
    }

    /// What is on the disk.
    fn kept(&self) -> Vec<Kept> {
        let mut found = Vec::new();
        for file in self.media.segments().unwrap() {
            recipes::read(&self.media, file, |recipe| found.push(recipe)).unwrap();
        }
        found
    }

    fn stage(&mut self, prompt: u64) -> StageReason {
        let request = StageRequest {
            tag: Some(Tag(u128::from(prompt))),
            chain: (0..9).map(|run| ChainPoint(prompt * 1000 + run)).collect(),
            run_bytes: 128,
            prompt_bytes: 9 * 128,
            engine: None,
            deadline_ms: None,
            max_bytes: None,
            tenant: None,
        };
        let fresh = self.world.fresh();
        self.world.step(Input::Stage { ticket: Ticket(1), request, fresh });
        self.world.answers.pop().unwrap().1.reason
    }

    /// The engine tells which `count` keys a prompt begins with.
    fn report(&mut self, prompt: u64, count: u64) {
        let lookup = Lookup {
            id: 5,
            keys: keys(prompt * 1000..prompt * 1000 + count),
            end_tokens: (1..=count as u32).map(|index| index * 32).collect(),
            request: None,
            tag: Some(Tag(u128::from(prompt))),
            prompt_tokens: Some(300),
        };
        self.world.say(self.engine, lookup);
    }

    fn learn(&mut self, prompt: u64, count: u64) {
        assert_eq!(self.stage(prompt), StageReason::NoRecipe);
        self.report(prompt, count);
    }

    /// Time passes, and what is to be written is.
    fn later(&mut self, seconds: u64) {
        self.world.later(seconds);
        for op in std::mem::take(&mut self.world.recipes) {
            match op {
                JournalOp::Append { file, records } => self.journal.append(&self.media, file, &records),
                JournalOp::Remove { file } => self.journal.remove(&self.media, file),
            }
        }
    }

    fn restart(self, settings: Settings) -> Self {
        Self::start(self.media, settings)
    }
}

#[test]
fn recipes_come_back_after_a_restart() {
    let mut kitchen = Kitchen::start(Fake::default(), settings());
    kitchen.learn(1, 4);
    kitchen.later(1);
    assert_eq!(kitchen.kept().len(), 0, "more of its keys may come");
    kitchen.report(1, 8);
    kitchen.later(2);
    let kept = kitchen.kept();
    assert_eq!(
        (kept.len(), kept[0].keys.len(), kept[0].prompt_tokens),
        (1, 8, Some(300)),
        "written once, whole"
    );
    // Nothing is held any more, but what the prompt begins with is known.
    let mut kitchen = kitchen.restart(settings());
    assert_eq!((kitchen.stage(1), kitchen.stage(2)), (StageReason::NotHeld, StageReason::NoRecipe));
    assert_eq!(kitchen.world.store.stats().counts.recovered_recipes, 1);
    kitchen.learn(3, 8);
    kitchen.later(3);
    assert_eq!(kitchen.media.segments().unwrap(), [recipes::FIRST + 1], "all of it is in the new file");
    assert_eq!(kitchen.kept().len(), 2);
    let mut kitchen = kitchen.restart(settings());
    assert_eq!((kitchen.stage(1), kitchen.stage(3)), (StageReason::NotHeld, StageReason::NotHeld));
}

/// The control: without its files a node knows nothing.
#[test]
fn without_files_nothing_comes_back() {
    let mut kitchen = Kitchen::start(Fake::default(), settings());
    kitchen.learn(1, 8);
    kitchen.later(3);
    let mut kitchen = Kitchen::start(Fake::default(), settings());
    assert_eq!(kitchen.stage(1), StageReason::NoRecipe);
}

#[test]
fn a_node_that_ends_writes_what_waits() {
    let mut kitchen = Kitchen::start(Fake::default(), settings());
    kitchen.learn(1, 8);
    kitchen.world.step(Input::Ending);
    assert!(matches!(kitchen.world.recipes.as_slice(), [JournalOp::Append { .. }]));
}

#[test]
fn a_file_that_grows_too_long_is_replaced_by_what_is_still_held() {
    let small = Settings { recipe_bytes_max: 20_000, ..settings() };
    let mut kitchen = Kitchen::start(Fake::default(), small.clone());
    for prompt in 1..200 {
        kitchen.learn(prompt, 8);
        kitchen.later(3);
        let files = kitchen.media.segments().unwrap();
        let bytes: u64 = files.iter().map(|file| kitchen.media.length(*file).unwrap()).sum();
        assert!(files.len() <= 2 && bytes < 2 * 20_000 + 1000, "{files:?} of {bytes} bytes");
    }
    assert!(kitchen.media.segments().unwrap()[0] > recipes::FIRST + 1);
    let held = kitchen.world.store.stats().recipes;
    let kitchen = kitchen.restart(small);
    assert_eq!(kitchen.world.store.stats().recipes, held, "and no more than fit");
}
