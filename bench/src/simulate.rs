//! `larder-bench simulate`: routing policies on public traces in simulated time, deterministic for each seed.
//!
//! `workload` interns a trace's blocks; `cache` is an exact LRU over them; `cluster` the replicas, the warehouse and its
//! links; `router` the rules that are compared, the product's own among them through its very crate; `world` the event
//! loop; [`point`] what one figure is made of, with all defaults; `standard` the list of published workloads; `agree`
//! what a replay is compared with;
//! [`report`] and `plot` the presentation.

pub(crate) mod agree;
mod cache;
mod cluster;
mod plot;
pub mod point;
pub mod report;
mod router;
mod standard;
mod workload;
mod world;

use crate::cli::SimulateArgs;
use crate::error::Error;
use crate::trace::{Format, Trace};
use clap::ValueEnum;
use point::{Figures, Point, Spec};
use router::RouterSetup;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use workload::Workload;

/// Routing rules, by the names in results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Name {
    /// The proxy's policy: shadow price and hit-first queue
    Larder,
    /// The proxy's policy without its queue
    LarderPriceOnly,
    /// One replica after the other
    RoundRobin,
    /// Session hashed onto the replicas
    SessionHash,
    /// The proxy's lowest expected time to first token
    MinTtft,
    /// Consistent hashing of the first block with bounded loads (KubeAI)
    Chwbl,
    /// SGLang model gateway, cache_aware
    Sglang,
    /// NVIDIA Dynamo's KV router
    Dynamo,
    /// llm-d's precise prefix scorer with load scorers
    Llmd,
    /// Reference: one pooled LRU cache of the cluster's size, impossible for a router
    PooledLru,
    /// Reference: a pooled cache that forgets nothing
    Infinite,
}

impl Name {
    /// The name in options and results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Larder => "larder",
            Self::LarderPriceOnly => "larder_price_only",
            Self::RoundRobin => "round_robin",
            Self::SessionHash => "session_hash",
            Self::MinTtft => "min_ttft",
            Self::Chwbl => "chwbl",
            Self::Sglang => "sglang",
            Self::Dynamo => "dynamo",
            Self::Llmd => "llmd",
            Self::PooledLru => "pooled_lru",
            Self::Infinite => "infinite",
        }
    }
}

/// What policies know of the replicas' caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// Their capacity is known
    Exact,
    /// Capacities are told wrong by -20, 0 and +20 % in turn; only answers' cached tokens correct that
    Estimated,
}

/// Links to the warehouse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// One for each replica
    Own,
    /// One for all
    Shared,
}

/// How a replica prefills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefillKind {
    /// One request after the other
    Fcfs,
    /// Steps whose token budget all running requests share
    Chunked,
}

/// What running requests mean to a replica's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// Nothing: a plain LRU, looked up and aged at dispatch (the published simulations)
    Lru,
    /// Looked up when a prefill begins; what runs cannot be evicted, and what it leaves ages from its end, as in vLLM;
    /// but no request waits for memory
    Pinned,
    /// The same, and a request waits until its blocks fit beside those that run
    Admission,
}

/// Models with physical figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
pub enum Model {
    /// Llama 3 70B on 8 H100: 320 KB of KV a token, 8,000 prefill tokens/s, 1.28 M KV tokens
    #[value(name = "llama-70b")]
    #[serde(rename = "llama-70b")]
    Llama70b,
    /// Llama 3 8B on one H100: 128 KB of KV a token, 40,000 prefill tokens/s, 437,000 KV tokens
    #[value(name = "llama-8b")]
    #[serde(rename = "llama-8b")]
    Llama8b,
}

/// One run to be made: a point's number, its policy and view, a seed.
struct Task {
    row: usize,
    seed: u64,
}

/// One line of the results: a workload and cluster, a policy and what it knows.
struct Row {
    spec: Spec,
    policy: Name,
    view: View,
}

impl Row {
    fn router(&self, args: &SimulateArgs, seed: u64) -> RouterSetup {
        RouterSetup {
            policy: self.policy,
            view: self.view,
            hold_limit_s: args.hold_limit,
            max_held: args.max_held as usize,
            seed,
        }
    }
}

/// Runs `simulate`; the table goes to `out`, progress to stderr.
///
/// # Errors
/// [`Error::Usage`] for options that do not fit, [`Error::Trace`] for a malformed trace, [`Error::File`] and
/// [`Error::Replay`] if results cannot be written.
pub fn command(args: &SimulateArgs, out: &mut dyn Write) -> Result<(), Error> {
    if let Some(path) = &args.plot {
        crate::plot::kind(path)?;
    }
    let (works, specs) = if args.standard || args.full { standard::points(args)? } else { single(args)? };
    let rows = rows(args, specs);
    let figures = run(args, &works, &rows)?;
    let seeds = seeds(args);
    let points: Vec<Point> = rows
        .iter()
        .zip(figures.chunks(seeds as usize))
        .map(|(row, figures)| Point::new(&works[row.spec.work], row.spec, row.policy, row.view, figures))
        .collect();
    if let Some(path) = &args.json {
        report::write_json(path, args, &points)?;
    }
    out.write_all(report::table(&points).as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Error::Replay(format!("cannot write to standard output: {error}")))?;
    match &args.plot {
        Some(path) => plot::draw(path, &points),
        None => Ok(()),
    }
}

