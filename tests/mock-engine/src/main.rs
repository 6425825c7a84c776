//! An honest imitation of a vLLM server, for tests and benchmarks.
fn main() {}
