//! Pure prefix identity: the prompt chain of a request body.
#![deny(unsafe_code)]

mod chain;
mod cpu;
mod envelope;
mod hasher;
mod json;
pub mod limits;
mod memo;
mod scan;
mod secret;
mod settings;
mod sink;
mod walk;
mod xxh3;

pub use chain::{NoChain, PromptChain};
pub use cpu::Simd;
pub use envelope::Envelope;
pub use hasher::{Api, ChainHasher, Walk};
pub use secret::{SECRET_BYTES, Secret};
pub use settings::{HasherSettings, InvalidRunBytes, RunBytes, ToolsOrder};

use cpu::Cpu;
use sink::Out;
