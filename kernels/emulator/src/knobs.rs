//! What tests turn: hold streams, slow copies, fail the n-th call of a function, lose the device.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;

use crate::code::Answer;

/// The emulator's knobs; one set per process.
#[derive(Default)]
pub(crate) struct Knobs {
    /// Streams begin nothing new while it is up.
    pub(crate) held: AtomicBool,
    /// Copies take this long: bytes per second, 0 for no limit.
    pub(crate) bytes_per_second: AtomicU64,
    /// What every call answers from now on: a kernel's fault, or a lost device. 0 for none.
    pub(crate) lost: AtomicU32,
    calls: Mutex<Calls>,
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
        let mut calls = self.calls.lock();
        *calls.counts.entry(name).or_default() += 1;
        if let Some((failing, left, code)) = &mut calls.failure
            && failing == name
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                let code = *code;
                calls.failure = None;
                return Err(code);
            }
        }
        match self.lost.load(SeqCst) {
            0 => Ok(()),
            code => Err(code),
        }
    }

    /// Fails the `nth` call from now on; 0 for none.
    pub(crate) fn fail(&self, name: &str, nth: u64, code: u32) {
        self.calls.lock().failure = (nth > 0).then(|| (name.to_owned(), nth, code));
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        self.calls.lock().counts.get(name).copied().unwrap_or(0)
    }
}
