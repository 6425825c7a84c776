//! What a tier forgets first. No memory, file or clock is touched here: slots are numbers and `now` is an argument.
//!
//! [`Worth`] says what a chunk saves for the room it takes, [`Order`] keeps the chunks of one tier by it, knows which
//! chunk continues which and whose it is, and never names one that another held chunk continues. [`pins`] keeps what was
//! asked to stay for a while, within budgets. [`disk`] decides what goes to the disk
//! tier, where it lies there, and which segments are given up.

#![forbid(unsafe_code)]

pub mod disk;
mod order;
pub mod pins;
mod worth;

pub use order::{Entry, Order, Owner, Rank};
pub use worth::{Uses, Worth};
