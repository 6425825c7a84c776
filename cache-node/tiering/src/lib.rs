//! What a tier forgets first. No memory, file or clock is touched here: slots are numbers and `now` is an argument.
//!
//! [`Worth`] says what a chunk saves for the room it takes, [`Order`] keeps the chunks of one tier by it, knows which
//! chunk continues which, and never names one that another held chunk continues. [`disk`] decides what goes to the disk
//! tier, where it lies there, and which segments are given up.

#![forbid(unsafe_code)]

pub mod disk;
mod order;
mod worth;

pub use order::{Entry, Order, Rank};
pub use worth::{Uses, Worth};
