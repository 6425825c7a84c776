//! Recipes outlive the node where it has a disk tier: which are written when, and to which file.
//!
//! A recipe is written some seconds after it was learnt, so that a prompt whose keys come in parts is written once, or a
//! few times. All files of earlier runs are read at the start, what is in them is written to the new one like any other
//! recipe, and they are removed once that is done; a file that has grown too long is replaced in the same way.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Output, Store};
use crate::medium::disk::recipes;
use crate::recipe::{Kept, RecipeId};

/// How long a recipe waits to be written: more keys of its prompt replace it meanwhile. So much is lost when the process
/// is killed.
pub const JOURNAL_AFTER: Duration = Duration::from_secs(2);

/// Bytes of records that one tick writes, about: the store does nothing else meanwhile.
const TICK_BYTES: usize = 256 << 10;

/// What is to be done with files of recipes, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalOp {
    /// Append records to a file, which is made if it is new.
    Append {
        /// The file's number.
        file: u64,
        /// The records.
        records: Vec<u8>,
    },
    /// Make durable what was appended, then remove a file whose recipes are all in it.
    Remove {
        /// The file's number.
        file: u64,
    },
}

#[derive(Debug)]
pub(super) struct RecipeLog {
    /// The file that is appended to, and its length.
    file: u64,
    bytes: u64,
    /// What is to be written, in the order in which it was learnt.
    waiting: VecDeque<(Duration, RecipeId)>,
    /// Files whose recipes are held or wait to be written; each goes once as many have been written as waited when it was
    /// noted.
    old: Vec<(u64, u64)>,
    /// How many have been taken from `waiting`, and put into it.
    taken: u64,
    put: u64,
}

impl RecipeLog {
    /// Goes on after the files of earlier runs.
    pub(super) fn new(earlier: &[u64]) -> Self {
        let file = earlier.iter().max().map_or(recipes::FIRST, |last| last + 1);
        // What is in the earlier ones is told later.
        let old = earlier.iter().map(|file| (*file, u64::MAX)).collect();
        Self { file, bytes: 0, waiting: VecDeque::new(), old, taken: 0, put: 0 }
    }

    fn put(&mut self, id: RecipeId, now: Duration) {
        self.waiting.push_back((now, id));
        self.put += 1;
    }
}

impl Store {
    /// Keeps recipes on disk, beside those in these files of earlier runs. Before the first step.
    pub fn with_recipe_log(mut self, earlier: &[u64]) -> Self {
        self.recipe_log = Some(RecipeLog::new(earlier));
        self.recipes.tell_new();
        self
    }

    /// Recipes of earlier runs were read; the `last` of them if there are no more.
    pub(super) fn recipes_found(&mut self, found: Vec<Kept>, last: bool, now: Duration) {
        self.counts.recovered_recipes += found.len() as u64;
        found.into_iter().for_each(|recipe| self.recipes.restore(recipe));
        self.note_new_recipes(now);
        if let Some(log) = self.recipe_log.as_mut().filter(|_| last) {
            let put = log.put;
            log.old.iter_mut().filter(|(_, after)| *after == u64::MAX).for_each(|(_, after)| *after = put);
        }
    }

    pub(super) fn note_new_recipes(&mut self, now: Duration) {
        if let Some(log) = &mut self.recipe_log {
            self.recipes.take_new().into_iter().for_each(|id| log.put(id, now));
        }
    }

    /// Writes what has waited long enough, or all of it if the node is `ending`.
    pub(super) fn write_recipes(&mut self, ending: bool, now: Duration, out: &mut Vec<Output>) {
        let Some(log) = &mut self.recipe_log else { return };
        let mut records = Vec::new();
        while let Some((since, id)) = log.waiting.front().copied()
            && (ending || (since.saturating_add(JOURNAL_AFTER) <= now && records.len() < TICK_BYTES))
        {
            log.waiting.pop_front();
            log.taken += 1;
            // One that was replaced or forgotten since need not be kept.
            if let Some(recipe) = self.recipes.kept(id) {
                recipes::write(&recipe, &mut records);
            }
        }
        if !records.is_empty() {
            log.bytes += records.len() as u64;
            out.push(Output::Recipes(JournalOp::Append { file: log.file, records }));
        }
        let taken = log.taken;
        for (file, _) in log.old.extract_if(.., |(_, after)| *after <= taken) {
            out.push(Output::Recipes(JournalOp::Remove { file }));
        }
        if log.bytes > self.settings.recipe_bytes_max as u64 && log.old.is_empty() {
            // Too long: what is still held goes to another file.
            let all = self.recipes.ids();
            all.into_iter().for_each(|id| log.put(id, Duration::ZERO));
            log.old.push((log.file, log.put));
            (log.file, log.bytes) = (log.file + 1, 0);
        }
    }
}