fn seeds(args: &SimulateArgs) -> u64 {
    // What is published with three orders of sessions is not done again with one.
    if args.full { args.seeds.max(3) } else { args.seeds }
}

/// The one point that the options describe.
fn single(args: &SimulateArgs) -> Result<(Vec<Workload>, Vec<Spec>), Error> {
    let ([path], [format]) = (args.trace.as_slice(), args.format.as_slice()) else {
        return Err(Error::Usage("give one --trace and one --format, or --standard".into()));
    };
    let trace = read(args, path, *format, args.to_s)?;
    let default = match args.model {
        Some(_) => point::MODEL_BLOCK_TOKENS.max(trace.block_tokens),
        None => trace.block_tokens,
    };
    let work = Workload::new(&trace, args.block_tokens.unwrap_or(default))?;
    let spec = Spec::single(args, &work)?;
    Ok((vec![work], vec![spec]))
}

/// Reads a trace and cuts an open loop to the asked time.
fn read(
    args: &SimulateArgs,
    path: &std::path::Path,
    format: Format,
    to_s: Option<f64>,
) -> Result<Trace, Error> {
    let mut trace = Trace::read(path, format, args.trace_block_tokens)?;
    if format == Format::Agentic {
        if args.from_s > 0.0 || args.to_s.is_some() {
            return Err(Error::Usage(
                "--from-s and --to-s: agentic sessions have no times of arrival".into(),
            ));
        }
        return Ok(trace);
    }
    let (from_s, to_s) = (args.from_s, to_s.unwrap_or(f64::INFINITY));
    for session in &mut trace.sessions {
        session.requests.retain(|request| (from_s..to_s).contains(&request.at_s));
        let first_s = session.requests.first().map_or(0.0, |request| request.at_s);
        session.requests.iter_mut().for_each(|request| request.at_s -= first_s);
    }
    if trace.requests().next().is_none() {
        return Err(Error::Usage(format!(
            "{}: no request arrives between {from_s} and {to_s} s",
            trace.name
        )));
    }
    Ok(trace)
}

fn rows(args: &SimulateArgs, specs: Vec<Spec>) -> Vec<Row> {
    let policies = if args.policy.is_empty() { Name::value_variants() } else { &args.policy };
    let views = if args.full { View::value_variants() } else { std::slice::from_ref(&args.view) };
    let mut rows = Vec::new();
    for spec in specs {
        for &policy in policies {
            rows.extend(views.iter().map(|&view| Row { spec, policy, view }));
        }
    }
    rows
}

/// All runs on a few threads; the figures lie by row and then by seed.
fn run(args: &SimulateArgs, works: &[Workload], rows: &[Row]) -> Result<Vec<Figures>, Error> {
    let tasks: Vec<Task> =
        (0..rows.len()).flat_map(|row| (1..=seeds(args)).map(move |seed| Task { row, seed })).collect();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results: Vec<Mutex<Option<Result<Figures, Error>>>> =
        tasks.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..args.threads.min(tasks.len() as u64) {
            scope.spawn(|| {
                while let Some((number, task)) = claim(&next, &tasks) {
                    let began = Instant::now();
                    let row = &rows[task.row];
                    let work = &works[row.spec.work];
                    let result = row.spec.run(work, row.router(args, task.seed));
                    let count = done.fetch_add(1, Ordering::Relaxed) + 1;
                    progress(count, tasks.len(), work, row, task.seed, &result, began);
                    if let Ok(mut slot) = results[number].lock() {
                        *slot = Some(result);
                    }
                }
            });
        }
    });
    let lost = || Error::Replay("a simulation thread died; the message above says why".into());
    results.into_iter().map(|slot| slot.into_inner().ok().flatten().ok_or_else(lost)?).collect()
}

fn claim<'a>(next: &AtomicUsize, tasks: &'a [Task]) -> Option<(usize, &'a Task)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    tasks.get(number).map(|task| (number, task))
}

fn progress(
    count: usize,
    of: usize,
    work: &Workload,
    row: &Row,
    seed: u64,
    result: &Result<Figures, Error>,
    began: Instant,
) {
    let outcome = match result {
        Ok(figures) => {
            format!("hit {:.1} %, TTFT {:.2} s", 100.0 * figures.hit_rate, figures.ttft_mean_s)
        }
        Err(error) => error.to_string(),
    };
    // A closed stderr is no reason to stop.
    let _ = writeln!(
        std::io::stderr(),
        "[{count}/{of}] {}, {} {} seed {seed}: {outcome} ({:.1} s)",
        row.spec.describe(work),
        row.policy.name(),
        row.view.name(),
        began.elapsed().as_secs_f64()
    );
}

impl View {
    /// The name in options and results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Estimated => "estimated",
        }
    }
}
