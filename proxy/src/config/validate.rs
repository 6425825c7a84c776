//! From what the file says to what the process runs with: defaults for what is absent, and the faults that only
//! show when several keys are seen together.
//!
//! A [`Config`] is built even when there are faults, so that one does not hide the next; the caller throws it
//! away then.

use std::net::SocketAddr;
use std::path::PathBuf;

use larder_settings::{Report, format_size};

use super::raw::{
    RawAccess, RawBreaker, RawConfig, RawHealth, RawLimits, RawRetry, RawRouting, RawSnapshot, RawTimeouts,
    RawTls, RawWarehouse,
};
use super::{
    Access, Breaker, Config, Health, Limits, Response, Retry, Routing, Snapshot, Timeouts, Tls, Warehouse,
    defaults,
};
pub(super) use pools::lone_endpoint;

mod pools;

/// Names become metric labels and header values; longer ones would only make both unreadable.
const MAX_NAME_CHARS: usize = 128;

pub(super) fn validate(raw: RawConfig, report: &mut Report) -> Config {
    let listen = raw.listen.unwrap_or(defaults::LISTEN);
    let admin = raw.admin.unwrap_or(defaults::ADMIN);
    check_addresses(listen, admin, raw.access.admin_token_file.is_some(), report);
    let log = raw.log.unwrap_or_else(|| defaults::LOG.to_owned());
    if log.trim().is_empty() {
        report.fault("log", "is empty").hint("write \"off\" to log nothing");
    }
    Config {
        listen,
        admin,
        threads: to_usize(raw.threads.unwrap_or(defaults::THREADS)),
        reload_on_change: raw.reload_on_change.unwrap_or(defaults::RELOAD_ON_CHANGE),
        log,
        log_format: raw.log_format.unwrap_or(defaults::LOG_FORMAT),
        access_log: raw.access_log.unwrap_or(defaults::ACCESS_LOG),
        access: access(raw.access, report),
        tls: tls(raw.tls, report),
        snapshot: snapshot(raw.snapshot, raw.routing.secret_file.is_some(), report),
        limits: limits(&raw.limits, report),
        timeouts: timeouts(&raw.timeouts),
        retry: retry(&raw.retry),
        breaker: breaker(&raw.breaker, report),
        routing: routing(raw.routing, report),
        warehouse: warehouse(raw.warehouse, report),
        health: health(raw.health, report),
        response: Response { headers: raw.response_headers.unwrap_or(defaults::RESPONSE_HEADERS) },
        pools: pools::pools(raw.pools, report),
    }
}

fn check_addresses(listen: SocketAddr, admin: SocketAddr, has_token: bool, report: &mut Report) {
    check_overlap(listen, admin, report);
    if !admin.ip().is_loopback() && !has_token {
        let port = admin.port();
        report
            .fault("admin", "without a token the admin plane must not leave this host")
            .hint(format!("write \"127.0.0.1:{port}\" or \"[::1]:{port}\", or set access.admin_token_file"));
    }
}

fn access(raw: RawAccess, report: &mut Report) -> Access {
    let mut paths = |key: &str, paths: Option<Vec<String>>| {
        let paths = paths.unwrap_or_default();
        if let Some(bad) = paths.iter().find(|path| !is_path(path) || path.contains('?')) {
            report.fault(key, format!("{bad:?} is not a path")).hint("begin with a slash: \"/metrics\"");
        }
        paths
    };
    Access {
        deny: paths("access.deny", raw.deny),
        allow: paths("access.allow", raw.allow),
        keys_file: file("access.keys_file", raw.keys_file, report),
        forward_keys: raw.forward_keys.unwrap_or(defaults::FORWARD_KEYS),
        admin_token_file: file("access.admin_token_file", raw.admin_token_file, report),
    }
}

/// The path of a file, which may be absent but not empty.
fn file(key: &str, path: Option<String>, report: &mut Report) -> Option<PathBuf> {
    if path.as_ref().is_some_and(String::is_empty) {
        report.fault(key, "is empty").hint("name a file, or remove the key");
    }
    path.map(PathBuf::from)
}

fn tls(raw: RawTls, report: &mut Report) -> Option<Tls> {
    let cert_file = file("tls.cert_file", raw.cert_file, report);
    let key_file = file("tls.key_file", raw.key_file, report);
    match (cert_file, key_file) {
        (Some(cert_file), Some(key_file)) => Some(Tls { cert_file, key_file }),
        (None, None) => None,
        (cert_file, _) => {
            let lacks = if cert_file.is_none() { "tls.cert_file" } else { "tls.key_file" };
            report
                .fault_in("tls", lacks, "is required beside the other")
                .hint("TLS needs a certificate and its key");
            None
        }
    }
}

