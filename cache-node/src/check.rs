//! `--check`: what the configuration asks of this machine, tried out. Each probe says what it found and, where that is not
//! as good as it could be, what to change.

use std::fmt;
use std::path::Path;

use crate::config::Config;

mod disk;
mod memory;

/// How a probe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As good as can be.
    Good,
    /// The node works, but slower, smaller or less safely than the configuration hopes.
    Poor,
    /// The node would not start, or would fail while it serves.
    Bad,
}

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The config key it is about.
    pub key: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found.
    pub what: String,
    /// What to change; empty where nothing need be.
    pub change: String,
}

impl Finding {
    fn good(key: &'static str, what: String) -> Self {
        Self { key, verdict: Verdict::Good, what, change: String::new() }
    }

    fn poor(key: &'static str, what: String, change: impl Into<String>) -> Self {
        Self { key, verdict: Verdict::Poor, what, change: change.into() }
    }

    fn bad(key: &'static str, what: String, change: impl Into<String>) -> Self {
        Self { key, verdict: Verdict::Bad, what, change: change.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, verdict, what, change } = self;
        let verdict = match verdict {
            Verdict::Good => "ok",
            Verdict::Poor => "could be better",
            Verdict::Bad => "will not do",
        };
        write!(f, "{key}: {verdict}: {what}")?;
        if change.is_empty() { Ok(()) } else { write!(f, "; {change}") }
    }
}

/// Tries out what a configuration asks for. Takes a piece of memory for a moment, and writes and removes one small file in
/// the disk tier's directory, or beside it where that is still to be made.
pub fn run(config: &Config) -> Vec<Finding> {
    let mut found = memory::probe(config);
    if let Some(tier) = &config.disk {
        found.extend(disk::probe(tier));
    }
    found
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("TiB", 40), ("GiB", 30), ("MiB", 20)];
    let unit = UNITS.iter().find(|(_, shift)| bytes >> shift > 0);
    match unit {
        Some((name, shift)) => format!("{:.1} {name}", bytes as f64 / (1_u64 << shift) as f64),
        None => format!("{bytes} bytes"),
    }
}

/// A file of the kernel's, or nothing.
fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(path)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
