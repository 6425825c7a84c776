//! A doubly linked list over the block numbers, so that a block leaves the middle of the queue in constant time.

/// The free blocks in eviction order, head first.
#[derive(Debug)]
pub(super) struct FreeQueue {
    /// `next[id]` and `previous[id]`; the sentinel is the entry past the last block.
    next: Vec<u32>,
    previous: Vec<u32>,
    len: u32,
}

impl FreeQueue {
    /// All of `0..blocks`, lowest first.
    pub(super) fn full(blocks: u32) -> Self {
        let around = blocks + 1;
        Self {
            next: (0..around).map(|id| (id + 1) % around).collect(),
            previous: (0..around).map(|id| (id + around - 1) % around).collect(),
            len: blocks,
        }
    }

    fn sentinel(&self) -> u32 {
        self.next.len() as u32 - 1
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn pop_front(&mut self) -> Option<u32> {
        let id = self.next[self.sentinel() as usize];
        if id == self.sentinel() {
            return None;
        }
        self.remove(id);
        Some(id)
    }

    /// `id` must not be in the queue.
    pub(super) fn push_back(&mut self, id: u32) {
        let sentinel = self.sentinel();
        let last = self.previous[sentinel as usize];
        self.next[last as usize] = id;
        self.previous[id as usize] = last;
        self.next[id as usize] = sentinel;
        self.previous[sentinel as usize] = id;
        self.len += 1;
    }

    /// `id` must be in the queue.
    pub(super) fn remove(&mut self, id: u32) {
        let (before, after) = (self.previous[id as usize], self.next[id as usize]);
        self.next[before as usize] = after;
        self.previous[after as usize] = before;
        self.len -= 1;
    }

    /// The queue, head first; bounded by the number of blocks even if the links were wrong.
    pub(super) fn ids(&self) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut id = self.next[self.sentinel() as usize];
        while id != self.sentinel() && ids.len() < self.next.len() {
            ids.push(id);
            id = self.next[id as usize];
        }
        ids
    }
}
