//! What must be as it was.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Method, Request};
use larder_tests::client::{self, Framing, json_request};
use larder_tests::world::{Proxy, chat};
use serde_json::{Value, json};

use crate::faults::Fleet;
use crate::ledger::Ledger;

/// How often something is looked at that must become so, and how long between looks: 30 s.
const LOOKS_MAX: u32 = 300;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Resident memory that may come after the warm-up: what an allocator keeps in pieces.
const GROWTH_MAX_BYTES: u64 = 16 << 20;

/// What the proxy holds while nothing is asked of it and it has no endpoints.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Holdings {
    in_flight: f64,
    uncached_tokens: f64,
    body_bytes: f64,
    held: f64,
    client_connections: f64,
    index_bytes: f64,
    index_elements: f64,
    descriptors: usize,
    threads: usize,
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "in flight {}, uncached tokens {}, body bytes {}, held {}, connections {}, index {} bytes in {} elements, \
             {} descriptors, {} threads",
            self.in_flight,
            self.uncached_tokens,
            self.body_bytes,
            self.held,
            self.client_connections,
            self.index_bytes,
            self.index_elements,
            self.descriptors,
            self.threads
        )
    }
}

async fn look(proxy: &Proxy) -> Holdings {
    let pid = proxy.program.pid();
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
    Holdings {
        in_flight: proxy.metric("larder_in_flight_requests", &[]).await.abs(),
        uncached_tokens: proxy.metric("larder_uncached_tokens_in_flight", &[]).await,
        body_bytes: proxy.metric("larder_buffered_body_bytes", &[]).await,
        held: proxy.metric("larder_held_requests", &[]).await,
        client_connections: proxy.metric("larder_client_connections", &[]).await,
        index_bytes: proxy.metric("larder_index_bytes", &[]).await,
        index_elements: proxy.metric("larder_index_elements", &[]).await,
        descriptors: count("fd"),
        threads: count("task"),
    }
}

/// What the proxy holds once that does not change for a second, or is what it was before.
pub(crate) async fn settled(proxy: &Proxy, before: Option<&Holdings>) -> Holdings {
    let (mut last, mut same) = (look(proxy).await, 0);
    for _ in 0..LOOKS_MAX {
        if before.is_some_and(|before| *before == last) || (before.is_none() && same >= 10) {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let now = look(proxy).await;
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

/// Lets the proxy make what it makes once: threads, connections, buffers.
pub(crate) async fn warm(proxy: &Proxy, clients: u64) {
    let asking: Vec<_> = (0..clients * 4)
        .map(|n| {
            let request = json_request("/v1/chat/completions", &chat(&format!("warm {n}"), 8, n % 2 == 0));
            tokio::spawn(client::send(proxy.address, request, Framing::ALL[n as usize % 4]))
        })
        .collect();
    for one in asking {
        let answer = one.await.expect("a whole answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

async fn call(proxy: &Proxy, method: Method, path: &str, body: &Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = Request::builder().method(method).uri(path).body(body.into()).expect("a request");
    let answer = client::send(proxy.admin, request, Framing::Length).await;
    assert!(answer.status.is_success(), "{path}: {} {}", answer.status, answer.text());
}

/// Takes all endpoints out: with them must go all that is known of them.
pub(crate) async fn remove_all(proxy: &Proxy, engines: &[SocketAddr]) {
    for engine in engines {
        call(proxy, Method::DELETE, &format!("/v1/endpoints/{engine}"), &Value::Null).await;
    }
}

/// Puts them back.
pub(crate) async fn add_all(proxy: &Proxy, engines: &[SocketAddr]) {
    for engine in engines {
        call(proxy, Method::POST, "/v1/endpoints", &json!({"url": format!("http://{engine}")})).await;
    }
}

/// Nobody works for a client that is gone: neither the proxy nor an engine.
pub(crate) async fn everyone_is_idle(proxy: &Proxy, fleet: &Fleet, ledger: &Ledger) {
    let mut seen = String::new();
    for _ in 0..LOOKS_MAX {
        let now = look(proxy).await;
        let mut busy =
            now.in_flight + now.uncached_tokens + now.body_bytes + now.held + now.client_connections;
        seen = now.to_string();
        for engine in fleet.engines() {
            let stats = engine.stats().await;
            for key in ["running", "waiting"] {
                busy += stats[key].as_f64().unwrap_or(1.0);
                seen.push_str(&format!("; {} {key} {}", engine.address, stats[key]));
            }
        }
        if busy == 0.0 {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    ledger.complain(format!("somebody is still at work: {seen}"));
}

/// After the warm-up, memory does not grow any more.
pub(crate) fn memory_is_flat(resident: &[u64], warm_up: f64, ledger: &Ledger) {
    let warm = ((resident.len() as f64 * warm_up) as usize).min(resident.len().saturating_sub(1));
    let (early, late) = resident.split_at(warm);
    let mean = |part: &[u64]| part.iter().sum::<u64>() / part.len().max(1) as u64;
    let third = (late.len() / 3).max(1);
    let (first, last) =
        (mean(&late[..third.min(late.len())]), mean(&late[late.len().saturating_sub(third)..]));
    let most = resident.iter().max().copied().unwrap_or_default();
    println!(
        "resident: {} MiB when warm, {} MiB in the last third, {} MiB at most (warm-up {} s of {})",
        first >> 20,
        last >> 20,
        most >> 20,
        early.len(),
        resident.len()
    );
    if last > first + GROWTH_MAX_BYTES {
        ledger.complain(format!("resident memory grew from {first} to {last} bytes"));
    }
}

/// A soak in which nothing happens proves nothing.
pub(crate) fn enough_happened(ledger: &Ledger, fleet: &Fleet) {
    let whole = ledger.whole.load(Ordering::Relaxed);
    if whole < ledger.sent() / 2 {
        ledger.complain(format!("only {whole} of {} answers were whole", ledger.sent()));
    }
    let some =
        [&ledger.aborted, &ledger.refused, &ledger.broken].iter().all(|n| n.load(Ordering::Relaxed) > 0);
    if !some || !fleet.all_kinds() {
        ledger.complain(format!("not everything happened: {ledger}; {}", fleet.told()));
    }
}
