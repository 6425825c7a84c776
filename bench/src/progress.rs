//! What a user sees while a run goes on: a bar on a terminal, a line now and then elsewhere. Always on stderr.

use crate::client::Answer;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Between two redraws of the bar.
const BAR_EVERY: Duration = Duration::from_millis(200);
/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Counted by the senders, read by the display.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    done: AtomicU64,
    errors: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
}

impl Counters {
    /// Counts one request; `None` for one without a complete answer.
    pub(crate) fn add(&self, answer: Option<&Answer>) {
        self.done.fetch_add(1, Ordering::Relaxed);
        match answer {
            Some(answer) => {
                self.prompt_tokens.fetch_add(answer.prompt_tokens, Ordering::Relaxed);
                self.cached_tokens.fetch_add(answer.cached_tokens, Ordering::Relaxed);
            }
            None => {
                self.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn state(&self) -> String {
        let prompt = self.prompt_tokens.load(Ordering::Relaxed).max(1);
        let hit = 100.0 * self.cached_tokens.load(Ordering::Relaxed) as f64 / prompt as f64;
        format!("hit rate so far {hit:4.1} %, errors {}", self.errors.load(Ordering::Relaxed))
    }
}

/// Shows `counters` until dropped; never ends by itself.
pub(crate) async fn show(counters: &Counters, label: &str, total: u64) -> std::convert::Infallible {
    if std::io::stderr().is_terminal() {
        bar(counters, label, total).await
    } else {
        lines(counters, label, total).await
    }
}

async fn bar(counters: &Counters, label: &str, total: u64) -> std::convert::Infallible {
    let style =
        ProgressStyle::with_template("{prefix:>13} [{bar:36}] {pos}/{len} requests  {elapsed}  {msg}")
            .expect("the template is constant and valid");
    let bar = ProgressBar::new(total).with_style(style).with_prefix(label.to_owned());
    loop {
        bar.set_position(counters.done.load(Ordering::Relaxed));
        bar.set_message(counters.state());
        tokio::time::sleep(BAR_EVERY).await;
    }
}

async fn lines(counters: &Counters, label: &str, total: u64) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(LINE_EVERY).await;
        let done = counters.done.load(Ordering::Relaxed);
        // A closed stderr is no reason to stop a measurement.
        let _ = writeln!(std::io::stderr(), "{label:>13}: {done}/{total} requests, {}", counters.state());
    }
}
