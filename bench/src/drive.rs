//! Sending a trace: K live sessions that wait for their answers (closed loop), or arrivals by the clock (open loop).

use crate::client::{Answer, Client};
use crate::fleet::MODEL;
use crate::order::SplitMix;
use crate::plan::Plan;
use crate::progress::Counters;
use crate::scale::THINK_CAP_S;
use crate::trace::Format;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Requests of an open loop on their way at once. Each holds a connection through the proxy, so two of this machine's
/// file descriptors here; above it the cluster is hopelessly overloaded and the replay says so.
const IN_FLIGHT_MAX: usize = 20_000;
/// Error texts kept to be shown; the number of errors is exact.
const ERROR_SAMPLES: usize = 5;

/// What one run gave.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Complete answers.
    pub(crate) answers: Vec<Answer>,
    /// Requests without a complete answer.
    pub(crate) errors: u64,
    /// The first of their reasons.
    pub(crate) samples: Vec<String>,
    /// Whether the budget ended before the trace did.
    pub(crate) truncated: bool,
    /// From the first request's turn until the last answer, wall time.
    pub(crate) wall: Duration,
}

impl Outcome {
    fn add(&mut self, answer: Result<Answer, String>) {
        match answer {
            Ok(answer) => self.answers.push(answer),
            Err(reason) => self.add_error(reason),
        }
    }

    /// Counts one more error.
    pub(crate) fn add_error(&mut self, reason: String) {
        self.errors += 1;
        if self.samples.len() < ERROR_SAMPLES {
            self.samples.push(reason);
        }
    }

    fn merge(&mut self, other: Self) {
        self.answers.extend(other.answers);
        self.errors += other.errors;
        self.samples.extend(other.samples);
        self.samples.truncate(ERROR_SAMPLES);
    }
}

struct Shared {
    plan: Arc<Plan>,
    client: Client,
    url: String,
    deadline: Instant,
    counters: Arc<Counters>,
    next_session: AtomicUsize,
    truncated: AtomicBool,
}

/// Replays the plan's trace against `url` and waits for all answers.
pub(crate) async fn replay(
    plan: Arc<Plan>,
    client: Client,
    url: String,
    counters: Arc<Counters>,
) -> Result<Outcome, String> {
    let start = Instant::now();
    let shared = Arc::new(Shared {
        deadline: start + Duration::from_secs_f64(plan.scale.duration_s),
        plan,
        client,
        url,
        counters,
        next_session: AtomicUsize::new(0),
        truncated: AtomicBool::new(false),
    });
    let mut outcome = match shared.plan.trace.format {
        Format::Agentic => closed_loop(&shared, start).await?,
        Format::Mooncake => open_loop(&shared, start).await?,
    };
    outcome.wall = start.elapsed();
    outcome.truncated = shared.truncated.load(Ordering::Relaxed);
    Ok(outcome)
}

/// Draws when the first sessions start, as shares of the think cap.
pub(crate) fn starts(seed: u64) -> SplitMix {
    SplitMix::new(seed ^ 0x5eed)
}

/// K slots, started one after the other within one think cap: live sessions of a fleet are not in step.
async fn closed_loop(shared: &Arc<Shared>, start: Instant) -> Result<Outcome, String> {
    let mut starts = starts(shared.plan.scale.seed);
    let mut slots = JoinSet::new();
    for _ in 0..shared.plan.scale.live_sessions {
        let begin = start + shared.wall(starts.unit() * THINK_CAP_S);
        slots.spawn(live_slot(Arc::clone(shared), begin));
    }
    let mut outcome = Outcome::default();
    while let Some(slot) = slots.join_next().await {
        outcome.merge(slot.map_err(|error| format!("a session's task failed: {error}"))?);
    }
    Ok(outcome)
}

/// One session after the other, each request a think time after the answer before it.
async fn live_slot(shared: Arc<Shared>, begin: Instant) -> Outcome {
    let mut outcome = Outcome::default();
    sleep_until(begin.min(shared.deadline)).await;
    loop {
        let turn = shared.next_session.fetch_add(1, Ordering::Relaxed);
        let Some(session) = shared.plan.trace.sessions.get(turn) else { return outcome };
        for (index, request) in session.requests.iter().enumerate() {
            let due = Instant::now() + shared.wall(request.think_s.min(THINK_CAP_S));
            // No timer for no wait: it would add up to a millisecond, which is a second of trace time.
            if request.think_s > 0.0 {
                sleep_until(due.min(shared.deadline)).await;
            }
            if Instant::now() >= shared.deadline {
                shared.truncated.store(true, Ordering::Relaxed);
                return outcome;
            }
            outcome.add(shared.send(turn, index, Instant::now()).await);
        }
    }
}

/// Requests at their recorded times, whether or not earlier ones were answered.
async fn open_loop(shared: &Arc<Shared>, start: Instant) -> Result<Outcome, String> {
    let mut flying: JoinSet<Result<Answer, String>> = JoinSet::new();
    let mut outcome = Outcome::default();
    for (turn, session) in shared.plan.trace.sessions.iter().enumerate() {
        for (index, request) in session.requests.iter().enumerate() {
            let due = start + shared.wall(request.at_s);
            sleep_until(due.min(shared.deadline)).await;
            if due >= shared.deadline {
                shared.truncated.store(true, Ordering::Relaxed);
                return finish(flying, outcome).await;
            }
            while let Some(done) = flying.try_join_next() {
                outcome.add(done.map_err(|error| format!("a request's task failed: {error}"))?);
            }
            if flying.len() >= IN_FLIGHT_MAX {
                return Err(format!(
                    "more than {IN_FLIGHT_MAX} requests wait for an answer: the load is far too high"
                ));
            }
            let shared = Arc::clone(shared);
            // Measured from when it was due: a late sender must not hide a queue.
            flying.spawn(async move { shared.send(turn, index, due).await });
        }
    }
    finish(flying, outcome).await
}

async fn finish(
    mut flying: JoinSet<Result<Answer, String>>,
    mut outcome: Outcome,
) -> Result<Outcome, String> {
    while let Some(done) = flying.join_next().await {
        outcome.add(done.map_err(|error| format!("a request's task failed: {error}"))?);
    }
    Ok(outcome)
}

impl Shared {
    /// Wall time of so many trace seconds.
    fn wall(&self, trace_s: f64) -> Duration {
        Duration::from_secs_f64(trace_s / self.plan.scale.time_scale)
    }

    async fn send(&self, turn: usize, index: usize, due: Instant) -> Result<Answer, String> {
        let session = &self.plan.trace.sessions[turn];
        let output = session.requests[index].output_tokens.min(self.plan.scale.output_tokens);
        let body = self.plan.prose.body(session, index, MODEL, output);
        let answer = self.client.chat(&self.url, &session.id, body, due.into_std()).await;
        self.counters.add(answer.as_ref().ok());
        answer
    }
}

#[cfg(test)]
mod tests;
