//! The pools and their endpoints, whose names and addresses must not clash.

use std::collections::BTreeMap;

use larder_settings::Report;

use super::super::raw::{RawEndpoint, RawPool};
use super::super::{Endpoint, Pool, defaults, endpoint_url};
use super::MAX_NAME_CHARS;

pub(super) fn pools(raw: Vec<RawPool>, report: &mut Report) -> Vec<Pool> {
    if raw.is_empty() && !report.has_fault("pool") {
        report
            .fault("pool", "at least one is required")
            .hint("add [[pool]] with a model, and in it [[pool.endpoint]] with a url");
    }
    let mut models = Taken::default();
    raw.into_iter().map(|raw| pool(raw, &mut models, report)).collect()
}

fn pool(raw: RawPool, models: &mut Taken, report: &mut Report) -> Pool {
    let at = &raw.at;
    let aliases = raw.aliases.unwrap_or_default();
    let names =
        raw.model.iter().map(|name| (name, "model")).chain(aliases.iter().map(|name| (name, "aliases")));
    for (name, key) in names {
        let key = format!("{at}.{key}");
        if name.is_empty() || name.chars().any(char::is_control) {
            report.fault(&key, "the name of a model must be printable and not empty");
        }
        if let Some(first) = models.take(name, &key) {
            report
                .fault(&key, format!("the model name {name:?} is already taken by {first}"))
                .hint("put all endpoints of a model into one pool");
        }
    }
    let endpoints_key = format!("{at}.endpoint");
    if raw.endpoints.is_empty() && !report.has_fault(&endpoints_key) {
        let hint = "add [[pool.endpoint]] with a url below this [[pool]]";
        report.fault_in(at, &endpoints_key, "at least one is required").hint(hint);
    }
    let (mut names, mut authorities) = (Taken::default(), Taken::default());
    let endpoints = raw.endpoints.into_iter();
    let endpoints = endpoints.filter_map(|raw| endpoint(raw, &mut names, &mut authorities, report)).collect();
    Pool {
        // Absent only beside a fault.
        model: raw.model.unwrap_or_default(),
        aliases,
        tools_order: raw.tools_order.unwrap_or(defaults::TOOLS_ORDER),
        first_byte: raw.first_byte,
        endpoints,
    }
}

/// `None` only beside a fault.
fn endpoint(
    raw: RawEndpoint,
    names: &mut Taken,
    authorities: &mut Taken,
    report: &mut Report,
) -> Option<Endpoint> {
    let url_key = format!("{}.url", raw.at);
    let address = match endpoint_url::parse(raw.url.as_deref()?) {
        Ok(address) => address,
        Err(bad) => {
            report.fault(&url_key, bad.reason).hint(bad.hint);
            return None;
        }
    };
    if let Some(first) = authorities.take(&address.authority, &url_key) {
        report
            .fault(&url_key, format!("{} is already in this pool, at {first}", address.authority))
            .hint("list each endpoint once");
    }
    let named = raw.name.is_some();
    let name = raw.name.unwrap_or_else(|| address.authority.clone());
    let name_key = format!("{}.name", raw.at);
    if !is_endpoint_name(&name) {
        report
            .fault(&name_key, "not a name that fits a header and a metric")
            .hint(format!("use up to {MAX_NAME_CHARS} printable ASCII characters without blanks"));
    }
    // Two default names clash only where the addresses do, which has been said.
    if let Some(first) = names.take(&name, if named { &name_key } else { &url_key })
        && named
    {
        report.fault(&name_key, format!("the name {name:?} is already taken by {first}"));
    }
    let cache_node = raw.cache_node.and_then(|text| {
        let read = text.parse().map_err(|bad: larder_client::BadAddress| {
            report.fault(format!("{}.cache_node", raw.at), bad.to_string());
        });
        read.ok()
    });
    Some(Endpoint {
        name,
        host: address.host,
        port: address.port,
        authority: address.authority,
        kv_tokens: raw.kv_tokens,
        max_in_flight: raw.max_in_flight.map(super::to_u32),
        cache_node,
    })
}

/// An endpoint that stands in no file.
pub(in crate::config) fn lone_endpoint(
    url: &str,
    name: Option<String>,
    (kv_tokens, max_in_flight): (Option<u64>, Option<u32>),
    cache_node: Option<&str>,
) -> Result<Endpoint, String> {
    let address =
        endpoint_url::parse(url).map_err(|bad| format!("url = {url:?}: {} ({})", bad.reason, bad.hint))?;
    let name = name.unwrap_or_else(|| address.authority.clone());
    if !is_endpoint_name(&name) {
        return Err(format!(
            "name = {name:?}: use up to {MAX_NAME_CHARS} printable ASCII characters without blanks"
        ));
    }
    if let Some(tokens) = kv_tokens.filter(|tokens| !defaults::KV_TOKENS_RANGE.contains(tokens)) {
        let (low, high) = (defaults::KV_TOKENS_RANGE.start(), defaults::KV_TOKENS_RANGE.end());
        return Err(format!("kv_tokens = {tokens}: write {low} to {high}"));
    }
    if let Some(most) = max_in_flight.filter(|most| !defaults::IN_FLIGHT_RANGE.contains(&u64::from(*most))) {
        let (low, high) = (defaults::IN_FLIGHT_RANGE.start(), defaults::IN_FLIGHT_RANGE.end());
        return Err(format!("max_in_flight = {most}: write {low} to {high}"));
    }
    let node = |text: &str| {
        text.parse().map_err(|bad: larder_client::BadAddress| format!("cache_node = {text:?}: {bad}"))
    };
    let cache_node = cache_node.map(node).transpose()?;
    let endpoint_url::Address { host, port, authority } = address;
    Ok(Endpoint { name, host, port, authority, kv_tokens, max_in_flight, cache_node })
}

/// Names in use, and the key that took each first.
#[derive(Default)]
struct Taken(BTreeMap<String, String>);

impl Taken {
    /// Takes `name` for `key`; if it was taken before, says by which key and leaves it there.
    fn take(&mut self, name: &str, key: &str) -> Option<String> {
        let first = self.0.get(name).cloned();
        if first.is_none() {
            self.0.insert(name.to_owned(), key.to_owned());
        }
        first
    }
}

fn is_endpoint_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME_CHARS && name.bytes().all(|byte| byte.is_ascii_graphic())
}
