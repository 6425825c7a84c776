//! The processes of one run: engines and a proxy, fresh for each policy, ended whatever happens.

pub(crate) mod process;

use crate::cli::Policy;
use crate::client::Client;
use crate::error::Error;
use crate::plan::Plan;
use process::Process;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Model name that the mock engines serve.
pub(crate) const MODEL: &str = "mock";
/// Wall time for the proxy to say it is ready, after it listens: it has to reach N engines on this machine.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// Pause between two looks at readiness.
const READY_POLL: Duration = Duration::from_millis(50);

/// Running engines and the proxy in front of them.
pub(crate) struct Fleet {
    engines: Vec<Process>,
    proxy: Process,
    admin: String,
    dir: PathBuf,
}

/// What an engine has counted since it started.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
pub(crate) struct EngineStats {
    #[serde(rename = "prompt_tokens_total")]
    pub(crate) prompt_tokens: u64,
    #[serde(rename = "cached_tokens_total")]
    pub(crate) cached_tokens: u64,
}

impl Fleet {
    /// Starts everything and waits until the proxy is ready. Logs go to `dir`.
    pub(crate) async fn start(
        plan: &Plan,
        policy: Policy,
        dir: &Path,
        client: &Client,
    ) -> Result<Self, Error> {
        let mut engines = Vec::new();
        for number in 0..plan.scale.engines {
            engines.push(Process::start(
                &format!("engine-{number}"),
                &plan.mock_bin,
                &engine_args(plan),
                dir,
            )?);
        }
        let mut urls = Vec::new();
        for engine in &mut engines {
            urls.push(engine.address("listening on ").await?);
        }
        let config = dir.join("proxy.toml");
        std::fs::write(&config, proxy_config(plan, policy, &urls)).map_err(Error::file("write", &config))?;
        let args = ["--config".to_owned(), config.display().to_string()];
        let mut proxy = Process::start("proxy", &plan.proxy_bin, &args, dir)?;
        proxy.address("listening on ").await?;
        let admin = proxy.address("admin on ").await?;
        let mut fleet = Self { engines, proxy, admin, dir: dir.into() };
        fleet.wait_ready(client).await?;
        Ok(fleet)
    }

    async fn wait_ready(&mut self, client: &Client) -> Result<(), Error> {
        let url = format!("{}/readyz", self.admin);
        let waiting = async {
            while client.get(&url).await.is_err() {
                tokio::time::sleep(READY_POLL).await;
            }
        };
        if tokio::time::timeout(READY_LIMIT, waiting).await.is_err() {
            return Err(self.proxy.failed(format!("was not ready after {} s", READY_LIMIT.as_secs())));
        }
        Ok(())
    }

    /// Where clients send requests.
    pub(crate) fn url(&self) -> &str {
        self.proxy.known_address()
    }

    /// Each engine's own counters.
    pub(crate) async fn stats(&self, client: &Client) -> Result<Vec<EngineStats>, Error> {
        let mut stats = Vec::new();
        for engine in &self.engines {
            let url = format!("{}/debug/stats", engine.known_address());
            let body =
                client.get(&url).await.map_err(|reason| engine.failed(format!("gave no stats: {reason}")))?;
            stats.push(
                serde_json::from_slice(&body)
                    .map_err(|error| engine.failed(format!("gave stats that cannot be read: {error}")))?,
            );
        }
        Ok(stats)
    }

    /// Keeps the proxy's metrics beside its logs. A proxy without them is no reason to fail a run.
    pub(crate) async fn keep_metrics(&self, client: &Client) {
        if let Ok(metrics) = client.get(&format!("{}/metrics", self.admin)).await {
            let _ = std::fs::write(self.dir.join("proxy.metrics"), metrics);
        }
    }

    /// Ends when a process does; the error names it and shows its last log lines.
    pub(crate) async fn died(&mut self) -> Error {
        loop {
            for process in self.engines.iter_mut().chain([&mut self.proxy]) {
                if let Some(error) = process.has_died() {
                    return error;
                }
            }
            tokio::time::sleep(process::POLL).await;
        }
    }
}

fn engine_args(plan: &Plan) -> Vec<String> {
    let scale = &plan.scale;
    [
        ("--listen", "127.0.0.1:0".to_owned()),
        ("--model", MODEL.to_owned()),
        ("--block-tokens", scale.engine_block_tokens.to_string()),
        ("--kv-tokens", scale.capacity.kv_tokens_per_engine.to_string()),
        ("--bytes-per-token", scale.bytes_per_token.to_string()),
        ("--prefill-tokens-per-s", scale.prefill_tokens_per_s.to_string()),
        ("--decode-step-s", scale.decode_step_s.to_string()),
        ("--max-batched-tokens", scale.max_batched_tokens.to_string()),
        ("--time-scale", scale.time_scale.to_string()),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value])
    .chain(["--enable-prompt-tokens-details".to_owned()])
    .collect()
}

/// The proxy's configuration: what a user would write, plus the policy under test.
pub(crate) fn proxy_config(plan: &Plan, policy: Policy, engines: &[String]) -> String {
    use std::fmt::Write as _;
    let mut config = format!(
        "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\n[routing]\npolicy = \"{}\"\nrun_bytes = {}\ntime_scale = {:?}\n",
        policy.name(),
        plan.scale.run_bytes,
        plan.scale.time_scale
    );
    for line in &plan.routing {
        config.push_str(line);
        config.push('\n');
    }
    let _ = write!(config, "\n[[pool]]\nmodel = \"{MODEL}\"\n");
    for url in engines {
        let _ = write!(config, "\n[[pool.endpoint]]\nurl = \"{url}\"\n");
    }
    config
}
