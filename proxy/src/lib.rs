//! The gateway process: a prefix-aware load-balancing reverse proxy for LLM inference engines.
//!
//! Modules, in the order a request meets them:
//!
//! 1. [`gateway`] accepts the connection and takes the request through its phases;
//! 2. [`openai`] says what kind of call it is;
//! 3. [`pool`] holds the endpoints of one model, and asks `larder-routing` which of them to use;
//! 4. [`warehouse`] has the engine's cache node make ready what the engine lacks;
//! 5. [`upstream`] carries the request to the chosen engine;
//! 6. [`usage`] reads from the answer what the engine found in its cache.
//!
//! Beside the path: [`app`] puts the process together from a [`config`], [`health`] watches the engines,
//! [`admin`] and [`metrics`] show what is going on, [`decisions`] and [`explain`] why, [`access_log`] tells of each
//! request, [`keys`] and [`tls`] guard the doors, [`snapshot`] keeps the index over a restart, [`drain`] ends it. What the parts are told comes from [`assemble`] and [`plans`], and [`reload`] tells them anew.
#![forbid(unsafe_code)]

pub mod access_log;
pub mod admin;
pub mod app;
pub mod assemble;
pub mod breaker;
pub mod config;
pub mod decisions;
pub mod drain;
pub mod endpoints;
pub mod explain;
pub mod gateway;
pub mod health;
pub mod keys;
pub mod logging;
pub mod metrics;
pub mod openai;
pub mod plans;
pub mod pool;
pub mod reload;
pub mod retry;
pub mod snapshot;
pub mod tls;
pub mod upstream;
pub mod usage;
pub mod warehouse;