fn snapshot(raw: RawSnapshot, has_secret: bool, report: &mut Report) -> Option<Snapshot> {
    let Some(path) = file("snapshot.file", raw.file, report) else {
        for key in ["snapshot.every", "snapshot.max_size"] {
            if report.is_written(key) {
                report.fault(key, "does nothing without snapshot.file").hint("name a file, or remove it");
            }
        }
        return None;
    };
    if !has_secret && !report.has_fault("routing.secret_file") {
        report
            .fault("snapshot.file", "is of no use without routing.secret_file")
            .hint("a restart would draw another secret, under which all prompts have other names");
    }
    Some(Snapshot {
        file: path,
        every: raw.every.unwrap_or(defaults::SNAPSHOT_EVERY),
        max_bytes: raw.max_size.unwrap_or(defaults::SNAPSHOT_MAX),
    })
}

fn check_overlap(listen: SocketAddr, admin: SocketAddr, report: &mut Report) {
    if report.has_fault("listen") || report.has_fault("admin") {
        return;
    }
    // A wildcard listener takes the port on loopback too. Port 0 asks the system for a free one each time.
    let overlap = listen.ip() == admin.ip() || listen.ip().is_unspecified();
    if overlap && listen.port() == admin.port() && listen.port() != 0 {
        let key = if report.is_written("admin") { "admin" } else { "listen" };
        report
            .fault(key, format!("listen ({listen}) and admin ({admin}) take the same port"))
            .hint("give the admin plane a port of its own");
    }
}

fn limits(raw: &RawLimits, report: &mut Report) -> Limits {
    let max_body = raw.max_body.unwrap_or(defaults::MAX_BODY);
    let max_buffered = raw.max_buffered.unwrap_or(defaults::MAX_BUFFERED);
    let both_read = !report.has_fault("limits.max_body") && !report.has_fault("limits.max_buffered");
    if both_read && max_buffered < max_body {
        let written = report.is_written("limits.max_buffered");
        let key = if written { "limits.max_buffered" } else { "limits.max_body" };
        let (all, one) = (format_size(max_buffered), format_size(max_body));
        report
            .fault(
                key,
                format!("all bodies together (max_buffered, {all}) get less than one body (max_body, {one})"),
            )
            .hint(format!("set limits.max_buffered to {one} or more"));
    }
    let connections = raw.max_connections.unwrap_or(defaults::MAX_CONNECTIONS);
    let per_endpoint = raw.max_in_flight_per_endpoint;
    let idle = raw.upstream_idle_per_endpoint.unwrap_or(defaults::UPSTREAM_IDLE_PER_ENDPOINT);
    Limits {
        max_body_bytes: to_usize(max_body),
        max_buffered_bytes: to_usize(max_buffered),
        max_header_bytes: to_usize(raw.max_header.unwrap_or(defaults::MAX_HEADER)),
        max_connections: to_usize(connections),
        max_in_flight: to_usize(raw.max_in_flight.unwrap_or(defaults::MAX_IN_FLIGHT)),
        max_in_flight_per_endpoint: per_endpoint.map(to_u32).filter(|most| *most > 0),
        upstream_idle_per_endpoint: to_usize(idle),
    }
}

fn timeouts(raw: &RawTimeouts) -> Timeouts {
    Timeouts {
        handshake: raw.handshake.unwrap_or(defaults::HANDSHAKE_TIMEOUT),
        header: raw.header.unwrap_or(defaults::HEADER_TIMEOUT),
        body: raw.body.unwrap_or(defaults::BODY_TIMEOUT),
        connect: raw.connect.unwrap_or(defaults::CONNECT_TIMEOUT),
        first_byte: raw.first_byte.unwrap_or(defaults::FIRST_BYTE_TIMEOUT),
        idle: raw.idle.unwrap_or(defaults::IDLE_TIMEOUT),
        total: raw.total.unwrap_or(defaults::TOTAL_TIMEOUT),
        keepalive: raw.keepalive.unwrap_or(defaults::KEEPALIVE_TIMEOUT),
        drain: raw.drain.unwrap_or(defaults::DRAIN_TIMEOUT),
    }
}

fn retry(raw: &RawRetry) -> Retry {
    Retry {
        budget: raw.budget.unwrap_or(defaults::RETRY_BUDGET),
        burst: raw.burst.unwrap_or(defaults::RETRY_BURST),
        may_have_started: raw.may_have_started.unwrap_or(defaults::RETRY_STARTED),
    }
}

fn breaker(raw: &RawBreaker, report: &mut Report) -> Breaker {
    let open = raw.open.unwrap_or(defaults::BREAKER_OPEN);
    let open_max = raw.open_max.unwrap_or(defaults::BREAKER_OPEN_MAX);
    if open_max < open && !report.has_fault("breaker.open") && !report.has_fault("breaker.open_max") {
        let key = if report.is_written("breaker.open_max") { "breaker.open_max" } else { "breaker.open" };
        report
            .fault(key, "open_max is shorter than open")
            .hint("set breaker.open_max to breaker.open or longer");
    }
    Breaker { failures: to_u32(raw.failures.unwrap_or(defaults::BREAKER_FAILURES)), open, open_max }
}

