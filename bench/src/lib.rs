//! Replays public LLM serving traces through a real proxy process in front of real mock engine processes.
//!
//! In the order a replay meets them: [`cli`] what is asked for, [`trace`] what was recorded, [`plan`] every open figure
//! decided with the arithmetic of [`scale`], [`text`] block ids become prompts, `fleet` the processes, `drive` and
//! `client` the load, [`measure`] the figures, [`report`] and [`plot`] their presentation; [`run`] ties them together.
//!
//! [`store`] measures a cache node beside what the machine can.
//!
//! [`simulate`] needs no process: it runs the proxy's routing crate and other rules on the same traces in simulated time.

pub mod cli;
mod client;
mod drive;
pub mod error;
mod fleet;
pub mod measure;
mod order;
pub mod plan;
pub mod plot;
mod progress;
pub mod report;
pub mod run;
pub mod scale;
pub mod simulate;
pub mod store;
pub mod text;
pub mod trace;
