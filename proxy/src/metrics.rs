//! The numbers that the gateway exports. Each is described in `docs/metrics.md`, and a test holds that.

use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Upper bounds of the overhead histogram, seconds: from a small body's 10 us to a hundred megabytes' 0.1 s.
const OVERHEAD_BUCKETS: [f64; 11] = [1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 0.01, 0.1, 1.0];
/// Upper bounds of the TTFT histogram, seconds: from a cached prompt to a long wait behind cold ones.
const TTFT_BUCKETS: [f64; 14] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0];

/// The kinds of failed exchanges.
const ERROR_KINDS: [&str; 6] = ["connect", "exchange", "timeout", "broken_answer", "stalled", "too_long"];
/// How calls to cache nodes end.
const STAGE_RESULTS: [&str; 4] = ["staged", "nothing", "told", "failed"];

/// All metrics of one process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    decisions: IntCounterVec,
    no_chain: IntCounterVec,
    upstream_errors: IntCounterVec,
    prompt_tokens: IntCounterVec,
    predicted_cached_tokens: IntCounterVec,
    actual_cached_tokens: IntCounterVec,
    usage_missing: IntCounterVec,
    staged_tokens: IntCounterVec,
    stage_calls: IntCounterVec,
    ttft: HistogramVec,
    /// Whole prompt in hand to request handed to the engine's connection.
    pub overhead: Histogram,
    /// Requests whose client went before the answer's end.
    pub client_aborts: IntCounter,
    /// Client connections now.
    pub connections: IntGauge,
    /// Bytes of request bodies held now.
    pub buffered_body_bytes: IntGauge,
    /// Requests held back now, per pool.
    pub held_requests: IntGaugeVec,
    held: HistogramVec,
    fallbacks: IntCounterVec,
    /// Requests in flight, per endpoint.
    pub in_flight: IntGaugeVec,
    /// Uncached prompt tokens in flight, per endpoint.
    pub uncached_tokens_in_flight: IntGaugeVec,
    /// Elements of prompt chains that the endpoint is believed to hold.
    pub index_elements: IntGaugeVec,
    /// Bytes of the index, per pool.
    pub index_bytes: IntGaugeVec,
    /// KV capacity in the model of the endpoint, tokens.
    pub kv_capacity_tokens: IntGaugeVec,
    /// Whether the endpoint may be chosen, 0 or 1.
    pub endpoint_up: IntGaugeVec,
    /// Whether answers bear out what an endpoint is believed to hold.
    pub endpoint_trusted: IntGaugeVec,
    reloads: IntCounterVec,
    retries: IntCounterVec,
    all_ejected: IntCounterVec,
    ejections: IntCounterVec,
    /// Whether the breaker leaves the endpoint alone, 0 or 1.
    pub endpoint_ejected: IntGaugeVec,
    /// Whether an operator drains the endpoint, 0 or 1.
    pub endpoint_draining: IntGaugeVec,
    /// The shadow price of a second of prefill, per pool.
    pub shadow_price: GaugeVec,
    /// Learned bytes of a prompt token, per pool.
    pub bytes_per_token: GaugeVec,
}

