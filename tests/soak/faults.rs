//! Engines that fail: one in another way each second, and brought back when it died.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use larder_tests::world::{Engine, MODEL};
use serde_json::{Value, json};

use crate::ledger::Random;

/// What is small enough to be full soon, and quick enough that the proxy and not the model sets the pace.
const SETTINGS: [&str; 7] = [
    "--model",
    MODEL,
    "--enable-prompt-tokens-details",
    "--kv-tokens=65536",
    "--time-scale=200",
    "--prefill-tokens-per-s=20000",
    "--keep-alive-s=3",
];
/// How often a port is tried that a dead engine left, 10 ms apart.
const PORT_TRIES: u32 = 500;

/// The engines.
pub(crate) struct Fleet {
    engines: Vec<Engine>,
    /// What was done, and how often.
    done: BTreeMap<&'static str, u64>,
}

impl Fleet {
    pub(crate) fn start(count: usize) -> Self {
        let engines = (0..count).map(|_| Engine::start_with("127.0.0.1:0", &SETTINGS)).collect();
        Self { engines, done: BTreeMap::new() }
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.engines.iter().map(|engine| engine.address).collect()
    }

    pub(crate) fn engines(&self) -> &[Engine] {
        &self.engines
    }

    /// How often each fault was made.
    pub(crate) fn told(&self) -> String {
        self.done.iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
    }

    /// Whether each kind was made.
    pub(crate) fn all_kinds(&self) -> bool {
        self.done.len() == FAULTS.len()
    }

    /// Brings back what died, and orders a fault of the engine whose turn it is. Three of four are always well.
    pub(crate) async fn next_fault(&mut self, random: &mut Random) {
        self.heal().await;
        let turn: u64 = self.done.values().sum();
        let (kind, fault) = FAULTS[turn as usize % FAULTS.len()];
        let engine = &self.engines[random.below(self.engines.len() as u64) as usize];
        engine.fault(fault(random)).await;
        *self.done.entry(kind).or_default() += 1;
    }

    /// Ends all faults.
    pub(crate) async fn heal(&mut self) {
        for engine in &mut self.engines {
            if engine.program.runs() {
                // It may die of the fault that is being taken away.
                let order = json!({"kind": "none"}).to_string();
                let request = larder_tests::client::json_request("/debug/fault", &order);
                if tokio::net::TcpStream::connect(engine.address).await.is_ok()
                    && larder_tests::client::try_send(
                        engine.address,
                        request,
                        larder_tests::client::Framing::Length,
                    )
                    .await
                    .is_ok()
                {
                    continue;
                }
            }
            let listen = engine.address;
            free(listen).await;
            *engine = Engine::start_with(&listen.to_string(), &SETTINGS);
        }
    }
}

/// Waits until nobody has the port.
async fn free(address: SocketAddr) {
    for _ in 0..PORT_TRIES {
        if TcpListener::bind(address).is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("somebody took {address}");
}

type Order = fn(&mut Random) -> Value;

const FAULTS: [(&str, Order); 8] = [
    ("die", |_| json!({"kind": "die"})),
    ("die mid-stream", |random| json!({"kind": "die", "chunks": 1 + random.below(3)})),
    ("hang", |random| json!({"kind": "hang", "count": 4 + random.below(8)})),
    ("hang mid-stream", |random| json!({"kind": "hang", "chunks": 2, "count": 4 + random.below(8)})),
    ("reset mid-stream", |random| json!({"kind": "reset_mid_stream", "chunks": random.below(4)})),
    ("slow", |_| json!({"kind": "slow", "delay_s": 0.2})),
    ("status", |random| json!({"kind": "status", "status": 502 + random.below(2)})),
    ("lie", |random| json!({"kind": "lie_cached", "cached_tokens": random.below(100_000)})),
];
