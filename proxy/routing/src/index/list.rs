//! Recency lists threaded through the records: position is age, and nothing is allocated to move.

use super::Record;

/// "No record": the end of a list.
pub(super) const NONE: u32 = u32::MAX;

/// Which of a record's two lists is meant.
#[derive(Clone, Copy)]
pub(super) enum Lane {
    /// Among the records of one holder.
    Holder = 0,
    /// Among all records that may be evicted.
    All = 1,
}

/// A record's neighbours in one lane.
#[derive(Clone, Copy)]
pub(super) struct Link {
    pub(super) older: u32,
    pub(super) newer: u32,
}

impl Link {
    pub(super) const ALONE: Link = Link { older: NONE, newer: NONE };
}

/// The ends of one list.
#[derive(Clone, Copy)]
pub(super) struct List {
    pub(super) oldest: u32,
    pub(super) newest: u32,
}

impl List {
    pub(super) const EMPTY: List = List { oldest: NONE, newest: NONE };

    /// Puts `id`, which is in no list of this lane, at the newest end.
    pub(super) fn push_newest(&mut self, records: &mut [Record], lane: Lane, id: u32) {
        let before = self.newest;
        records[id as usize].links[lane as usize] = Link { older: before, newer: NONE };
        self.newest = id;
        match before {
            NONE => self.oldest = id,
            _ => records[before as usize].links[lane as usize].newer = id,
        }
    }

    /// Puts `id`, which is in no list of this lane, directly on the older side of `at`.
    pub(super) fn insert_older(&mut self, records: &mut [Record], lane: Lane, id: u32, at: u32) {
        let older = records[at as usize].links[lane as usize].older;
        records[id as usize].links[lane as usize] = Link { older, newer: at };
        records[at as usize].links[lane as usize].older = id;
        match older {
            NONE => self.oldest = id,
            _ => records[older as usize].links[lane as usize].newer = id,
        }
    }

    /// Takes `id` out of this list.
    pub(super) fn unlink(&mut self, records: &mut [Record], lane: Lane, id: u32) {
        let Link { older, newer } = records[id as usize].links[lane as usize];
        match older {
            NONE => self.oldest = newer,
            _ => records[older as usize].links[lane as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            _ => records[newer as usize].links[lane as usize].older = older,
        }
        records[id as usize].links[lane as usize] = Link::ALONE;
    }

    /// Tells the neighbours of a member that it now lives at `id` (its own links moved along with it).
    pub(super) fn moved(&mut self, records: &mut [Record], lane: Lane, id: u32) {
        let Link { older, newer } = records[id as usize].links[lane as usize];
        match older {
            NONE => self.oldest = id,
            _ => records[older as usize].links[lane as usize].newer = id,
        }
        match newer {
            NONE => self.newest = id,
            _ => records[newer as usize].links[lane as usize].older = id,
        }
    }
}
