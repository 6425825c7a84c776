//! The disk tier's bytes: segments of fixed size to which chunks are appended, and what survives of them.
//!
//! [`media`] is where segments lie (files, or a fake with faults), [`log`] the form of what is in them, [`work`] carries
//! out what the tier decided.

pub mod log;
pub mod media;
pub mod recipes;
pub mod work;
