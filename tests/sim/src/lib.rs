//! A cache node without a process: its store, the work on its segments and a disk that fails, in simulated time. What
//! happens, and when, comes from a seed alone, so a failure happens again.
//!
//! [`world`] carries out what the store says, on memory and on a disk of memory; [`engines`] are what asks it; [`history`]
//! draws what happens next. The truth is a function: a chunk's bytes follow from its weights and number. So every byte
//! that a lease gives can be compared, whatever lies between.

mod engines;
mod history;
mod rng;
mod world;

use larder_cache_node::store::Verify;

pub use history::Report;

/// What is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Everything follows from it.
    pub seed: u64,
    /// Things that happen.
    pub steps: u64,
    /// Whether the node compares checksums; off only to show that the comparison here sees what they are for.
    pub verify: Verify,
}

/// What went wrong, and how to see it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was simulated.
    pub settings: Settings,
    /// After how many things that happened.
    pub step: u64,
    /// What.
    pub what: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { settings: Settings { seed, steps, verify }, step, what } = self;
        let checksums = if *verify == Verify::Off { " --checksums-off" } else { "" };
        write!(
            f,
            "seed {seed} fails at step {step}: {what}; see it again with: larder-sim --from {seed} --seeds 1 \
             --steps {steps}{checksums}"
        )
    }
}

/// Runs one seed.
///
/// # Errors
/// The first thing that must not be.
pub fn run(settings: Settings) -> Result<Report, Failure> {
    history::History::new(settings).run()
}

#[cfg(test)]
mod tests;
