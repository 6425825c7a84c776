//! Paths by which a client would administer an engine instead of asking it: they are not served to clients.
//!
//! Engines keep administration and inference on one port (vLLM: `/reset_prefix_cache`, `/sleep`; SGLang:
//! `/flush_cache`, `/update_weights_from_disk`; llama.cpp: `/slots`), so a gateway that passes every path through
//! hands out the engine's switches. A path is judged as engines read it: percent-decoded, without `.`, `..` and empty
//! segments, and with all that lies below it.

use std::borrow::Cow;
use std::collections::HashSet;

/// What is not served unless the config allows it. docs/paths.md lists it for readers, and a test holds the two
/// together.
pub const DENIED: [&str; 59] = [
    // vLLM: the API server and its development mode.
    "/metrics",
    "/load",
    "/server_info",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/reset_encoder_cache",
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/pause",
    "/resume",
    "/is_paused",
    "/abort_requests",
    "/collective_rpc",
    "/update_weights",
    "/init_weight_transfer_engine",
    "/start_weight_update",
    "/finish_weight_update",
    "/get_world_size",
    "/scale_elastic_ep",
    "/is_scaling_elastic_ep",
    "/start_profile",
    "/stop_profile",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    // SGLang.
    "/get_server_info",
    "/get_internal_state",
    "/set_internal_state",
    "/flush_cache",
    "/clear_hicache_storage_backend",
    "/hicache",
    "/start_expert_distribution_record",
    "/stop_expert_distribution_record",
    "/dump_expert_distribution_record",
    "/update_weights_from_disk",
    "/update_weights_from_tensor",
    "/update_weights_from_distributed",
    "/update_weights_from_ipc",
    "/update_weight_version",
    "/init_weights_update_group",
    "/destroy_weights_update_group",
    "/init_weights_send_group_for_remote_instance",
    "/send_weights_to_remote_instance",
    "/get_weights_by_name",
    "/release_memory_occupation",
    "/resume_memory_occupation",
    "/pause_generation",
    "/continue_generation",
    "/abort_request",
    "/slow_down",
    "/configure_logging",
    "/freeze_gc",
    "/load_lora_adapter",
    "/unload_lora_adapter",
    // llama.cpp.
    "/props",
    "/slots",
    "/lora-adapters",
    "/models/load",
    "/models/unload",
];

/// A set of paths, each with all that lies below it.
#[derive(Debug)]
pub struct DenyList {
    paths: HashSet<Box<[u8]>>,
}

impl DenyList {
    /// [`DENIED`], more of the operator's, less what the operator allows.
    pub fn new(more: &[String], allowed: &[String]) -> Self {
        let mut paths: HashSet<Box<[u8]>> = DENIED.iter().map(|path| path.as_bytes().into()).collect();
        paths.extend(more.iter().map(|path| normal(path).into_owned().into_boxed_slice()));
        for path in allowed {
            paths.remove(&*normal(path));
        }
        Self { paths }
    }

    /// Whether `path`, as it stands in a request's target, is one of the set or lies below one.
    pub fn covers(&self, path: &str) -> bool {
        let path = normal(path);
        let ends = memchr::memchr_iter(b'/', &path).skip(1).chain([path.len()]);
        ends.into_iter().any(|end| self.paths.contains(&path[..end]))
    }
}

/// The path that engines see: decoded once, as they do it, and without segments that mean nothing.
fn normal(path: &str) -> Cow<'_, [u8]> {
    let plain = !path.ends_with('/') && !path.contains('%') && !path.contains("//") && !path.contains("/.");
    if plain {
        return Cow::Borrowed(path.as_bytes());
    }
    let decoded = decoded(path.as_bytes());
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in decoded.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let mut out = Vec::with_capacity(decoded.len());
    for segment in segments {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    Cow::Owned(out)
}

/// `%XX` as the byte it stands for; what is no such escape stays.
fn decoded(path: &[u8]) -> Vec<u8> {
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        match (byte, hex(path.get(at + 1)), hex(path.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_denied_path_is_covered() {
        let list = DenyList::new(&[], &[]);
        for path in [
            "/metrics",
            "/metrics/",
            "/metrics/x",
            "//metrics",
            "/./metrics",
            "/v1/../metrics",
            "/%6d%65trics",
            "/%2Fmetrics",
            "/%2e%2e/metrics",
            "/v1%2f..%2fsleep",
            "/sleep",
            "/collective_rpc",
            "/slots/0",
            "/../../sleep",
            "/x/..//sleep/.",
        ] {
            assert!(list.covers(path), "{path}");
        }
    }

    #[test]
    fn other_paths_are_not() {
        let list = DenyList::new(&[], &[]);
        for path in [
            "/",
            "",
            "*",
            "/v1/models",
            "/v1/embeddings",
            "/metrics2",
            "/metric",
            "/v1/metrics",
            "/tokenize",
            "/%",
            "/%6",
            "/%zz",
            "/%256d%65trics",
            "/sleepy/x",
            "/..",
        ] {
            assert!(!list.covers(path), "{path}");
        }
    }

    #[test]
    fn the_operator_adds_and_allows() {
        let list = DenyList::new(&["/tokenize/".to_owned(), "/a/b".to_owned()], &["/metrics".to_owned()]);
        assert!(list.covers("/tokenize") && list.covers("/a/b/c") && list.covers("/sleep"));
        assert!(!list.covers("/metrics") && !list.covers("/a") && !list.covers("/a/c"));
        // What is said twice is allowed: the narrower wish.
        assert!(!DenyList::new(&["/x".to_owned()], &["/x".to_owned()]).covers("/x"));
    }

    #[test]
    fn the_documented_list_is_the_real_one() {
        let page = include_str!("../../../docs/paths.md");
        let table: HashSet<&str> =
            page.lines().filter_map(|line| line.strip_prefix("- `")?.split('`').next()).collect();
        assert_eq!(table, DENIED.into_iter().collect());
    }
}
