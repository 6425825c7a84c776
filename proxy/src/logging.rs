//! Log lines: where they go, in which form. Prompt text never goes into them.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging to standard error.
///
/// # Errors
/// The filter that cannot be read, and why.
pub fn start(filter: &str, json: bool) -> Result<(), String> {
    let mut directives = filter.to_owned();
    if !filter.contains("pingora") {
        // Its start and stop take twenty lines of "info"; ours say the same in three.
        directives.push_str(",pingora_core=warn");
    }
    let filter = EnvFilter::try_new(directives).map_err(|e| format!("log = {filter:?}: {e}"))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = if json { lines.json().try_init() } else { lines.try_init() };
    started.map_err(|e| e.to_string())
}
