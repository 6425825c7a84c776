//! Log lines: where they go, in which form. Keys, prompts and KV never go into them.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging to standard error.
///
/// # Errors
/// The filter that cannot be read, and why.
pub fn start(filter: &str, json: bool) -> Result<(), String> {
    let directives = EnvFilter::try_new(filter).map_err(|error| format!("log = {filter:?}: {error}"))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(directives)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = if json { lines.json().try_init() } else { lines.try_init() };
    started.map_err(|error| error.to_string())
}
