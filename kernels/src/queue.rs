//! What waits for a link, and what goes next. Pure.
//!
//! A load is waited for by a request, a store by nobody: a store begins only while no load waits, and stores never fill
//! all of what may be on its way, so that a load that comes finds room at once.

use std::collections::VecDeque;

/// Which way a transfer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Into an engine's pages.
    Load,
    /// Out of them.
    Store,
}

/// How much may wait and be on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes on their way at once, both ways together. More make nothing faster, and delay the next load.
    pub bytes_max: u64,
    /// Of these, bytes of stores.
    pub store_bytes_max: u64,
    /// Loads that wait. One more is refused: its request computes its prefix sooner than it would be served.
    pub loads_max: usize,
    /// Stores that wait. One more is dropped.
    pub stores_max: usize,
}

impl Default for Limits {
    /// 64 MiB are 1 to 3 ms of a PCIe 5 or 4 link.
    fn default() -> Self {
        Self { bytes_max: 64 << 20, store_bytes_max: 32 << 20, loads_max: 1024, stores_max: 256 }
    }
}

/// How far a link is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Loads that wait.
    pub loads: usize,
    /// Stores that wait.
    pub stores: usize,
    /// Bytes of the loads that wait.
    pub load_bytes: u64,
    /// Bytes of the stores that wait.
    pub store_bytes: u64,
    /// Bytes of loads on their way.
    pub loading_bytes: u64,
    /// Bytes of stores on their way.
    pub storing_bytes: u64,
}

/// The transfers that wait for a link.
#[derive(Debug)]
pub struct Queue<T> {
    limits: Limits,
    loads: VecDeque<(u64, T)>,
    stores: VecDeque<(u64, T)>,
    depth: Depth,
}

impl<T> Queue<T> {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        Self { limits, loads: VecDeque::new(), stores: VecDeque::new(), depth: Depth::default() }
    }

    /// Takes a transfer of `bytes`, or gives it back where as many wait as may.
    ///
    /// # Errors
    /// The transfer itself: too many of its kind wait.
    pub fn push(&mut self, kind: Kind, bytes: u64, transfer: T) -> Result<(), T> {
        let (waiting, most, sum) = match kind {
            Kind::Load => (&mut self.loads, self.limits.loads_max, &mut self.depth.load_bytes),
            Kind::Store => (&mut self.stores, self.limits.stores_max, &mut self.depth.store_bytes),
        };
        if waiting.len() >= most {
            return Err(transfer);
        }
        waiting.push_back((bytes, transfer));
        *sum = sum.saturating_add(bytes);
        Ok(())
    }

    /// The next transfer to begin, if one may now. It counts as on its way until [`Queue::ended`] is told of it. One
    /// that does not fit goes all the same where it would wait for ever: a load when no other is on its way, a store
    /// when nothing is. No store begins unless it `may_store`.
    pub fn begin(&mut self, may_store: bool) -> Option<(Kind, u64, T)> {
        let on_its_way = self.depth.loading_bytes.saturating_add(self.depth.storing_bytes);
        if let Some((bytes, _)) = self.loads.front() {
            let fits = on_its_way.saturating_add(*bytes) <= self.limits.bytes_max;
            if !fits && self.depth.loading_bytes > 0 {
                return None;
            }
            let (bytes, transfer) = self.loads.pop_front()?;
            self.depth.load_bytes -= bytes;
            self.depth.loading_bytes = self.depth.loading_bytes.saturating_add(bytes);
            return Some((Kind::Load, bytes, transfer));
        }
        let (bytes, _) = self.stores.front().filter(|_| may_store)?;
        let fits = on_its_way.saturating_add(*bytes) <= self.limits.bytes_max
            && self.depth.storing_bytes.saturating_add(*bytes) <= self.limits.store_bytes_max;
        if !fits && on_its_way > 0 {
            return None;
        }
        let (bytes, transfer) = self.stores.pop_front()?;
        self.depth.store_bytes -= bytes;
        self.depth.storing_bytes = self.depth.storing_bytes.saturating_add(bytes);
        Some((Kind::Store, bytes, transfer))
    }

    /// A transfer that was begun has ended, well or not.
    pub fn ended(&mut self, kind: Kind, bytes: u64) {
        let on_its_way = match kind {
            Kind::Load => &mut self.depth.loading_bytes,
            Kind::Store => &mut self.depth.storing_bytes,
        };
        *on_its_way = on_its_way.saturating_sub(bytes);
    }

    /// Takes out what waits and is wanted no more: its engine has gone.
    pub fn forget(&mut self, is_wanted: impl Fn(&T) -> bool) -> Vec<T> {
        let mut gone = Vec::new();
        for (waiting, sum) in
            [(&mut self.loads, &mut self.depth.load_bytes), (&mut self.stores, &mut self.depth.store_bytes)]
        {
            for (bytes, transfer) in std::mem::take(waiting) {
                if is_wanted(&transfer) {
                    waiting.push_back((bytes, transfer));
                } else {
                    *sum -= bytes;
                    gone.push(transfer);
                }
            }
        }
        gone
    }

    /// How far the link is behind.
    pub fn depth(&self) -> Depth {
        Depth { loads: self.loads.len(), stores: self.stores.len(), ..self.depth }
    }
}

#[cfg(test)]
mod tests;
