//! A stand-in for the CUDA driver, so that the real driver layer and the shipped PTX run where there is no GPU.
//!
//! Loaded as `libcuda.so`, it has the functions that `larder-kernels` calls, with memory and events that other
//! processes can open by handle, streams that run on their own, and the driver's refusals. What it cannot show:
//! speed, a real driver's translation of PTX, threads of a kernel that race otherwise than by meeting on a write of one
//! launch, peer access, MIG, MPS.
//!
//! A test depends on this package so that cargo builds the library, loads [`library`], and turns its [`Controls`].

mod abi;
mod code;
mod controls;
mod event;
mod knobs;
mod memory;
mod ptx;
mod state;
mod stream;

pub use controls::{Controls, library};
pub use memory::{POISON, noise};
