//! The command line of a program whose other input is a configuration.

use std::process::ExitCode;

use clap::Parser;

use crate::EX_USAGE;

/// Reads this process's arguments. `Err`: the status to end with, all being said: help and version were asked for and are
/// no failure, anything else ends as a bad configuration does, where clap by itself would say 2.
///
/// # Errors
/// The exit status.
pub fn parse_args<A: Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|said| {
        // Where this cannot be printed nobody reads it.
        let _ = said.print();
        if said.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS }
    })
}