/// Counters of one endpoint, looked up once so that a request pays no map.
pub struct EndpointMetrics {
    /// Prompt tokens of finished requests, as the engine counted them.
    pub prompt_tokens: IntCounter,
    /// Of these, tokens predicted to be cached.
    pub predicted_cached_tokens: IntCounter,
    /// Of these, tokens that the engine reported as cached.
    pub actual_cached_tokens: IntCounter,
    /// Answers that did not say how many tokens were cached.
    pub usage_missing: IntCounter,
    /// Prompt tokens that the endpoint's cache node made ready.
    pub staged_tokens: IntCounter,
    /// Failures to connect.
    pub connect_errors: IntCounter,
    /// Exchanges that broke before the answer began.
    pub exchange_errors: IntCounter,
    /// Answers that did not begin in time.
    pub timeouts: IntCounter,
    /// Answers that broke off.
    pub broken_answers: IntCounter,
    /// Answers that stopped without an end.
    pub stalled: IntCounter,
    /// Answers that took longer than any may.
    pub too_long: IntCounter,
    /// Times that the breaker opened.
    pub ejections: IntCounter,
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// Two metrics of one name: a mistake in this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let make = Maker(&registry);
        let endpoint: &[&str] = &["pool", "endpoint"];
        let metrics = Self {
            requests: make.counters("larder_requests_total", "Requests answered", &["pool", "code"])?,
            decisions: make.counters("larder_decisions_total", "Routing decisions", &["pool", "reason"])?,
            no_chain: make.counters(
                "larder_no_chain_total",
                "Prompts without affinity",
                &["pool", "reason"],
            )?,
            upstream_errors: make.counters(
                "larder_upstream_errors_total",
                "Failed exchanges with engines",
                &["pool", "endpoint", "kind"],
            )?,
            prompt_tokens: make.counters("larder_prompt_tokens_total", "Prompt tokens", endpoint)?,
            predicted_cached_tokens: make.counters(
                "larder_predicted_cached_tokens_total",
                "Prompt tokens predicted to be cached",
                endpoint,
            )?,
            actual_cached_tokens: make.counters(
                "larder_actual_cached_tokens_total",
                "Prompt tokens that the engine found cached",
                endpoint,
            )?,
            usage_missing: make.counters(
                "larder_usage_missing_total",
                "Answers that do not say how many tokens were cached",
                endpoint,
            )?,
            staged_tokens: make.counters(
                "larder_staged_tokens_total",
                "Prompt tokens that the cache node made ready",
                endpoint,
            )?,
            stage_calls: make.counters(
                "larder_stage_calls_total",
                "Calls to cache nodes",
                &["pool", "endpoint", "result"],
            )?,
            ttft: make.histograms("larder_ttft_seconds", "Time to first token", &TTFT_BUCKETS, &["pool"])?,
            overhead: make.histogram(
                "larder_overhead_seconds",
                "Whole body to request sent",
                &OVERHEAD_BUCKETS,
            )?,
            client_aborts: make
                .counter("larder_client_aborts_total", "Clients gone before the answer's end")?,
            connections: make.gauge("larder_client_connections", "Client connections")?,
            buffered_body_bytes: make.gauge("larder_buffered_body_bytes", "Request bodies held")?,
            held_requests: make.gauges("larder_held_requests", "Requests held back", &["pool"])?,
            held: make.histograms(
                "larder_held_seconds",
                "How long held requests waited for their turn",
                &TTFT_BUCKETS,
                &["pool"],
            )?,
            fallbacks: make.counters(
                "larder_decision_fallbacks_total",
                "Requests sent by least load without the decision core",
                &["pool", "reason"],
            )?,
            in_flight: make.gauges("larder_in_flight_requests", "Requests in flight", endpoint)?,
            uncached_tokens_in_flight: make.gauges(
                "larder_uncached_tokens_in_flight",
                "Uncached prompt tokens in flight",
                endpoint,
            )?,
            index_elements: make.gauges("larder_index_elements", "Chain elements believed held", endpoint)?,
            index_bytes: make.gauges("larder_index_bytes", "Bytes of the index", &["pool"])?,
            kv_capacity_tokens: make.gauges("larder_kv_capacity_tokens", "Modelled KV capacity", endpoint)?,
            endpoint_trusted: make.gauges(
                "larder_endpoint_trusted",
                "Whether answers bear out what the endpoint is believed to hold",
                endpoint,
            )?,
            endpoint_up: make.gauges("larder_endpoint_up", "Whether the endpoint may be chosen", endpoint)?,
            reloads: make.counters(
                "larder_config_reload_total",
                "Times the configuration was read again",
                &["result"],
            )?,
            retries: make.counters(
                "larder_retries_total",
                "Requests that another endpoint was to be asked for",
                &["pool", "result"],
            )?,
            all_ejected: make.counters(
                "larder_all_ejected_total",
                "Requests sent to an ejected endpoint for want of another",
                &["pool"],
            )?,
            ejections: make.counters("larder_ejections_total", "Times the breaker opened", endpoint)?,
            endpoint_ejected: make.gauges(
                "larder_endpoint_ejected",
                "Whether the breaker leaves the endpoint alone",
                endpoint,
            )?,
            endpoint_draining: make.gauges(
                "larder_endpoint_draining",
                "Whether the operator drains the endpoint",
                endpoint,
            )?,
            shadow_price: make.float_gauges(
                "larder_shadow_price",
                "Price of a second of prefill",
                &["pool"],
            )?,
            bytes_per_token: make.float_gauges(
                "larder_bytes_per_token",
                "Bytes of a prompt token",
                &["pool"],
            )?,
            registry,
        };
        // An alert on something that was never seen is no alert.
        for result in ["applied", "refused"] {
            let _ = metrics.reloads.with_label_values(&[result]);
        }
        Ok(metrics)
    }

    /// Counts an answer.
    pub fn answered(&self, pool: &str, code: u16) {
        let mut text = [0u8; 3];
        self.requests.with_label_values(&[pool, status_text(code, &mut text)]).inc();
    }

    /// Counts a decision.
    pub fn decided(&self, pool: &str, reason: &str) {
        self.decisions.with_label_values(&[pool, reason]).inc();
    }

    /// Counts a prompt that has no chain.
    pub fn without_chain(&self, pool: &str, reason: &str) {
        self.no_chain.with_label_values(&[pool, reason]).inc();
    }

    /// Makes a pool's rare series exist from the start: an alert on something that was never seen is no alert.
    pub fn pool(&self, pool: &str) {
        let _ = self.held.with_label_values(&[pool]);
        let _ = self.all_ejected.with_label_values(&[pool]);
        for result in ["sent", "no_budget"] {
            let _ = self.retries.with_label_values(&[pool, result]);
        }
        for reason in ["slow", "failed", "lost"] {
            let _ = self.fallbacks.with_label_values(&[pool, reason]);
        }
    }

    /// Counts a reading of the configuration while the process runs, and whether it went into force.
    pub fn reloaded(&self, applied: bool) {
        self.reloads.with_label_values(&[if applied { "applied" } else { "refused" }]).inc();
    }

    /// Counts a request that another endpoint was to be asked for, and whether the budget let it.
    pub fn retried(&self, pool: &str, sent: bool) {
        self.retries.with_label_values(&[pool, if sent { "sent" } else { "no_budget" }]).inc();
    }

    /// Counts a request that went to an ejected endpoint, since no other was left.
    pub fn all_ejected(&self, pool: &str) {
        self.all_ejected.with_label_values(&[pool]).inc();
    }

    /// Records how long a request was held back.
    pub fn held(&self, pool: &str, seconds: f64) {
        self.held.with_label_values(&[pool]).observe(seconds);
    }

    /// Counts a request that went out without the decision core.
    pub fn fell_back(&self, pool: &str, reason: &str) {
        self.fallbacks.with_label_values(&[pool, reason]).inc();
    }

    /// Records a time to first token.
    pub fn first_token(&self, pool: &str, after: Duration) {
        self.ttft.with_label_values(&[pool]).observe(after.as_secs_f64());
    }

    /// The counters of one endpoint.
    pub fn endpoint(&self, pool: &str, endpoint: &str) -> EndpointMetrics {
        let labels = &[pool, endpoint];
        let errors = |kind| self.upstream_errors.with_label_values(&[pool, endpoint, kind]);
        EndpointMetrics {
            prompt_tokens: self.prompt_tokens.with_label_values(labels),
            predicted_cached_tokens: self.predicted_cached_tokens.with_label_values(labels),
            actual_cached_tokens: self.actual_cached_tokens.with_label_values(labels),
            usage_missing: self.usage_missing.with_label_values(labels),
            staged_tokens: self.staged_tokens.with_label_values(labels),
            connect_errors: errors("connect"),
            exchange_errors: errors("exchange"),
            timeouts: errors("timeout"),
            broken_answers: errors("broken_answer"),
            stalled: errors("stalled"),
            too_long: errors("too_long"),
            ejections: self.ejections.with_label_values(labels),
        }
    }

    /// Drops the series of an endpoint that was removed. What still runs there counts on unseen.
    pub fn forget_endpoint(&self, pool: &str, endpoint: &str) {
        let labels = &[pool, endpoint];
        let gauges = [
            &self.in_flight,
            &self.uncached_tokens_in_flight,
            &self.index_elements,
            &self.kv_capacity_tokens,
            &self.endpoint_up,
            &self.endpoint_draining,
            &self.endpoint_ejected,
            &self.endpoint_trusted,
        ];
        let counters = [
            &self.prompt_tokens,
            &self.predicted_cached_tokens,
            &self.actual_cached_tokens,
            &self.usage_missing,
            &self.staged_tokens,
            &self.ejections,
        ];
        // An error says that there was no such series.
        for gauge in gauges {
            let _ = gauge.remove_label_values(labels);
        }
        for counter in counters {
            let _ = counter.remove_label_values(labels);
        }
        for kind in ERROR_KINDS {
            let _ = self.upstream_errors.remove_label_values(&[pool, endpoint, kind]);
        }
        for result in STAGE_RESULTS {
            let _ = self.stage_calls.remove_label_values(&[pool, endpoint, result]);
        }
    }

    /// The counter of calls to an endpoint's cache node that ended in `result`.
    pub fn stage_calls(&self, pool: &str, endpoint: &str, result: &str) -> IntCounter {
        self.stage_calls.with_label_values(&[pool, endpoint, result])
    }

    /// All metrics in Prometheus' text form.
    pub fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(e) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(error = %e, "metrics cannot be written");
        }
        text
    }
}

fn status_text(code: u16, text: &mut [u8; 3]) -> &str {
    for (digit, place) in text.iter_mut().zip([100, 10, 1]) {
        *digit = b'0' + u8::try_from(code / place % 10).unwrap_or(0);
    }
    std::str::from_utf8(text).unwrap_or("000")
}

/// Makes a metric and registers it.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn register<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        c: C,
    ) -> Result<C, prometheus::Error> {
        self.0.register(Box::new(c.clone()))?;
        Ok(c)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.register(IntCounter::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.register(IntGauge::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
        self.register(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        labels: &[&str],
    ) -> Result<HistogramVec, prometheus::Error> {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?)
    }
}