fn routing(raw: RawRouting, report: &mut Report) -> Routing {
    let run_bytes = raw.run_bytes.unwrap_or(defaults::RUN_BYTES);
    if !run_bytes.is_power_of_two() {
        let next = run_bytes.next_power_of_two();
        report
            .fault("routing.run_bytes", "not a power of two")
            .hint(format!("did you mean {} or {next}?", next / 2));
    }
    let session_header = raw.session_header.unwrap_or_else(|| defaults::SESSION_HEADER.to_owned());
    if !is_header_name(&session_header) {
        report
            .fault("routing.session_header", "not the name of a header")
            .hint("letters, digits and `-`, such as \"x-session-id\"");
    }
    if raw.secret_file.as_ref().is_some_and(String::is_empty) {
        report.fault("routing.secret_file", "is empty").hint("remove it for a random secret of this process");
    }
    Routing {
        policy: raw.policy.unwrap_or(defaults::POLICY),
        pass_through: raw.pass_through.unwrap_or(defaults::PASS_THROUGH),
        shadow: raw.shadow.unwrap_or(defaults::SHADOW),
        run_bytes: to_usize(run_bytes),
        index_bytes: to_usize(raw.index.unwrap_or(defaults::INDEX)),
        secret_file: raw.secret_file.map(PathBuf::from),
        session_header: session_header.to_ascii_lowercase(),
        seed: raw.seed,
        default_kv_tokens: raw.default_kv_tokens.unwrap_or(defaults::DEFAULT_KV_TOKENS),
        default_prefill_tokens_per_s: raw
            .default_prefill_tokens_per_s
            .unwrap_or(defaults::DEFAULT_PREFILL_TOKENS_PER_S),
        max_attempts: to_usize(raw.max_attempts.unwrap_or(defaults::MAX_ATTEMPTS)),
        hold_limit: raw.hold_limit.unwrap_or(defaults::HOLD_LIMIT),
        max_held: to_usize(raw.max_held.unwrap_or(defaults::MAX_HELD)),
        max_held_bytes: raw.max_held_bytes.unwrap_or(defaults::MAX_HELD_BYTES),
        slow_start: raw.slow_start.unwrap_or(defaults::SLOW_START),
        time_scale: raw.time_scale.unwrap_or(defaults::TIME_SCALE),
    }
}

fn warehouse(raw: RawWarehouse, report: &mut Report) -> Warehouse {
    if raw.token_file.as_ref().is_some_and(String::is_empty) {
        report.fault("warehouse.token_file", "is empty").hint("remove it for cache nodes that want no token");
    }
    Warehouse {
        deadline: raw.deadline.unwrap_or(defaults::STAGE_DEADLINE),
        min_tokens: raw.min_tokens.unwrap_or(defaults::STAGE_MIN_TOKENS),
        link_tokens_per_s: raw.link_tokens_per_s.unwrap_or(defaults::LINK_TOKENS_PER_S),
        token_file: raw.token_file.map(PathBuf::from),
    }
}

fn health(raw: RawHealth, report: &mut Report) -> Health {
    let path = raw.path.unwrap_or_else(|| defaults::HEALTH_PATH.to_owned());
    let metrics_path = raw.metrics_path.unwrap_or_else(|| defaults::METRICS_PATH.to_owned());
    if !is_path(&path) {
        report.fault("health.path", "not a path").hint("begin with a slash: \"/health\"");
    }
    if !metrics_path.is_empty() && !is_path(&metrics_path) {
        report
            .fault("health.metrics_path", "not a path")
            .hint("begin with a slash: \"/metrics\"; write \"\" to read none");
    }
    Health {
        interval: raw.interval.unwrap_or(defaults::HEALTH_INTERVAL),
        timeout: raw.timeout.unwrap_or(defaults::HEALTH_TIMEOUT),
        path,
        unhealthy_after: to_u32(raw.unhealthy_after.unwrap_or(defaults::UNHEALTHY_AFTER)),
        healthy_after: to_u32(raw.healthy_after.unwrap_or(defaults::HEALTHY_AFTER)),
        metrics_path: (!metrics_path.is_empty()).then_some(metrics_path),
    }
}

/// A token of RFC 9110, section 5.6.2.
fn is_header_name(name: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.len() <= MAX_NAME_CHARS && name.bytes().all(token)
}

/// A request target that can be sent as it is.
fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

/// All ranges fit a 64-bit `usize`; a 32-bit host gets the most it can address.
fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn to_u32(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
