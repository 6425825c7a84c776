//! Pure routing policy: who holds which prefix, what each choice costs in seconds, and a decision that explains itself.
//!
//! One [`Fleet`] is one pool. A request goes through it like this:
//!
//! 1. `index`: how many leading elements of its prompt chain each endpoint holds.
//! 2. `load` and `estimate`: for each endpoint that may be chosen, the seconds until it can turn to the request, and
//!    the seconds of prefill for what it does not hold.
//! 3. `policy`: the cheapest, where `larder` adds the shadow price (`price`) of what the choice takes from others.
//! 4. [`Decision`]: where to, why, at what cost, and what the next best was. Load and prompt are entered at once, so
//!    that sibling requests see them.
//! 5. [`Fleet::first_token`] and [`Fleet::finish`]: everything is released, and the answer's `usage` corrects the
//!    bytes per token, the prefill speed and the modelled capacity of the endpoint's cache.
//!
//! The crate knows no clock, no chance and no I/O: time is an argument ([`Now`]), ties are drawn from a seed. That
//! lets one and the same code run in the proxy, in the simulator and in seeded tests. Everything it believes is a
//! hint: a wrong belief costs time, never an answer.
//!
//! [`Fleet::submit`] does the same but may hold a request back until an engine is about to need it, so that hits
//! overtake misses; [`Fleet::next_dispatch`] then says who goes where. [`Fleet::route`] never holds.
//!
//! Where an endpoint reads a warehouse ([`Fleet::set_link`]), what it lacks may be fetched instead of computed, all or
//! a beginning of it, whichever is cheaper; [`Fleet::fetched`] then says what came of it.
//!
//! Not here: KV events and state shared between proxies.
//!
//! ```
//! use larder_routing::{Fleet, Now, Outcome, RouteRequest, Settings, Usage};
//!
//! let mut fleet = Fleet::new(Settings::default());
//! fleet.add_endpoint("http://10.0.0.11:8000", Now::ZERO);
//! fleet.add_endpoint("http://10.0.0.12:8000", Now::ZERO);
//!
//! let request = RouteRequest {
//!     chain: &[11, 22, 33],
//!     run_bytes: 512,
//!     prompt_bytes: 1_700,
//!     media: 0,
//!     session: None,
//!     streamed: true,
//!     exclude: &[],
//! };
//! let decision = fleet.route(&request, Now::from_secs_f64(1.0))?;
//! assert_eq!(decision.reason.label(), "cold");
//! fleet.first_token(&decision.ticket, Now::from_secs_f64(1.1));
//! let usage = Usage { prompt_tokens: 430, cached_tokens: Some(0) };
//! fleet.finish(decision.ticket, Outcome::Completed { usage: Some(usage) }, Now::from_secs_f64(2.0));
//!
//! let again = fleet.route(&request, Now::from_secs_f64(3.0))?;
//! assert_eq!((again.endpoint, again.reason.label()), (decision.endpoint, "prefix_hit"));
//! # fleet.finish(again.ticket, Outcome::Aborted, Now::from_secs_f64(4.0));
//! # Ok::<(), larder_routing::NoEndpoint>(())
//! ```
#![forbid(unsafe_code)]

mod decision;
mod endpoint;
mod estimate;
mod fleet;
mod foresight;
mod hold;
mod index;
mod link;
mod load;
mod policy;
mod price;
mod ramp;
mod random;
mod settings;
mod stats;
mod time;
mod trust;

pub use decision::{Decision, NoEndpoint, Outcome, Reason, RouteRequest, Runner, Ticket, Usage, Would};
pub use endpoint::{EndpointId, EndpointState};
pub use fleet::{ExportCursor, Fetched, Fleet, LinkSpec, MAX_CHAIN, QueueFull, SubmitError, Submitted};
pub use hold::HoldId;
pub use ramp::cap as slow_start_most;
pub use settings::{PolicyKind, Settings, UnknownPolicy};
pub use stats::{Candidate, EndpointStats, FleetStats, Refused};
pub use time::Now;
pub use trust::Trust;
