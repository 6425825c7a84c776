//! Reads a TOML configuration so that every fault is reported at once, with its line and a hint; and the command line that
//! names it ([`parse_args`]).
//!
//! A process that stops at the first bad key is started once per mistake. Here no fault stops the reading:
//! a key of the wrong type reads as absent, the fault is noted, and the caller sees the whole list.
//!
//! ```
//! let text = "listen = \"0.0.0.0:8080\"\n[limits]\nmax_bdy = \"32MiB\"\n";
//! let (_, report) = larder_settings::read(text, |root| {
//!     let listen = root.socket_addr("listen");
//!     let body = root.table("limits", |limits| limits.size("max_body", 1..=1 << 30));
//!     (listen, body)
//! })
//! .expect("it is TOML");
//! let faults = report.into_result(()).expect_err("max_bdy is no key");
//! assert_eq!(faults.to_string(), "line 3: limits.max_bdy: unknown key (did you mean `max_body`?)");
//! ```
//!
//! The life of a configuration: [`read_text`] bounds and loads the file; [`read`] parses it and runs the
//! caller's *shape*, which asks a [`Reader`] for each key it knows; keys nobody asked for become faults; the
//! caller then adds the faults that need several keys ([`Report::fault`]) and ends with
//! [`Report::into_result`].
//!
//! Non-goals: writing TOML, merging files, environment variables, watching for changes.
#![forbid(unsafe_code)]

mod command_line;
mod fault;
mod nearest;
mod quantity;
mod reader;
mod report;
mod text;

pub use command_line::parse_args;
pub use fault::{Fault, Faults};
pub use quantity::{Refusal, format_duration, format_size, parse_duration, parse_size};
pub use reader::{Reader, read};
pub use report::Report;
pub use text::{MAX_FILE_BYTES, read_text};

/// The exit status of a process started with a bad command line or configuration (`EX_USAGE` of BSD
/// `sysexits.h`). Service managers can be told not to restart on it, since a restart changes nothing.
pub const EX_USAGE: u8 = 64;
