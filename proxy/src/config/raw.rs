//! What the file says, key by key: right type and range, or absent. Nothing is defaulted or compared here.

use std::net::SocketAddr;
use std::time::Duration;

use larder_settings::Reader;

use super::{LogFormat, Policy, ToolsOrder, defaults};

pub(super) struct RawConfig {
    pub(super) listen: Option<SocketAddr>,
    pub(super) admin: Option<SocketAddr>,
    pub(super) threads: Option<u64>,
    pub(super) log: Option<String>,
    pub(super) log_format: Option<LogFormat>,
    pub(super) access_log: Option<bool>,
    pub(super) reload_on_change: Option<bool>,
    pub(super) access: RawAccess,
    pub(super) tls: RawTls,
    pub(super) snapshot: RawSnapshot,
    pub(super) limits: RawLimits,
    pub(super) timeouts: RawTimeouts,
    pub(super) retry: RawRetry,
    pub(super) breaker: RawBreaker,
    pub(super) routing: RawRouting,
    pub(super) warehouse: RawWarehouse,
    pub(super) health: RawHealth,
    pub(super) response_headers: Option<bool>,
    pub(super) pools: Vec<RawPool>,
}

impl RawConfig {
    pub(super) fn read(root: &mut Reader<'_>) -> Self {
        Self {
            listen: root.socket_addr("listen"),
            admin: root.socket_addr("admin"),
            threads: root.uint("threads", defaults::THREADS_RANGE),
            log: root.string("log"),
            log_format: root.one_of("log_format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
            access_log: root.bool("access_log"),
            reload_on_change: root.bool("reload_on_change"),
            access: root.table("access", RawAccess::read),
            tls: root.table("tls", RawTls::read),
            snapshot: root.table("snapshot", RawSnapshot::read),
            limits: root.table("limits", RawLimits::read),
            timeouts: root.table("timeouts", RawTimeouts::read),
            retry: root.table("retry", RawRetry::read),
            breaker: root.table("breaker", RawBreaker::read),
            routing: root.table("routing", RawRouting::read),
            warehouse: root.table("warehouse", RawWarehouse::read),
            health: root.table("health", RawHealth::read),
            response_headers: root.table("response", |response| response.bool("headers")),
            pools: root.tables("pool", RawPool::read),
        }
    }
}

pub(super) struct RawAccess {
    pub(super) deny: Option<Vec<String>>,
    pub(super) allow: Option<Vec<String>>,
    pub(super) keys_file: Option<String>,
    pub(super) forward_keys: Option<bool>,
    pub(super) admin_token_file: Option<String>,
}

impl RawAccess {
    fn read(access: &mut Reader<'_>) -> Self {
        Self {
            deny: access.strings("deny"),
            allow: access.strings("allow"),
            keys_file: access.string("keys_file"),
            forward_keys: access.bool("forward_keys"),
            admin_token_file: access.string("admin_token_file"),
        }
    }
}

pub(super) struct RawTls {
    pub(super) cert_file: Option<String>,
    pub(super) key_file: Option<String>,
}

impl RawTls {
    fn read(tls: &mut Reader<'_>) -> Self {
        Self { cert_file: tls.string("cert_file"), key_file: tls.string("key_file") }
    }
}

pub(super) struct RawSnapshot {
    pub(super) file: Option<String>,
    pub(super) every: Option<Duration>,
    pub(super) max_size: Option<u64>,
}

impl RawSnapshot {
    fn read(snapshot: &mut Reader<'_>) -> Self {
        Self {
            file: snapshot.string("file"),
            every: snapshot.duration("every", defaults::TIMEOUT_RANGE),
            max_size: snapshot.size("max_size", defaults::INDEX_RANGE),
        }
    }
}

pub(super) struct RawLimits {
    pub(super) max_body: Option<u64>,
    pub(super) max_buffered: Option<u64>,
    pub(super) max_header: Option<u64>,
    pub(super) max_connections: Option<u64>,
    pub(super) max_in_flight: Option<u64>,
    pub(super) max_in_flight_per_endpoint: Option<u64>,
    pub(super) upstream_idle_per_endpoint: Option<u64>,
}

impl RawLimits {
    fn read(limits: &mut Reader<'_>) -> Self {
        Self {
            max_body: limits.size("max_body", defaults::MAX_BODY_RANGE),
            max_buffered: limits.size("max_buffered", defaults::MAX_BUFFERED_RANGE),
            max_header: limits.size("max_header", defaults::MAX_HEADER_RANGE),
            max_connections: limits.uint("max_connections", defaults::CONNECTIONS_RANGE),
            max_in_flight: limits.uint("max_in_flight", defaults::IN_FLIGHT_RANGE),
            max_in_flight_per_endpoint: limits
                .uint("max_in_flight_per_endpoint", defaults::IN_FLIGHT_OR_NONE),
            upstream_idle_per_endpoint: limits.uint("upstream_idle_per_endpoint", defaults::IDLE_RANGE),
        }
    }
}

pub(super) struct RawTimeouts {
    pub(super) handshake: Option<Duration>,
    pub(super) header: Option<Duration>,
    pub(super) body: Option<Duration>,
    pub(super) connect: Option<Duration>,
    pub(super) first_byte: Option<Duration>,
    pub(super) idle: Option<Duration>,
    pub(super) total: Option<Duration>,
    pub(super) keepalive: Option<Duration>,
    pub(super) drain: Option<Duration>,
}

impl RawTimeouts {
    fn read(timeouts: &mut Reader<'_>) -> Self {
        Self {
            handshake: timeouts.duration("handshake", defaults::TIMEOUT_RANGE),
            header: timeouts.duration("header", defaults::TIMEOUT_RANGE),
            body: timeouts.duration("body", defaults::TIMEOUT_RANGE),
            connect: timeouts.duration("connect", defaults::TIMEOUT_RANGE),
            first_byte: timeouts.duration("first_byte", defaults::TIMEOUT_RANGE),
            idle: timeouts.duration("idle", defaults::TIMEOUT_RANGE),
            total: timeouts.duration("total", defaults::TIMEOUT_RANGE),
            keepalive: timeouts.duration("keepalive", defaults::TIMEOUT_RANGE),
            drain: timeouts.duration("drain", defaults::DRAIN_RANGE),
        }
    }
}

pub(super) struct RawRetry {
    pub(super) budget: Option<f64>,
    pub(super) burst: Option<u64>,
    pub(super) may_have_started: Option<bool>,
}

impl RawRetry {
    fn read(retry: &mut Reader<'_>) -> Self {
        Self {
            budget: retry.float("budget", defaults::RETRY_BUDGET_RANGE),
            burst: retry.uint("burst", defaults::RETRY_BURST_RANGE),
            may_have_started: retry.bool("may_have_started"),
        }
    }
}

pub(super) struct RawBreaker {
    pub(super) failures: Option<u64>,
    pub(super) open: Option<Duration>,
    pub(super) open_max: Option<Duration>,
}

impl RawBreaker {
    fn read(breaker: &mut Reader<'_>) -> Self {
        Self {
            failures: breaker.uint("failures", defaults::BREAKER_FAILURES_RANGE),
            open: breaker.duration("open", defaults::TIMEOUT_RANGE),
            open_max: breaker.duration("open_max", defaults::TIMEOUT_RANGE),
        }
    }
}

pub(super) struct RawRouting {
    pub(super) policy: Option<Policy>,
    pub(super) pass_through: Option<bool>,
    pub(super) shadow: Option<bool>,
    pub(super) run_bytes: Option<u64>,
    pub(super) index: Option<u64>,
    pub(super) secret_file: Option<String>,
    pub(super) session_header: Option<String>,
    pub(super) seed: Option<u64>,
    pub(super) default_kv_tokens: Option<u64>,
    pub(super) default_prefill_tokens_per_s: Option<f64>,
    pub(super) max_attempts: Option<u64>,
    pub(super) hold_limit: Option<Duration>,
    pub(super) max_held: Option<u64>,
    pub(super) max_held_bytes: Option<u64>,
    pub(super) slow_start: Option<Duration>,
    pub(super) time_scale: Option<f64>,
}

impl RawRouting {
    fn read(routing: &mut Reader<'_>) -> Self {
        Self {
            policy: routing.one_of("policy", &Policy::NAMES),
            pass_through: routing.bool("pass_through"),
            shadow: routing.bool("shadow"),
            run_bytes: routing.uint("run_bytes", defaults::RUN_BYTES_RANGE),
            index: routing.size("index", defaults::INDEX_RANGE),
            secret_file: routing.string("secret_file"),
            session_header: routing.string("session_header"),
            seed: routing.uint("seed", 0..=u64::MAX),
            default_kv_tokens: routing.uint("default_kv_tokens", defaults::KV_TOKENS_RANGE),
            default_prefill_tokens_per_s: routing
                .float("default_prefill_tokens_per_s", defaults::PREFILL_RANGE),
            max_attempts: routing.uint("max_attempts", defaults::ATTEMPTS_RANGE),
            hold_limit: routing.duration("hold_limit", defaults::HOLD_RANGE),
            max_held: routing.uint("max_held", defaults::HELD_RANGE),
            max_held_bytes: routing.size("max_held_bytes", defaults::MAX_BUFFERED_RANGE),
            slow_start: routing.duration("slow_start", defaults::HOLD_RANGE),
            time_scale: routing.float("time_scale", defaults::TIME_SCALE_RANGE),
        }
    }
}

pub(super) struct RawWarehouse {
    pub(super) deadline: Option<Duration>,
    pub(super) min_tokens: Option<u64>,
    pub(super) link_tokens_per_s: Option<u64>,
    pub(super) token_file: Option<String>,
}

impl RawWarehouse {
    fn read(warehouse: &mut Reader<'_>) -> Self {
        Self {
            deadline: warehouse.duration("deadline", defaults::TIMEOUT_RANGE),
            min_tokens: warehouse.uint("min_tokens", 0..=u64::MAX),
            link_tokens_per_s: warehouse.uint("link_tokens_per_s", defaults::LINK_RANGE),
            token_file: warehouse.string("token_file"),
        }
    }
}

pub(super) struct RawHealth {
    pub(super) interval: Option<Duration>,
    pub(super) timeout: Option<Duration>,
    pub(super) path: Option<String>,
    pub(super) unhealthy_after: Option<u64>,
    pub(super) healthy_after: Option<u64>,
    pub(super) metrics_path: Option<String>,
}

impl RawHealth {
    fn read(health: &mut Reader<'_>) -> Self {
        Self {
            interval: health.duration("interval", defaults::TIMEOUT_RANGE),
            timeout: health.duration("timeout", defaults::TIMEOUT_RANGE),
            path: health.string("path"),
            unhealthy_after: health.uint("unhealthy_after", defaults::PROBES_RANGE),
            healthy_after: health.uint("healthy_after", defaults::PROBES_RANGE),
            metrics_path: health.string("metrics_path"),
        }
    }
}

pub(super) struct RawPool {
    /// Where it is in the file, for faults: `pool[0]`.
    pub(super) at: String,
    pub(super) model: Option<String>,
    pub(super) aliases: Option<Vec<String>>,
    pub(super) tools_order: Option<ToolsOrder>,
    pub(super) first_byte: Option<Duration>,
    pub(super) endpoints: Vec<RawEndpoint>,
}

impl RawPool {
    fn read(pool: &mut Reader<'_>) -> Self {
        Self {
            at: pool.path().to_owned(),
            model: pool.require("model").string("model"),
            aliases: pool.strings("aliases"),
            tools_order: pool.one_of("tools_order", &ToolsOrder::NAMES),
            first_byte: pool.duration("first_byte", defaults::TIMEOUT_RANGE),
            endpoints: pool.tables("endpoint", RawEndpoint::read),
        }
    }
}

pub(super) struct RawEndpoint {
    /// Where it is in the file, for faults: `pool[0].endpoint[1]`.
    pub(super) at: String,
    pub(super) url: Option<String>,
    pub(super) name: Option<String>,
    pub(super) kv_tokens: Option<u64>,
    pub(super) max_in_flight: Option<u64>,
    pub(super) cache_node: Option<String>,
}

impl RawEndpoint {
    fn read(endpoint: &mut Reader<'_>) -> Self {
        Self {
            at: endpoint.path().to_owned(),
            url: endpoint.require("url").string("url"),
            name: endpoint.string("name"),
            kv_tokens: endpoint.uint("kv_tokens", defaults::KV_TOKENS_RANGE),
            max_in_flight: endpoint.uint("max_in_flight", defaults::IN_FLIGHT_RANGE),
            cache_node: endpoint.string("cache_node"),
        }
    }
}
