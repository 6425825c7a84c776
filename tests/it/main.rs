//! What real processes do together: `larder-proxy` before `larder-mock-engine`s on loopback, one file a question.
//! `tidy` holds the house itself.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests outside test functions: a panic there fails the test"
)]

mod aborts;
mod admin;
mod answers;
mod apis;
mod budget;
mod connections;
mod desync;
mod drain;
mod endpoints;
mod errors;
mod expect;
mod explain;
mod faults;
mod feedback;
mod framing;
mod fuzz;
mod heads;
mod health;
mod held;
mod in_flight;
mod interim;
mod keys;
mod last_events;
mod limits;
mod lost;
mod malformed;
mod memory;
mod models;
mod pass_through;
mod paths;
mod phases;
mod policies;
mod reload;
mod resets;
mod reuse;
mod routing;
mod shadow;
mod smuggling;
mod snapshot;
mod start;
mod streaming;
mod tidy;
mod tls;
mod warehouse;
