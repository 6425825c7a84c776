//! What differs between two configurations: pure.

use crate::config::{Config, Endpoint};
use crate::pool::Pool;

/// How the endpoints of a pool change.
#[derive(Debug, PartialEq)]
pub(super) struct PoolChange<'a> {
    pub(super) model: &'a str,
    /// Names of those that leave.
    pub(super) gone: Vec<&'a str>,
    /// Those that come.
    pub(super) new: Vec<&'a Endpoint>,
}

impl<'a> PoolChange<'a> {
    /// Those of the new that `pool` has not been given by a call already.
    pub(super) fn new_to(&self, pool: &Pool) -> Vec<&'a Endpoint> {
        let same = |new: &Endpoint| {
            let there = pool.endpoint_named(&new.name);
            there.is_some_and(|e| e.upstream.authority() == new.authority)
                && !self.gone.contains(&new.name.as_str())
        };
        self.new.iter().copied().filter(|new| !same(new)).collect()
    }
}

/// An endpoint of a configuration.
pub(super) fn endpoint<'a>(config: &'a Config, model: &str, name: &str) -> Option<&'a Endpoint> {
    config.pools.iter().find(|pool| pool.model == model)?.endpoints.iter().find(|e| e.name == name)
}

/// How the endpoints change from `old` to `new`, which have the same pools. One whose address or cache node is another is
/// another endpoint.
pub(super) fn pools<'a>(old: &'a Config, new: &'a Config) -> Vec<PoolChange<'a>> {
    let same = |a: &Endpoint, b: &Endpoint| {
        (&a.name, &a.authority, &a.cache_node) == (&b.name, &b.authority, &b.cache_node)
    };
    let pairs = old.pools.iter().filter_map(|before| {
        let after = new.pools.iter().find(|pool| pool.model == before.model)?;
        Some((before, after))
    });
    let changes = pairs.map(|(before, after)| {
        let lacks = |side: &[Endpoint], one: &Endpoint| !side.iter().any(|other| same(one, other));
        let gone = before.endpoints.iter().filter(|e| lacks(&after.endpoints, e));
        PoolChange {
            model: &before.model,
            gone: gone.map(|e| e.name.as_str()).collect(),
            new: after.endpoints.iter().filter(|e| lacks(&before.endpoints, e)).collect(),
        }
    });
    changes.filter(|change| !change.gone.is_empty() || !change.new.is_empty()).collect()
}

/// `new` as far as it can go into force without a restart, and the keys that cannot.
pub(super) fn in_force(old: &Config, mut new: Config) -> (Config, Vec<String>) {
    let mut restart = Vec::new();
    {
        let mut keep = |key: &str, changed: bool| {
            if changed {
                restart.push(key.to_owned());
            }
        };
        macro_rules! keep {
            ($($key:literal: $($field:ident).+;)*) => {
                $(
                    keep($key, old.$($field).+ != new.$($field).+);
                    new.$($field).+.clone_from(&old.$($field).+);
                )*
            };
        }
        keep! {
            "listen": listen;
            "admin": admin;
            "threads": threads;
            "log": log;
            "log_format": log_format;
            "routing.run_bytes": routing.run_bytes;
            "routing.index": routing.index_bytes;
            "routing.secret_file": routing.secret_file;
            "routing.seed": routing.seed;
            "routing.time_scale": routing.time_scale;
            "routing.default_prefill_tokens_per_s": routing.default_prefill_tokens_per_s;
            "snapshot": snapshot;
            "warehouse": warehouse;
        }
    }
    // The listener stays where it is, and must not lose its token there.
    if !old.admin.ip().is_loopback() && new.access.admin_token_file.is_none() {
        restart.push("access.admin_token_file".to_owned());
        new.access.admin_token_file.clone_from(&old.access.admin_token_file);
    }
    keep_pools(old, &mut new, &mut restart);
    (new, restart)
}

/// The pools stay those that they were, with their names and their templates; their endpoints are the new ones.
fn keep_pools(old: &Config, new: &mut Config, restart: &mut Vec<String>) {
    let mut told = std::mem::take(&mut new.pools);
    for before in &old.pools {
        let mut pool = before.clone();
        match told.iter().position(|after| after.model == before.model) {
            Some(at) => {
                let after = told.swap_remove(at);
                if after.aliases != before.aliases {
                    restart.push(format!("pool `{}`: aliases", before.model));
                }
                if after.tools_order != before.tools_order {
                    restart.push(format!("pool `{}`: tools_order", before.model));
                }
                pool.endpoints = after.endpoints;
                pool.first_byte = after.first_byte;
            }
            None => restart.push(format!("pool `{}`: is in the file no more", before.model)),
        }
        new.pools.push(pool);
    }
    restart.extend(told.iter().map(|pool| format!("pool `{}`: is new", pool.model)));
}

#[cfg(test)]
mod tests;
