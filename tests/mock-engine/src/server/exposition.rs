//! `GET /metrics`, with the names, types and labels of vLLM (`vllm/v1/metrics/loggers.py`).

use std::fmt::Write as _;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};

use super::Server;
use super::reply::Reply;
use crate::engine::BOUNDS_S;

/// The metrics page.
pub(super) fn metrics(server: &Server) -> Response<Reply> {
    let mut response = Response::new(Reply::whole(page(server)));
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

fn page(server: &Server) -> String {
    let now = server.engine.snapshot();
    let counters = &now.counters;
    let model = server.config.models.first().map_or("", String::as_str);
    let labels = format!("engine=\"0\",model_name=\"{}\"", escape(model));
    let usage = f64::from(now.blocks_used) / f64::from(now.blocks_total);
    let mut out = String::with_capacity(4096);
    let rows: [(&str, &str, f64); 9] = [
        ("num_requests_running", "gauge", now.running as f64),
        ("num_requests_waiting", "gauge", now.waiting as f64),
        ("kv_cache_usage_perc", "gauge", usage),
        ("prefix_cache_queries_total", "counter", counters.prefix_queries as f64),
        ("prefix_cache_hits_total", "counter", counters.prefix_hits as f64),
        ("prompt_tokens_total", "counter", counters.prompt_tokens as f64),
        ("generation_tokens_total", "counter", counters.generation_tokens as f64),
        ("num_preemptions_total", "counter", counters.preemptions as f64),
        ("request_success_total", "counter", counters.finished as f64),
    ];
    for (name, kind, value) in rows {
        let reason = if name == "request_success_total" { ",finished_reason=\"length\"" } else { "" };
        line(&mut out, format_args!("# TYPE vllm:{name} {kind}\nvllm:{name}{{{labels}{reason}}} {value}"));
    }
    line(
        &mut out,
        format_args!(
            "# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{{block_size=\"{}\",\
         enable_prefix_caching=\"{}\",num_gpu_blocks=\"{}\",{labels}}} 1",
            server.config.block_tokens,
            if server.config.no_prefix_caching { "False" } else { "True" },
            now.blocks_total,
        ),
    );
    histogram(&mut out, "time_to_first_token_seconds", &labels, &now.ttft);
    out
}

fn histogram(out: &mut String, name: &str, labels: &str, histogram: &crate::engine::Histogram) {
    line(out, format_args!("# TYPE vllm:{name} histogram"));
    let mut count = 0;
    for (place, in_bucket) in histogram.counts.iter().enumerate() {
        count += in_bucket;
        let bound = BOUNDS_S.get(place).map_or_else(|| "+Inf".to_owned(), |bound| format!("{bound:?}"));
        line(out, format_args!("vllm:{name}_bucket{{{labels},le=\"{bound}\"}} {count}"));
    }
    line(out, format_args!("vllm:{name}_count{{{labels}}} {count}"));
    line(out, format_args!("vllm:{name}_sum{{{labels}}} {}", histogram.sum_s));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a String cannot fail");
}

/// Label values escape backslash, quote and line feed (Prometheus text format 0.0.4).
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
