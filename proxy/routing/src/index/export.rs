//! Reading the whole index bit by bit, newest first, while it goes on changing.
//!
//! A cursor names the record where a step ended by what it is, since records move in memory. What is used between two
//! steps moves to the newest end and may be given twice or not at all; what is given was true at its time.

use super::{HolderId, Index, List, NONE};

/// Where an export goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// What requests in flight pin, from this holder on.
    Pinned(HolderId),
    /// What may be evicted, from the newest on.
    Newest,
    /// What is older than the record of this holder in the segment that begins with this element.
    OlderThan(HolderId, u64),
}

impl Cursor {
    /// The beginning.
    pub(crate) const START: Cursor = Cursor::Pinned(0);
}

impl Index {
    /// Calls `each(holder, elements)` for confirmed records until `most` elements were given; `None` after the last, or
    /// when the record at the cursor is there no more. One holder's pinned records are one step whatever they are.
    pub(crate) fn export(
        &self,
        cursor: Cursor,
        most: usize,
        mut each: impl FnMut(HolderId, &[u64]),
    ) -> Option<Cursor> {
        let mut given = 0;
        let mut id = match cursor {
            Cursor::Pinned(holder) => {
                let Some(owner) = self.holders.get(holder as usize) else { return Some(Cursor::Newest) };
                self.export_pinned(owner.pinned, &mut each);
                return Some(Cursor::Pinned(holder + 1));
            }
            Cursor::Newest => self.free.newest,
            Cursor::OlderThan(holder, first) => {
                let segment = self.find(first)?;
                let kept = self.kept_at(segment, holder)?;
                let record = &self.records[self.segments[segment as usize].kept[kept].record as usize];
                if record.pins > 0 {
                    return None;
                }
                record.links[super::Lane::All as usize].older
            }
        };
        while id != NONE {
            let record = &self.records[id as usize];
            let run = self.held_run(id);
            if record.confirmed {
                each(record.holder, run);
            }
            given += run.len();
            let older = record.links[super::Lane::All as usize].older;
            if given >= most && older != NONE {
                return Some(Cursor::OlderThan(record.holder, run[0]));
            }
            id = older;
        }
        None
    }

    fn export_pinned(&self, pinned: List, each: &mut impl FnMut(HolderId, &[u64])) {
        let mut id = pinned.newest;
        while id != NONE {
            let record = &self.records[id as usize];
            if record.confirmed {
                each(record.holder, self.held_run(id));
            }
            id = record.links[super::Lane::Holder as usize].older;
        }
    }

    /// The elements that a record stands for: one or more.
    fn held_run(&self, record: u32) -> &[u64] {
        let record = &self.records[record as usize];
        let held = self.held_in(record.segment, record.holder);
        &self.segments[record.segment as usize].run[..held]
    }
}
