//! Watches the engines: are they able to answer, how much KV do they hold, which models do they list.
//!
//! The checks use connections of their own and never count as load: a router whose health checks touched its load
//! counters sent everything to one engine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use parking_lot::Mutex;
use pingora::connectors::TransportConnector;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::mpsc;

use crate::gateway::splice::RequestBody;
use crate::pool::{Endpoint, ModelCard, Pool};
use crate::upstream::{Limits, Upstream};

/// Most bytes read of an answer to a check; vLLM's `/metrics` is about 100 KB.
const ANSWER_MAX_BYTES: usize = 8 << 20;
/// Models and metrics are asked for again after so many checks: they change rarely.
const DETAILS_EVERY: u64 = 15;

/// An endpoint whose exchange failed is checked so soon: a process that dies has closed its port by then ...
const DOUBTED_FIRST: Duration = Duration::from_millis(10);
/// ... and then after twice as long each time, up to this.
const DOUBTED_MAX: Duration = Duration::from_secs(1);

/// How engines are checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Time between two checks of an endpoint.
    pub interval: Duration,
    /// Longest wait for the answer to a check.
    pub timeout: Duration,
    /// Path of the check.
    pub path: String,
    /// Path of the engine's metrics; none: not asked for.
    pub metrics_path: Option<String>,
    /// Failed checks in a row after which an endpoint is not chosen any more.
    pub unhealthy_after: u32,
    /// Good checks in a row after which it is chosen again.
    pub healthy_after: u32,
}

/// An endpoint to check, and its pool.
type Watched = (Arc<Pool>, Arc<Endpoint>);

/// Checks all endpoints of all pools for as long as the process runs.
pub struct HealthChecks {
    settings: ArcSwap<Settings>,
    pools: Vec<Arc<Pool>>,
    added: mpsc::UnboundedSender<Watched>,
    arrivals: Mutex<Option<mpsc::UnboundedReceiver<Watched>>>,
}

impl HealthChecks {
    /// Checks of `pools`.
    pub fn new(settings: Settings, pools: Vec<Arc<Pool>>) -> Self {
        // Bounded by the operator's calls, and each is taken at once.
        let (added, arrivals) = mpsc::unbounded_channel();
        Self { settings: ArcSwap::from_pointee(settings), pools, added, arrivals: Mutex::new(Some(arrivals)) }
    }

