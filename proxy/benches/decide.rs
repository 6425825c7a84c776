//! CPU time of a decision on the gateway's own path: the walk over the body, the pool's decision, the end of the
//! request, and the record for `/v1/decisions`, each for short and long prompts among few and many endpoints.
//!
//! Run with `cargo bench -p larder-proxy --bench decide`. CPU time of this thread and not time by the wall, so that a
//! busy machine tells the same (it still slows caches down).
#![allow(missing_docs)]

use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_identity::{Api, HasherSettings, PromptChain, Secret};
use larder_proxy::decisions::{Decisions, KEPT};
use larder_proxy::metrics::Metrics;
use larder_proxy::pool::{EndpointPlan, Guards, Pool, Wanted};
use larder_proxy::upstream::{Limits, Upstream};
use larder_proxy::usage::Usage;
use larder_proxy::{breaker, retry};
use larder_routing::Settings;

/// Prompt sizes, in bytes: a question, a chat, a coding agent's context.
const SIZES: [usize; 3] = [1 << 10, 32 << 10, 400 << 10];
const ENDPOINTS: [usize; 3] = [16, 512, 2_000];
/// Sessions that come in turn.
const SESSIONS: usize = 256;
/// Bytes that all sessions begin with: a system prompt with tools.
const SHARED_BYTES: usize = 512;
/// Each figure goes on for so much CPU time.
const MEASURED: Duration = Duration::from_millis(400);

/// CPU time of this thread so far (Documentation/scheduler/sched-stats.rst of Linux).
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with schedstats");
    Duration::from_nanos(
        text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("nanoseconds come first"),
    )
}

/// Mean CPU time of `work`, whose argument counts up.
fn measure(mut work: impl FnMut(usize)) -> Duration {
    (0..SESSIONS).for_each(&mut work);
    let (mut count, began) = (SESSIONS, cpu());
    loop {
        for _ in 0..SESSIONS {
            work(count);
            count += 1;
        }
        let spent = cpu() - began;
        if spent >= MEASURED {
            return spent / (count - SESSIONS) as u32;
        }
    }
}

fn body(session: usize, bytes: usize) -> Vec<u8> {
    let mut text = "You are a helpful assistant with tools. ".repeat(SHARED_BYTES / 40);
    let mut word = session as u64 + 1;
    while text.len() < bytes {
        word = word.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31);
        text.push_str(&format!("{word:x} "));
    }
    text.truncate(bytes);
    let json = serde_json::json!({
        "model": "m", "stream": true, "messages": [{"role": "user", "content": text}]
    });
    json.to_string().into_bytes()
}

fn pool(endpoints: usize) -> Arc<Pool> {
    let second = Duration::from_secs(1);
    let plan = |number: usize| EndpointPlan {
        name: format!("10.0.{}.{}:8000", number / 256, number % 256),
        upstream: Upstream::new(
            format!("10.0.0.1:{number}"),
            Limits { connect: second, first_byte: second, idle: 1 },
        ),
        kv_tokens: Some(1_000_000),
        max_in_flight: None,
        cache_node: None,
    };
    let guards = Guards {
        breaker: breaker::Settings { failures: 5, open: second, open_max: second },
        retry: retry::Settings { ratio: 0.2, burst: 10.0 },
    };
    let plans = (0..endpoints).map(plan).collect();
    let metrics = Arc::new(Metrics::new().expect("the names are right"));
    let hashing = HasherSettings::new(Secret::derive(b"bench"));
    Pool::new(("m".to_owned(), Vec::new()), plans, hashing, (Settings::default(), guards, 1.0), metrics)
}

fn wanted<'a>(chain: &'a PromptChain, exclude: &'a [larder_routing::EndpointId]) -> Wanted<'a> {
    Wanted {
        prompt: Some(chain),
        session: Some(1),
        streamed: true,
        exclude,
        id: "0123456789abcdef0123456789abcdef",
    }
}

/// One request from its choice to its end, as the gateway makes them. `keep` takes the record.
fn turn(
    runtime: &tokio::runtime::Runtime,
    pool: &Arc<Pool>,
    chain: &PromptChain,
    decisions: Option<&Decisions>,
) {
    let avoided = pool.with_ejected(&[]);
    let in_flight = runtime
        .block_on(pool.admit(&wanted(chain, &avoided), Instant::now()))
        .expect("all endpoints are able");
    if let Some(decisions) = decisions {
        decisions.push(Arc::clone(in_flight.record()));
    }
    in_flight.first_token();
    let prompt_tokens = chain.bytes() / 4;
    in_flight.completed(Some(Usage { prompt_tokens, cached_tokens: Some(prompt_tokens) }));
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut out = std::io::stdout();
    let mut say = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    say("CPU microseconds of one request\nprompt     endpoints   walk  decide+end  record".to_owned());
    for bytes in SIZES {
        for endpoints in ENDPOINTS {
            let pool = pool(endpoints);
            let bodies: Vec<Vec<u8>> = (0..SESSIONS).map(|session| body(session, bytes)).collect();
            let walk = |session: usize| pool.hasher.walk(Api::Chat, b"", &bodies[session % SESSIONS]).prompt;
            let walked = measure(|count| {
                black_box(walk(count).expect("a chat"));
            });
            let chains: Vec<_> = (0..SESSIONS).map(|session| walk(session).expect("a chat")).collect();
            let decided = measure(|count| turn(&runtime, &pool, &chains[count % SESSIONS], None));
            let decisions = Decisions::default();
            (0..KEPT).for_each(|count| turn(&runtime, &pool, &chains[count % SESSIONS], Some(&decisions)));
            let recorded =
                measure(|count| turn(&runtime, &pool, &chains[count % SESSIONS], Some(&decisions)));
            let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
            say(format!(
                "{:>6} KB   {endpoints:>9} {:>6.1} {:>11.1} {:>+7.2}",
                bytes >> 10,
                micros(walked),
                micros(decided),
                micros(recorded) - micros(decided)
            ));
        }
    }
}
