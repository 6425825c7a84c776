//! The gateway process: a prefix-aware load-balancing reverse proxy for LLM inference engines.