    /// Goes by other settings from each endpoint's next check on.
    pub fn set(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// Checks `endpoint` too from now on, until it is removed from `pool`.
    pub fn watch(&self, pool: &Arc<Pool>, endpoint: &Arc<Endpoint>) {
        // Nobody hears it when the process ends.
        let _ = self.added.send((Arc::clone(pool), Arc::clone(endpoint)));
    }

    async fn watch_endpoint(self: Arc<Self>, pool: Arc<Pool>, endpoint: Arc<Endpoint>) {
        tokio::select! {
            () = self.check_regularly(&pool, &endpoint) => {}
            () = self.check_when_doubted(&pool, &endpoint) => {}
        }
    }

    /// Checks an endpoint whose exchange failed, soon and until it answers; those who wait are not sent there before.
    /// Whether it may be chosen is for the regular checks to say.
    async fn check_when_doubted(&self, pool: &Pool, endpoint: &Endpoint) {
        loop {
            endpoint.becomes_doubted().await;
            let mut pause = DOUBTED_FIRST;
            loop {
                tokio::time::sleep(pause).await;
                let settings = self.settings.load_full();
                // A connection of its own: an old one could be a remnant.
                if Probe::new(&settings, endpoint).get(&settings.path).await.is_ok() {
                    break;
                }
                pause = (2 * pause).min(DOUBTED_MAX);
            }
            pool.believe(endpoint);
        }
    }

    async fn check_regularly(&self, pool: &Arc<Pool>, endpoint: &Arc<Endpoint>) {
        let mut settings = self.settings.load_full();
        let mut probe = Probe::new(&settings, endpoint);
        let mut state = State::default();
        let mut timer = every(settings.interval);
        for round in 0u64.. {
            timer.tick().await;
            if endpoint.removed.load(Ordering::Relaxed) {
                return;
            }
            let now = self.settings.load_full();
            if !Arc::ptr_eq(&now, &settings) {
                if now.interval != settings.interval {
                    timer = every(now.interval);
                    timer.tick().await;
                }
                probe = Probe::new(&now, endpoint);
                settings = now;
            }
            let found = probe.get(&settings.path).await.map(|_| ());
            if let Err(why) = &found {
                tracing::debug!(endpoint = endpoint.name, why, "health check failed");
            }
            let was = state.healthy;
            state.note(found.is_ok(), &settings);
            if was && !state.healthy {
                let why = found.as_ref().err().map(String::as_str).unwrap_or_default();
                tracing::warn!(
                    pool = pool.model,
                    endpoint = endpoint.name,
                    why,
                    "endpoint is not chosen any more"
                );
            }
            pool.set_healthy(endpoint, state.healthy);
            if found.is_ok() && (round % DETAILS_EVERY == 0 || !was) {
                read_details((&settings, &mut probe), pool, endpoint, &mut state).await;
            }
            endpoint.checked.store(true, Ordering::Relaxed);
        }
    }
}

fn every(interval: Duration) -> tokio::time::Interval {
    let mut timer = tokio::time::interval(interval);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    timer
}

async fn read_details(
    (settings, probe): (&Settings, &mut Probe),
    pool: &Pool,
    endpoint: &Endpoint,
    state: &mut State,
) {
    match probe.get("/v1/models").await.and_then(|body| parse_models(&body)) {
        Ok(models) => endpoint.models.store(Arc::new(models)),
        Err(why) => tracing::debug!(endpoint = endpoint.name, why, "models not read"),
    }
    let Some(path) = &settings.metrics_path else { return };
    let text = match probe.get(path).await {
        Ok(body) => body,
        Err(why) => {
            tracing::debug!(endpoint = endpoint.name, why, "metrics not read");
            return;
        }
    };
    let seen = EngineMetrics::parse(&String::from_utf8_lossy(&text));
    if let Some(tokens) = seen.kv_tokens {
        pool.set_kv_tokens(endpoint, tokens);
    }
    if let (Some(before), Some(now)) = (state.prompt_tokens, seen.prompt_tokens)
        && now < before
    {
        pool.restarted(endpoint);
    }
    state.prompt_tokens = seen.prompt_tokens.or(state.prompt_tokens);
}

/// The state of one endpoint's checks.
#[derive(Debug)]
struct State {
    healthy: bool,
    in_a_row: u32,
    prompt_tokens: Option<f64>,
}

impl Default for State {
    fn default() -> Self {
        Self { healthy: true, in_a_row: 0, prompt_tokens: None }
    }
}

impl State {
    /// Counts a check; the state turns after enough in a row that say otherwise.
    fn note(&mut self, good: bool, settings: &Settings) {
        if good == self.healthy {
            self.in_a_row = 0;
            return;
        }
        self.in_a_row += 1;
        let enough = if good { settings.healthy_after } else { settings.unhealthy_after };
        if self.in_a_row >= enough {
            self.healthy = good;
            self.in_a_row = 0;
        }
    }
}

/// Asks one endpoint, on connections that serve nothing else.
struct Probe {
    upstream: Upstream,
    transport: TransportConnector,
    timeout: Duration,
}

impl Probe {
    fn new(settings: &Settings, endpoint: &Endpoint) -> Self {
        let limits = Limits { connect: settings.timeout, first_byte: settings.timeout, idle: 1 };
        Self {
            upstream: Upstream::new(endpoint.upstream.authority().to_owned(), limits),
            transport: TransportConnector::new(None),
            timeout: settings.timeout,
        }
    }

