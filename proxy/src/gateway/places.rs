//! How many requests may be in the proxy at one time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The places for requests.
#[derive(Debug)]
pub struct Places {
    limit: AtomicUsize,
    taken: AtomicUsize,
}

impl Places {
    /// So many places.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(limit), taken: AtomicUsize::new(0) })
    }

    /// Changes their number. Those who have one keep it.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Takes a place until the answer is dropped.
    ///
    /// # Errors
    /// All are taken: how many there are.
    pub fn take(self: &Arc<Self>) -> Result<Place, usize> {
        let limit = self.limit.load(Ordering::Relaxed);
        // Given back at once where it is one too many.
        let place = Place(Arc::clone(self));
        if self.taken.fetch_add(1, Ordering::Relaxed) < limit { Ok(place) } else { Err(limit) }
    }

    /// Places taken now.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

/// A place that is taken; dropped, it is free again.
#[derive(Debug)]
pub struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_there_are_and_all_come_back() {
        let places = Places::new(2);
        let first = places.take().unwrap();
        let _second = places.take().unwrap();
        assert_eq!(places.take().unwrap_err(), 2);
        drop(first);
        let third = places.take().unwrap();
        assert_eq!(places.taken(), 2);
        places.set_limit(1);
        drop(third);
        assert_eq!(places.take().unwrap_err(), 1);
        assert_eq!(places.taken(), 1);
    }
}
