//! What is on disk, where, and what continues what. A chunk never stays without the one it continues: whoever goes takes
//! all that continue it along, the last first.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use super::port::{Chunk, Location, WriteId};

/// A chunk's number in the catalog; given again once it is gone.
pub(super) type Id = u32;

/// A chunk on disk, or on its way there.
#[derive(Debug)]
pub(super) struct Entry<K> {
    pub(super) name: K,
    pub(super) chunk: Chunk,
    pub(super) at: Location,
    /// Being written; it cannot be read yet.
    pub(super) write: Option<WriteId>,
    pub(super) parent: Option<Id>,
    /// The first of those that continue it; the others follow by `next`.
    pub(super) child: Option<Id>,
    /// Neighbours among those with the same parent.
    pub(super) previous: Option<Id>,
    pub(super) next: Option<Id>,
}

#[derive(Debug)]
pub(super) struct Catalog<K> {
    pub(super) names: HashMap<K, Id>,
    entries: Vec<Option<Entry<K>>>,
    free: BTreeSet<Id>,
    /// Chunks found at the start whose parent was not found yet: the parent's name, and who waits for it.
    orphans: HashMap<K, Vec<K>>,
}

impl<K: Clone + Eq + Hash> Catalog<K> {
    pub(super) fn new() -> Self {
        Self { names: HashMap::new(), entries: Vec::new(), free: BTreeSet::new(), orphans: HashMap::new() }
    }

    pub(super) fn id(&self, name: &K) -> Option<Id> {
        self.names.get(name).copied()
    }

    pub(super) fn get(&self, id: Id) -> Option<&Entry<K>> {
        self.entries.get(id as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Entry<K>> {
        self.entries.get_mut(id as usize)?.as_mut()
    }

    /// A chunk enters. Its name must not be there.
    pub(super) fn insert(&mut self, name: K, chunk: Chunk, at: Location, write: Option<WriteId>) -> Id {
        let entry = Entry {
            name: name.clone(),
            chunk,
            at,
            write,
            parent: None,
            child: None,
            previous: None,
            next: None,
        };
        let id = match self.free.pop_first() {
            Some(id) => {
                self.entries[id as usize] = Some(entry);
                id
            }
            None => {
                self.entries.push(Some(entry));
                Id::try_from(self.entries.len() - 1).expect("memory ends before four thousand million chunks")
            }
        };
        let before = self.names.insert(name.clone(), id);
        debug_assert!(before.is_none(), "a name is in the catalog once");
        for orphan in self.orphans.remove(&name).unwrap_or_default() {
            // It may be gone meanwhile, and its number another's.
            self.id(&orphan).into_iter().for_each(|orphan| self.link(orphan, id));
        }
        id
    }

    /// Notes whom a chunk continues, now or when that one is found.
    pub(super) fn adopt(&mut self, id: Id, parent: &K) {
        match self.id(parent) {
            Some(parent) => self.link(id, parent),
            None => {
                let name = self.get(id).map(|entry| entry.name.clone());
                self.orphans.entry(parent.clone()).or_default().extend(name);
            }
        }
    }

    /// Nobody waits for parents any more: what was not found is not there.
    pub(super) fn forget_orphans(&mut self) {
        self.orphans = HashMap::new();
    }

    /// Notes that a chunk continues another, if it is not known to continue any and ends later.
    pub(super) fn link(&mut self, id: Id, parent: Id) {
        let (Some(child), Some(before)) = (self.get(id), self.get(parent)) else { return };
        if child.parent.is_some() || before.chunk.end >= child.chunk.end {
            return;
        }
        let first = before.child;
        if let Some(child) = self.get_mut(id) {
            (child.parent, child.next) = (Some(parent), first);
        }
        if let Some(first) = first.and_then(|first| self.get_mut(first)) {
            first.previous = Some(id);
        }
        if let Some(before) = self.get_mut(parent) {
            before.child = Some(id);
        }
    }

    /// These and all that continue them, in an order in which each goes before what it continues.
    pub(super) fn with_descendants(&self, ids: impl IntoIterator<Item = Id>) -> Vec<Id> {
        let mut found = BTreeSet::new();
        let mut open: Vec<Id> = ids.into_iter().collect();
        while let Some(id) = open.pop() {
            let Some(entry) = self.get(id) else { continue };
            if found.insert((std::cmp::Reverse(entry.chunk.end), id)) {
                open.extend(self.children(entry));
            }
        }
        found.into_iter().map(|(_, id)| id).collect()
    }

    pub(super) fn children<'a>(&'a self, entry: &'a Entry<K>) -> impl Iterator<Item = Id> + 'a {
        std::iter::successors(entry.child, |id| self.get(*id).and_then(|child| child.next))
    }

    /// A chunk that nothing continues is gone.
    pub(super) fn remove(&mut self, id: Id) -> Option<Entry<K>> {
        let gone = self.entries.get_mut(id as usize)?.take()?;
        assert!(gone.child.is_none(), "never a parent before its child");
        self.names.remove(&gone.name);
        self.free.insert(id);
        match (gone.previous, gone.parent) {
            (Some(previous), _) => self.get_mut(previous).into_iter().for_each(|it| it.next = gone.next),
            (None, Some(parent)) => self.get_mut(parent).into_iter().for_each(|it| it.child = gone.next),
            (None, None) => {}
        }
        if let Some(next) = gone.next.and_then(|next| self.get_mut(next)) {
            next.previous = gone.previous;
        }
        Some(gone)
    }

    /// Every chunk, in the order of numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &Entry<K>)> {
        (0..).zip(&self.entries).filter_map(|(id, entry)| Some((id, entry.as_ref()?)))
    }
}
