//! What happened, counted; and what should not have.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Complaints kept: the first ones say what is wrong, more say it again.
const COMPLAINTS_MAX: usize = 20;

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// The counts of all clients.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Requests still to be sent.
    pub(crate) left: AtomicU64,
    /// Whole answers, each of which named its request.
    pub(crate) whole: AtomicU64,
    /// Answers that were left in the middle on purpose, or not waited for.
    pub(crate) aborted: AtomicU64,
    /// Refusals and failures with a status.
    pub(crate) refused: AtomicU64,
    /// Answers that broke off, visibly.
    pub(crate) broken: AtomicU64,
    stopped: AtomicBool,
    complaints: Mutex<Vec<String>>,
}

impl Ledger {
    pub(crate) fn new(requests: u64) -> Self {
        Self {
            left: AtomicU64::new(requests),
            whole: AtomicU64::default(),
            aborted: AtomicU64::default(),
            refused: AtomicU64::default(),
            broken: AtomicU64::default(),
            stopped: AtomicBool::default(),
            complaints: Mutex::default(),
        }
    }

    /// Whether there is another request to send.
    pub(crate) fn take(&self) -> bool {
        let one = |left: u64| left.checked_sub(1);
        !self.stopped.load(Ordering::Relaxed)
            && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one).is_ok()
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self) -> u64 {
        [&self.whole, &self.aborted, &self.refused, &self.broken]
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    pub(crate) fn complain(&self, complaint: String) {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if complaints.len() < COMPLAINTS_MAX {
            complaints.push(complaint);
        }
    }

    pub(crate) fn complaints(&self) -> Vec<String> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let (whole, aborted) = (count(&self.whole), count(&self.aborted));
        let (refused, broken) = (count(&self.refused), count(&self.broken));
        write!(
            f,
            "{} requests: {whole} whole, {aborted} left, {refused} refused, {broken} broke off",
            self.sent()
        )
    }
}
