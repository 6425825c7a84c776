//! Where canonical bytes go: cut into runs and hashed where they lie.

use crate::xxh3::RunHasher;

/// Takes canonical bytes piece by piece; how they are cut must not matter.
pub(crate) trait Out {
    fn put(&mut self, bytes: &[u8]);
}

/// For tests that look at the bytes.
#[cfg(test)]
impl Out for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Hashes of the runs of a canonical stream.
///
/// Whole runs inside one piece are hashed in place; only a run that crosses pieces is copied together, into `tail`.
pub(crate) struct Sink<'h> {
    hasher: &'h RunHasher,
    hashes: Vec<u64>,
    /// The run under way: always shorter than a run.
    tail: Vec<u8>,
    bytes: u64,
}

impl<'h> Sink<'h> {
    /// `expected` is the most bytes that will come, so that the hashes are allocated once.
    pub(crate) fn new(hasher: &'h RunHasher, expected: usize) -> Self {
        let run = hasher.run_bytes().get();
        Self {
            hasher,
            hashes: Vec::with_capacity(expected / run + 2),
            tail: Vec::with_capacity(run),
            bytes: 0,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.hashes.clear();
        self.tail.clear();
        self.bytes = 0;
    }

    #[inline]
    pub(crate) fn put_byte(&mut self, byte: u8) {
        self.bytes += 1;
        self.tail.push(byte);
        if self.tail.len() == self.hasher.run_bytes().get() {
            self.hash_tail();
        }
    }

    /// Whole runs so far.
    pub(crate) fn runs(&self) -> usize {
        self.hashes.len()
    }

    /// Fills the run under way with `filler`, so that what follows starts a run.
    pub(crate) fn pad(&mut self, filler: u8) {
        if !self.tail.is_empty() {
            let run = self.hasher.run_bytes().get();
            self.bytes += (run - self.tail.len()) as u64;
            self.tail.resize(run, filler);
            self.hash_tail();
        }
    }

    /// The hashes of all whole runs, and the length of the stream with its tail.
    pub(crate) fn finish(self) -> (Vec<u64>, u64) {
        (self.hashes, self.bytes)
    }

    #[inline]
    fn hash_tail(&mut self) {
        self.hasher.runs(&self.tail, &mut self.hashes);
        self.tail.clear();
    }

    /// The path of a piece that completes a run.
    fn put_across(&mut self, mut bytes: &[u8]) {
        let run = self.hasher.run_bytes().get();
        if !self.tail.is_empty() {
            let (head, rest) = bytes.split_at(run - self.tail.len());
            self.tail.extend_from_slice(head);
            self.hash_tail();
            bytes = rest;
        }
        let whole = bytes.len() & !(run - 1);
        let (whole, rest) = bytes.split_at(whole);
        if !whole.is_empty() {
            self.hasher.runs(whole, &mut self.hashes);
        }
        self.tail.extend_from_slice(rest);
    }
}

impl Out for Sink<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if self.tail.len() + bytes.len() < self.hasher.run_bytes().get() {
            self.tail.extend_from_slice(bytes);
        } else {
            self.put_across(bytes);
        }
    }
}
