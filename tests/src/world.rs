//! What most tests need: some mock engines, and a proxy before them.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::client;
use crate::program::Program;

/// The model that all mock engines serve.
pub const MODEL: &str = "mock";

/// How often something is looked at that must become true, and how many times: 20 s, for a busy machine.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOOKS_MAX: u32 = 2_000;

/// A mock engine.
#[derive(Debug)]
pub struct Engine {
    /// Its process.
    pub program: Program,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Engine {
    /// Starts one with the usual model and `args` beside, on a free port; it reports cached tokens.
    pub fn start(args: &[&str]) -> Self {
        let mut all = vec!["--model", MODEL, "--enable-prompt-tokens-details"];
        all.extend_from_slice(args);
        Self::start_with("127.0.0.1:0", &all)
    }

    /// Starts one with just these `args`.
    pub fn start_with(listen: &str, args: &[&str]) -> Self {
        let mut all = vec!["--listen", listen];
        all.extend_from_slice(args);
        let program = Program::start("larder-mock-engine", &all);
        let address = program.address("listening");
        Self { program, address }
    }

    /// Its name in metrics and answers.
    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// Its `/debug/stats`.
    pub async fn stats(&self) -> Value {
        client::get_json(self.address, "/debug/stats").await
    }

    /// One number of its `/debug/stats`.
    ///
    /// # Panics
    /// If there is no such number.
    pub async fn stat(&self, name: &str) -> u64 {
        self.stats().await[name].as_u64().unwrap_or_else(|| panic!("no number {name} in the engine's stats"))
    }

    /// Waits until a number of its `/debug/stats` is at least `value`.
    ///
    /// # Panics
    /// If it does not get there.
    pub async fn stat_reaches(&self, name: &str, value: u64) {
        let mut seen = 0;
        for _ in 0..LOOKS_MAX {
            seen = self.stat(name).await;
            if seen >= value {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        panic!("the engine's {name} is {seen} and should be {value} or more");
    }

    /// The requests that it saw, but for the proxy's own checks: of the last 64 of all.
    ///
    /// # Panics
    /// If the engine does not answer with a list.
    pub async fn requests(&self) -> Vec<Value> {
        let all = client::get_json(self.address, "/debug/requests").await;
        let all = all.as_array().expect("a list of requests");
        all.iter()
            .filter(|request| logged_values(request, "user-agent") != ["larder-health"])
            .cloned()
            .collect()
    }

    /// The last of these.
    ///
    /// # Panics
    /// If there is none.
    pub async fn last(&self) -> Value {
        self.requests().await.pop().expect("a request has come")
    }

    /// Waits until it takes no connections any more.
    ///
    /// # Panics
    /// If it goes on taking them.
    pub async fn refuses(&self) {
        for _ in 0..LOOKS_MAX {
            if TcpStream::connect(self.address).await.is_err() {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        panic!("the engine at {} still takes connections", self.address);
    }

    /// Stops it where it stands: its connections stay open, and nothing answers.
    pub fn freeze(&self) {
        self.program.signal("STOP");
    }

    /// Kills it, and waits until it is gone.
    pub async fn kill(&self) {
        self.program.signal("KILL");
        self.refuses().await;
    }

    /// Sets a fault.
    ///
    /// # Panics
    /// If the engine refuses it.
    pub async fn fault(&self, fault: Value) {
        let answer = client::post(self.address, "/debug/fault", &fault.to_string()).await;
        assert!(answer.status.is_success(), "fault {fault}: {} {}", answer.status, answer.text());
    }
}

/// All values of a header of a request in an engine's log.
pub fn logged_values(request: &Value, name: &str) -> Vec<String> {
    let fields = request["headers"].as_array().into_iter().flatten();
    let named = fields.filter(|field| field[0] == name);
    named.filter_map(|field| field[1].as_str().map(str::to_owned)).collect()
}

/// A proxy.
#[derive(Debug)]
pub struct Proxy {
    /// Its process.
    pub program: Program,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Its admin listener.
    pub admin: SocketAddr,
    config: PathBuf,
}

impl Proxy {
    /// Starts one with a pool of `engines`; `extra` is TOML put before the pools.
    pub async fn start(engines: &[&Engine], extra: &str) -> Self {
        let endpoints: Vec<SocketAddr> = engines.iter().map(|e| e.address).collect();
        Self::start_with(&config(&endpoints, extra)).await
    }

    /// Starts one with a whole config; waits until it is ready.
    pub async fn start_with(text: &str) -> Self {
        let proxy = Self::start_unready(text);
        client::wait_for(proxy.admin, "/readyz", http::StatusCode::OK).await;
        proxy
    }

    /// Starts one with a whole config and does not wait for more than its listeners.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_unready(text: &str) -> Self {
        let config = config_file(text);
        let path = config.to_str().expect("a temporary folder with a plain name");
        let program = Program::start("larder-proxy", &["--config", path]);
        let address = program.address("listening");
        let admin = program.address("admin");
        Self { program, address, admin, config }
    }

    /// Puts another config in the place of its file, in one step.
    ///
    /// # Panics
    /// If the temporary folder cannot be written.
    pub fn configure(&self, text: &str) {
        fs::rename(config_file(text), &self.config).expect("the temporary folder can be written");
    }

    /// The value of a metric, summed over its series whose labels contain all of `labels`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = client::get(self.admin, "/metrics").await.text();
        text.lines()
            .filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                    && labels.iter().all(|l| line.contains(l))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits until a metric has a value.
    ///
    /// # Panics
    /// If it does not get it.
    pub async fn metric_becomes(&self, name: &str, labels: &[&str], value: f64) {
        let mut seen = f64::NAN;
        for _ in 0..LOOKS_MAX {
            seen = self.metric(name, labels).await;
            if (seen - value).abs() < 1e-9 {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        panic!("{name}{labels:?} is {seen} and should be {value}");
    }

    /// Waits until nothing is held for anybody: no request in flight, no uncached token, no body.
    pub async fn becomes_idle(&self) {
        for name in
            ["larder_in_flight_requests", "larder_uncached_tokens_in_flight", "larder_buffered_body_bytes"]
        {
            self.metric_becomes(name, &[], 0.0).await;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.config);
    }
}

/// Writes a config to a file of its own.
///
/// # Panics
/// If the temporary folder cannot be written.
pub fn config_file(text: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("larder-test-{}-{n}.toml", std::process::id()));
    fs::write(&path, text).expect("the temporary folder can be written");
    path
}

/// A config with one pool of `endpoints`, listening on free ports; `extra` is TOML put before the pool.
pub fn config(endpoints: &[SocketAddr], extra: &str) -> String {
    config_of_pools(&[(&format!("model = \"{MODEL}\""), endpoints)], extra)
}

/// A config with a pool for each of `pools`: its keys in TOML, and its endpoints.
pub fn config_of_pools(pools: &[(&str, &[SocketAddr])], extra: &str) -> String {
    let mut text = format!("listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{extra}\n");
    if !extra.contains("[health]") {
        text.push_str("[health]\ninterval = \"100ms\"\n");
    }
    for (keys, endpoints) in pools {
        text.push_str(&format!("[[pool]]\n{keys}\n"));
        for endpoint in *endpoints {
            text.push_str(&format!("[[pool.endpoint]]\nurl = \"http://{endpoint}\"\n"));
        }
    }
    text
}

/// A chat body with `prompt` as its only message.
pub fn chat(prompt: &str, max_tokens: u32, stream: bool) -> String {
    chat_of(&[json!({"role": "user", "content": prompt})], max_tokens, stream)
}

/// A chat body of these messages.
pub fn chat_of(messages: &[Value], max_tokens: u32, stream: bool) -> String {
    let mut body = json!({
        "model": MODEL,
        "messages": messages,
        "max_tokens": max_tokens,
        "stream": stream,
    });
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    body.to_string()
}

/// Text of `bytes` bytes that looks like prose and differs by `seed` from its first word on.
pub fn prose(bytes: usize, seed: u64) -> String {
    let mut text = String::with_capacity(bytes + 32);
    let mut n = 0u64;
    while text.len() < bytes {
        let word = xxhash_rust::xxh3::xxh3_64_with_seed(&n.to_le_bytes(), seed);
        text.push_str(&format!("{word:016x} "));
        n += 1;
    }
    text.truncate(bytes);
    text
}
