//! What is believed to be cached where, out of a fleet and into another: for a restart that does not forget.

use super::Fleet;
use crate::EndpointId;
use crate::index::Cursor;

/// Where an export goes on, see [`Fleet::export`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportCursor(Cursor);

impl ExportCursor {
    /// The beginning.
    pub const START: ExportCursor = ExportCursor(Cursor::START);
}

impl Fleet {
    /// Calls `each` with an endpoint's name and elements that it is believed to hold, for about `most` elements, the most
    /// recently used first. Gives where to go on, with anything else in between; `None` when there is no more.
    ///
    /// Each piece stands for itself: [`Fleet::remember_held`] takes them in any order. What is used between two steps
    /// may be given twice or not at all.
    pub fn export(
        &self,
        from: ExportCursor,
        most: usize,
        mut each: impl FnMut(&str, &[u64]),
    ) -> Option<ExportCursor> {
        let named = |holder| self.endpoints().map(|(_, e)| e).find(|e| e.holder == holder);
        let mut last: Option<(u32, &str)> = None;
        let next = self.index.export(from.0, most, |holder, elements| {
            if holder == self.ghost {
                return;
            }
            let name = match last {
                Some((same, name)) if same == holder => Some(name),
                _ => named(holder).map(|endpoint| &*endpoint.name),
            };
            if let Some(name) = name {
                last = Some((holder, name));
                each(name, elements);
            }
        });
        next.map(ExportCursor)
    }

    /// Takes what an endpoint was believed to hold once as what it holds now, most recently used. A hint like any
    /// other: answers correct it. What is beyond the endpoint's capacity goes with the next request there, by when that
    /// capacity may be known better than at the start.
    pub fn remember_held(&mut self, id: EndpointId, elements: &[u64], run_bytes: u32) {
        if self.run_bytes == 0 {
            self.run_bytes = run_bytes;
        }
        let Some(holder) = self.endpoint(id).map(|endpoint| endpoint.holder) else { return };
        self.index.enter(holder, elements, false);
        // What anybody holds was seen by the pool.
        self.index.enter(self.ghost, elements, false);
        self.index.keep_budget();
    }
}

#[cfg(test)]
mod tests;
