//! How far a request has come: one writer, one reader, the latest state only.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// A request's state as its client may see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Output tokens so far.
    pub(crate) produced: u32,
    /// Prompt tokens found in the cache.
    pub(crate) cached_tokens: u32,
    /// Whether no more will come.
    pub(crate) finished: bool,
}

/// The cell that the engine writes and one response reads.
#[derive(Debug, Default)]
pub(crate) struct ProgressCell {
    state: Mutex<(Progress, Option<Waker>)>,
}

impl ProgressCell {
    pub(crate) fn get(&self) -> Progress {
        self.state.lock().0
    }

    pub(crate) fn set(&self, progress: Progress) {
        let waker = {
            let mut state = self.state.lock();
            state.0 = progress;
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ready once more than `seen` tokens are there or the request is over.
    pub(crate) fn poll_past(&self, seen: u32, cx: &mut Context<'_>) -> Poll<Progress> {
        let mut state = self.state.lock();
        if state.0.produced > seen || state.0.finished {
            return Poll::Ready(state.0);
        }
        state.1 = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) async fn finished(&self) -> Progress {
        poll_fn(|cx| self.poll_past(u32::MAX, cx)).await
    }
}
