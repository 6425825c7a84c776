//! What most tests need: some mock engines, and a proxy before them.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::client;
use crate::program::Program;

/// The model that all mock engines serve.
pub const MODEL: &str = "mock";

/// A mock engine.
#[derive(Debug)]
pub struct Engine {
    /// Its process.
    pub program: Program,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Engine {
    /// Starts one with the usual model and `args` beside.
    pub fn start(args: &[&str]) -> Self {
        let mut all = vec!["--listen", "127.0.0.1:0", "--model", MODEL, "--enable-prompt-tokens-details"];
        all.extend_from_slice(args);
        let program = Program::start("larder-mock-engine", &all);
        let address = program.address("listening");
        Self { program, address }
    }

    /// Its `/debug/stats`.
    pub async fn stats(&self) -> serde_json::Value {
        client::get_json(self.address, "/debug/stats").await
    }

    /// The last request that it saw, from `/debug/last`.
    pub async fn last(&self) -> serde_json::Value {
        client::get_json(self.address, "/debug/last").await
    }

    /// Sets a fault.
    ///
    /// # Panics
    /// If the engine refuses it.
    pub async fn fault(&self, fault: serde_json::Value) {
        let answer = client::post(self.address, "/debug/fault", &fault.to_string()).await;
        assert!(answer.status.is_success(), "fault {fault}: {} {}", answer.status, answer.text());
    }
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
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let config = std::env::temp_dir().join(format!("larder-test-{}-{n}.toml", std::process::id()));
        fs::write(&config, text).expect("the temporary folder can be written");
        let path = config.to_str().expect("a temporary folder with a plain name");
        let program = Program::start("larder-proxy", &["--config", path]);
        let address = program.address("listening");
        let admin = program.address("admin");
        Self { program, address, admin, config }
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
    /// If it does not get it within ten seconds.
    pub async fn metric_becomes(&self, name: &str, labels: &[&str], value: f64) {
        let mut seen = f64::NAN;
        for _ in 0..200 {
            seen = self.metric(name, labels).await;
            if (seen - value).abs() < 1e-9 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{name}{labels:?} is {seen} and should be {value}");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.config);
    }
}

/// A config with one pool of `endpoints`, listening on free ports; `extra` is TOML put before the pool.
pub fn config(endpoints: &[SocketAddr], extra: &str) -> String {
    let mut text = format!("listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{extra}\n");
    if !extra.contains("[health]") {
        text.push_str("[health]\ninterval = \"100ms\"\n");
    }
    text.push_str(&format!("[[pool]]\nmodel = \"{MODEL}\"\n"));
    for endpoint in endpoints {
        text.push_str(&format!("[[pool.endpoint]]\nurl = \"http://{endpoint}\"\n"));
    }
    text
}

/// A chat body with `prompt` as its only message.
pub fn chat(prompt: &str, max_tokens: u32, stream: bool) -> String {
    serde_json::json!({
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "stream": stream,
        "stream_options": stream.then(|| serde_json::json!({"include_usage": true})),
    })
    .to_string()
}