    async fn get(&mut self, path: &str) -> Result<Bytes, String> {
        let request = Request::get(path)
            .header(header::HOST, self.upstream.authority())
            .header(header::USER_AGENT, "larder-health")
            .body(RequestBody::default())
            .map_err(|e| e.to_string())?;
        let asking = async {
            let (response, connection) =
                self.upstream.send(&self.transport, request).await.map_err(|f| f.error.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES)
                .collect()
                .await
                .map_err(|e| format!("{path}: {e}"))?
                .to_bytes();
            self.upstream.keep(connection, false);
            if status == StatusCode::OK { Ok(body) } else { Err(format!("{path} answered {status}")) }
        };
        tokio::time::timeout(self.timeout, asking)
            .await
            .unwrap_or_else(|_| Err(format!("{path} did not answer within {} ms", self.timeout.as_millis())))
    }
}

fn parse_models(body: &[u8]) -> Result<Vec<ModelCard>, String> {
    let list: serde_json::Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let data = list.get("data").and_then(|d| d.as_array()).ok_or("`data` is not an array")?;
    Ok(data
        .iter()
        .filter_map(|card| Some(ModelCard { id: card.get("id")?.as_str()?.to_owned(), card: card.clone() }))
        .collect())
}

/// What is read from an engine's own metrics (vLLM's names).
#[derive(Debug, Default, PartialEq)]
struct EngineMetrics {
    /// KV capacity: `vllm:cache_config_info{block_size, num_gpu_blocks}`, summed over its engines.
    kv_tokens: Option<u64>,
    /// `vllm:prompt_tokens_total`: a counter that falls means a new process.
    prompt_tokens: Option<f64>,
}

impl EngineMetrics {
    fn parse(text: &str) -> Self {
        let mut seen = Self::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("vllm:cache_config_info{") {
                let label = |name: &str| label(rest, name).and_then(|v| v.parse::<u64>().ok());
                if let (Some(size), Some(blocks)) = (label("block_size"), label("num_gpu_blocks")) {
                    *seen.kv_tokens.get_or_insert(0) += size.saturating_mul(blocks);
                }
            } else if line.starts_with("vllm:prompt_tokens_total")
                && let Some(value) = line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok())
            {
                *seen.prompt_tokens.get_or_insert(0.0) += value;
            }
        }
        seen
    }
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then(|| value.trim_end_matches(|c| c != '"').trim_matches('"'))
    })
}

#[async_trait]
impl BackgroundService for SharedChecks {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut tasks = tokio::task::JoinSet::new();
        for pool in &self.0.pools {
            for endpoint in pool.endpoints().iter() {
                tasks.spawn(Arc::clone(&self.0).watch_endpoint(Arc::clone(pool), Arc::clone(endpoint)));
            }
        }
        let Some(mut arrivals) = self.0.arrivals.lock().take() else { return };
        loop {
            tokio::select! {
                Some((pool, endpoint)) = arrivals.recv() => {
                    tasks.spawn(Arc::clone(&self.0).watch_endpoint(pool, endpoint));
                }
                // Those of removed endpoints end.
                Some(_) = tasks.join_next() => {}
                // Dropping the set ends the checks.
                _ = shutdown.wait_for(|ending| *ending) => return,
            }
        }
    }
}

/// The checks as a service of the process.
pub struct SharedChecks(pub Arc<HealthChecks>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_metrics() {
        let text = "# HELP x\nvllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"1000\"} 1.0\n\
                    vllm:cache_config_info{engine=\"1\",num_gpu_blocks=\"500\",block_size=\"16\"} 1.0\n\
                    vllm:prompt_tokens_total{model_name=\"m\"} 12.0\n";
        let seen = EngineMetrics::parse(text);
        assert_eq!(seen, EngineMetrics { kv_tokens: Some(24_000), prompt_tokens: Some(12.0) });
        assert_eq!(EngineMetrics::parse("nothing here {"), EngineMetrics::default());
    }

    #[test]
    fn state_turns_after_enough_in_a_row() {
        let settings = Settings {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            path: "/health".into(),
            metrics_path: None,
            unhealthy_after: 3,
            healthy_after: 2,
        };
        let mut state = State::default();
        let mut seen = Vec::new();
        for good in [false, false, true, false, false, false, true, false, true, true] {
            state.note(good, &settings);
            seen.push(state.healthy);
        }
        assert_eq!(seen, [true, true, true, true, true, false, false, false, false, true]);
    }

    #[test]
    fn models() {
        let cards = parse_models(br#"{"data":[{"id":"a","x":1},{"no":"id"},{"id":"b"}]}"#).unwrap();
        assert_eq!(cards.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!(parse_models(b"{}").is_err());
        assert!(parse_models(b"<html>").is_err());
    }
}
