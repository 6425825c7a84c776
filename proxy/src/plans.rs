//! What endpoints are made from: what the configuration, or a call, says of them, and the limits for all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::pool::EndpointPlan;
use crate::upstream::{self, Upstream};
use crate::warehouse::{self, CacheNode};

/// What the configuration says of all endpoints.
#[derive(Clone, Debug)]
pub struct Settings {
    limits: upstream::Limits,
    first_byte: HashMap<String, Duration>,
    max_in_flight: Option<u32>,
    node: warehouse::Limits,
    node_token: Option<String>,
}

impl Settings {
    /// As `config` says, with the cache nodes' token.
    pub fn new(config: &Config, node_token: Option<String>) -> Self {
        let first_byte = config.pools.iter().filter_map(|p| Some((p.model.clone(), p.first_byte?)));
        Self {
            limits: upstream::Limits {
                connect: config.timeouts.connect,
                first_byte: config.timeouts.first_byte,
                idle: config.limits.upstream_idle_per_endpoint,
            },
            first_byte: first_byte.collect(),
            max_in_flight: config.limits.max_in_flight_per_endpoint,
            node: warehouse::Limits {
                deadline: config.warehouse.deadline,
                min_tokens: config.warehouse.min_tokens,
                link_tokens_per_s: config.warehouse.link_tokens_per_s,
            },
            node_token,
        }
    }

    /// The limits of connections to the endpoints of a model.
    pub fn limits(&self, model: &str) -> upstream::Limits {
        let first_byte = self.first_byte.get(model).copied().unwrap_or(self.limits.first_byte);
        upstream::Limits { first_byte, ..self.limits }
    }

    /// Requests in flight at an endpoint at most, where there is a bound.
    pub fn max_in_flight(&self, endpoint: &config::Endpoint) -> Option<u32> {
        endpoint.max_in_flight.or(self.max_in_flight)
    }
}

/// Makes plans by the settings of the moment.
pub struct Plans {
    settings: ArcSwap<Settings>,
    metrics: Arc<Metrics>,
}

impl Plans {
    /// Plans by `settings`.
    pub fn new(settings: Settings, metrics: Arc<Metrics>) -> Self {
        Self { settings: ArcSwap::from_pointee(settings), metrics }
    }

    /// Goes by other settings from now on.
    pub fn set(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// The plan of an endpoint of a pool.
    pub fn plan(&self, model: &str, endpoint: &config::Endpoint) -> EndpointPlan {
        let settings = self.settings.load();
        EndpointPlan {
            name: endpoint.name.clone(),
            upstream: Upstream::new(endpoint.authority.clone(), settings.limits(model)),
            kv_tokens: endpoint.kv_tokens,
            max_in_flight: settings.max_in_flight(endpoint),
            cache_node: self.cache_node(&settings, model, endpoint),
        }
    }

    fn cache_node(&self, settings: &Settings, model: &str, endpoint: &config::Endpoint) -> Option<CacheNode> {
        let address = endpoint.cache_node.clone()?;
        let name = address.to_string();
        let client = larder_client::Settings::new(address);
        let client = match &settings.node_token {
            Some(token) => client.with_token(token)?,
            None => client,
        };
        let engine = format!("http://{}", endpoint.authority);
        let labels = (model, endpoint.name.as_str());
        let client = larder_client::Client::new(client);
        Some(CacheNode::new((client, name), engine, settings.node, &self.metrics, labels))
    }
}
