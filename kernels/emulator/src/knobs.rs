//! What tests turn: hold streams, slow copies, fail the n-th call of a function, spoil a copy, lose the device.
//!
//! Where a test has no hold on the process that loads the emulator, the environment turns two of them from the beginning:
//! `LARDER_EMULATOR_FAIL` is `FUNCTION:NTH:CODE`, and `LARDER_EMULATOR_FLIP` the number of the copy of which a byte changes.
//! While it runs, a file turns them that `LARDER_EMULATOR_KNOBS` names, each time its text changes: `hold`, `lose CODE` or
//! `fail FUNCTION NTH CODE`, and a word to tell it from the text before. A failure that was asked for so and has happened
//! leaves a file beside it, with `.failed` added to its name; `left` makes one with `.left`, in which stands how many objects
//! were made and not freed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::Mutex;

use crate::code::Answer;

/// Between two looks at the file.
const LOOK: Duration = Duration::from_millis(2);

/// The emulator's knobs; one set per process.
pub(crate) struct Knobs {
    /// Streams begin nothing new while it is up.
    pub(crate) held: AtomicBool,
    /// Copies take this long: bytes per second, 0 for no limit.
    pub(crate) bytes_per_second: AtomicU64,
    /// What every call answers from now on: a kernel's fault, or a lost device. 0 for none.
    pub(crate) lost: AtomicU32,
    /// Copies to and from the device until one of which a bit is flipped; 0 for none.
    flip: AtomicU64,
    calls: Mutex<Calls>,
    /// The file, and its text when it was last looked at.
    file: Option<(PathBuf, Mutex<String>)>,
}

impl Default for Knobs {
    fn default() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let failure = variable("LARDER_EMULATOR_FAIL").and_then(|text| {
            let [function, nth, code] = text.split(':').collect::<Vec<_>>()[..] else { return None };
            Some((function.to_owned(), nth.parse().ok()?, code.parse().ok()?))
        });
        let flip = variable("LARDER_EMULATOR_FLIP").and_then(|text| text.parse().ok()).unwrap_or(0);
        let file: Option<PathBuf> = variable("LARDER_EMULATOR_KNOBS").map(PathBuf::from);
        if file.is_some() {
            // For what nothing else would be called for.
            std::thread::spawn(|| {
                loop {
                    std::thread::sleep(LOOK);
                    crate::state::state().knobs.look();
                }
            });
        }
        Self {
            held: AtomicBool::default(),
            bytes_per_second: AtomicU64::default(),
            lost: AtomicU32::default(),
            flip: AtomicU64::new(flip),
            calls: Mutex::new(Calls { failure, ..Calls::default() }),
            file: file.map(|path| (path, Mutex::default())),
        }
    }
}

#[derive(Default)]
struct Calls {
    counts: HashMap<&'static str, u64>,
    /// Which function, at which of its calls from now on, with which code.
    failure: Option<(String, u64, u32)>,
}

impl Knobs {
    /// Counts a call, and answers for it if it is to fail.
    pub(crate) fn called(&self, name: &'static str) -> Answer {
        self.look();
        let mut calls = self.calls.lock();
        *calls.counts.entry(name).or_default() += 1;
        if let Some((failing, left, code)) = &mut calls.failure
            && failing == name
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                let code = *code;
                calls.failure = None;
                self.file.iter().for_each(|(path, _)| {
                    // Only a test that looks for it misses it.
                    let _ = std::fs::write(path.with_added_extension("failed"), name);
                });
                return Err(code);
            }
        }
        match self.lost.load(SeqCst) {
            0 => Ok(()),
            code => Err(code),
        }
    }

    /// Turns the knobs as the file says, if its text has changed.
    pub(crate) fn look(&self) {
        let Some((path, seen)) = &self.file else { return };
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut seen = seen.lock();
        if *seen == text {
            return;
        }
        let words: Vec<&str> = text.split_whitespace().collect();
        self.held.store(words.first() == Some(&"hold"), SeqCst);
        self.fail("", 0, 0);
        match words[..] {
            ["left", ..] => {
                let left = crate::state::state().left().to_string();
                // As above.
                let _ = std::fs::write(path.with_added_extension("left"), left);
            }
            ["lose", code, ..] => self.lost.store(code.parse().unwrap_or(0), SeqCst),
            ["fail", function, nth, code, ..] => {
                self.fail(function, nth.parse().unwrap_or(0), code.parse().unwrap_or(0));
            }
            _ => {}
        }
        *seen = text;
    }

    /// Whether the copy that is being done is the one to spoil.
    pub(crate) fn flips(&self) -> bool {
        let left = self.flip.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        left == Ok(1)
    }

    /// Fails the `nth` call from now on; 0 for none.
    pub(crate) fn fail(&self, name: &str, nth: u64, code: u32) {
        self.calls.lock().failure = (nth > 0).then(|| (name.to_owned(), nth, code));
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        self.calls.lock().counts.get(name).copied().unwrap_or(0)
    }
}
