//! The endpoints of one model, and the choice among them.
//!
//! The decision itself is `larder-routing`'s, a pure state machine behind one lock that is held for microseconds:
//! prompts are hashed before it is taken, and nothing under it waits.

mod by_load;
mod change;
mod doubt;
mod guard;
mod hold;
mod in_flight;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderValue;
use larder_identity::{ChainHasher, HasherSettings, PromptChain, ToolsOrder};
use larder_routing::{
    Candidate, Decision, EndpointId, EndpointState, ExportCursor, Fleet, NoEndpoint, Now, Outcome,
    PolicyKind, RouteRequest, Settings, Ticket, Trust,
};
use parking_lot::Mutex;

use crate::decisions::Record;
use crate::metrics::{EndpointMetrics, Metrics};
use crate::retry::RetryBudget;
use crate::upstream::Upstream;
use crate::warehouse::CacheNode;
pub use change::{ENDPOINTS_MAX, NotAdded};
pub use guard::Guards;
pub use hold::AdmitError;
use hold::{Coming, Waiting};
pub use in_flight::InFlight;

/// One engine instance that can be chosen.
pub struct Endpoint {
    /// Its name in metrics, logs and `x-larder-endpoint`.
    pub name: String,
    /// The same, as a header value.
    pub header: HeaderValue,
    /// The connections to it.
    pub upstream: Upstream,
    /// Its number in the fleet.
    pub id: EndpointId,
    /// The models it last said it serves, as raw cards of its `/v1/models`.
    pub models: ArcSwap<Vec<ModelCard>>,
    /// The cache node beside it, where there is one.
    pub cache_node: Option<CacheNode>,
    /// Its counters.
    pub metrics: EndpointMetrics,
    /// Whether health checks found it able to answer; an endpoint not checked yet counts as able.
    pub healthy: AtomicBool,
    /// Whether it has been checked at least once.
    pub checked: AtomicBool,
    /// Whether an operator wants it to finish what it has and take no more.
    pub draining: AtomicBool,
    /// Whether it has been removed, so that nobody need check it any more.
    pub removed: AtomicBool,
    /// Requests in flight, beside the fleet's own count: for the choice without it.
    in_flight: AtomicU32,
    /// Of these, those that the fleet knows nothing of.
    outside: AtomicU32,
    /// Most requests in flight.
    max_in_flight: AtomicU32,
    /// When it came back after a failure: milliseconds of the pool's time and one; 0: never.
    returned: AtomicU64,
    /// The [`Trust`] last told of, as its number.
    trust: AtomicU8,
    guard: guard::Guard,
    doubt: doubt::Doubt,
}

impl Endpoint {
    fn new(id: EndpointId, plan: EndpointPlan, metrics: EndpointMetrics, guards: Guards) -> Arc<Self> {
        Arc::new(Self {
            header: HeaderValue::from_str(&plan.name).unwrap_or_else(|_| HeaderValue::from_static("-")),
            metrics,
            name: plan.name,
            upstream: plan.upstream,
            cache_node: plan.cache_node,
            id,
            models: ArcSwap::default(),
            healthy: AtomicBool::new(true),
            checked: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            outside: AtomicU32::new(0),
            max_in_flight: AtomicU32::new(plan.max_in_flight.unwrap_or(u32::MAX)),
            returned: AtomicU64::new(0),
            trust: AtomicU8::new(Trust::Estimated as u8),
            guard: guard::Guard::new(guards.breaker),
            doubt: doubt::Doubt::default(),
        })
    }

    /// Whether it takes new requests.
    pub fn takes_requests(&self) -> bool {
        self.healthy.load(Ordering::Relaxed) && !self.draining.load(Ordering::Relaxed)
    }

    /// Requests in flight there.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn state(&self) -> EndpointState {
        if self.draining.load(Ordering::Relaxed) {
            EndpointState::Draining
        } else if self.healthy.load(Ordering::Relaxed) {
            EndpointState::Available
        } else {
            EndpointState::Unavailable("failed its health checks".into())
        }
    }
}

/// A model as an engine lists it.
#[derive(Clone, Debug)]
pub struct ModelCard {
    /// Its id.
    pub id: String,
    /// The whole object.
    pub card: serde_json::Value,
}

/// The endpoints that serve one model.
pub struct Pool {
    /// The model's name, and the pool's.
    pub model: String,
    /// Other names that clients may use for it.
    pub aliases: Vec<String>,
    /// Hashes this pool's prompts.
    pub hasher: ChainHasher,
    /// Where its chat template renders tools: pools of one order share their hashes.
    pub tools_order: ToolsOrder,
    /// Bytes of prompt to an element of a chain.
    pub run_bytes: u32,
    /// Changed only under the fleet's lock.
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    pass_through: AtomicBool,
    shadow: AtomicBool,
    /// Whether the fleet has not been told yet of all that is in flight without it.
    outside_changed: AtomicBool,
    /// Milliseconds that a slow start takes.
    slow_start: AtomicU64,
    /// Taken before `waiting`, where both are.
    fleet: Mutex<Fleet>,
    waiting: Mutex<Waiting>,
    coming: Coming,
    origin: Instant,
    /// Seconds of the fleet's clock for each second of the wall.
    time_scale: f64,
    guards: Mutex<Guards>,
    retries: Mutex<RetryBudget>,
    metrics: Arc<Metrics>,
}

/// What an [`Endpoint`] is made from.
pub struct EndpointPlan {
    /// Its name.
    pub name: String,
    /// The connections to it.
    pub upstream: Upstream,
    /// Its KV capacity in tokens, where the operator says it.
    pub kv_tokens: Option<u64>,
    /// Requests in flight at most, where there is a bound.
    pub max_in_flight: Option<u32>,
    /// The cache node beside it, where there is one.
    pub cache_node: Option<CacheNode>,
}

/// What is asked of a pool.
pub struct Wanted<'a> {
    /// The prompt, where it has a chain.
    pub prompt: Option<&'a PromptChain>,
    /// What identifies the client's session, where something does.
    pub session: Option<u64>,
    /// Whether the client asked for a stream, so that the first token will be seen.
    pub streamed: bool,
    /// Endpoints that must not be chosen (again).
    pub exclude: &'a [EndpointId],
    /// The request's id, for whoever asks why.
    pub id: &'a str,
}

impl<'a> Wanted<'a> {
    fn request(&self) -> RouteRequest<'a> {
        RouteRequest {
            chain: self.prompt.map_or(&[], |p| p.elements()),
            run_bytes: self.prompt.map_or(0, |p| p.run_bytes().get().try_into().unwrap_or(u32::MAX)),
            prompt_bytes: self.prompt.map_or(0, |p| p.bytes()),
            media: self.prompt.map_or(0, |p| p.media()),
            session: self.session,
            streamed: self.streamed,
            exclude: self.exclude,
        }
    }
}

impl Pool {
    /// A pool of `model`, with `plans` for its endpoints. The fleet's clock runs `time_scale` times as fast as the wall's.
    pub fn new(
        (model, aliases): (String, Vec<String>),
        plans: Vec<EndpointPlan>,
        hashing: HasherSettings,
        (settings, guards, time_scale): (Settings, Guards, f64),
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let origin = Instant::now();
        let slow_start = by_load::millis(settings.slow_start_s);
        let mut fleet = Fleet::new(settings);
        let enter = |plan| change::enter(&mut fleet, Now::ZERO, (plan, &model), (&metrics, guards));
        let endpoints: Vec<_> = plans.into_iter().map(enter).collect();
        metrics.pool(&model);
        let tools_order = hashing.tools_order;
        let run_bytes = hashing.run_bytes.get().try_into().unwrap_or(u32::MAX);
        let hasher = ChainHasher::new(hashing);
        Arc::new(Self {
            model,
            aliases,
            hasher,
            tools_order,
            run_bytes,
            endpoints: ArcSwap::from_pointee(endpoints),
            pass_through: AtomicBool::new(false),
            shadow: AtomicBool::new(false),
            outside_changed: AtomicBool::new(false),
            slow_start: AtomicU64::new(slow_start),
            fleet: Mutex::new(fleet),
            waiting: Mutex::default(),
            coming: Coming::default(),
            origin,
            time_scale,
            guards: Mutex::new(guards),
            retries: Mutex::new(RetryBudget::new(guards.retry)),
            metrics,
        })
    }

    /// Its endpoints now.
    pub fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }

    /// Switches the decision core off or on: while it is off, requests go to the least loaded endpoint, none is held
    /// back, and nothing is staged.
    pub fn set_pass_through(&self, on: bool) {
        if self.pass_through.swap(on, Ordering::Relaxed) != on {
            tracing::warn!(pool = self.model, on, "pass-through");
        }
        self.update_holding();
    }

    /// Whether the decision core is switched off.
    pub fn passes_through(&self) -> bool {
        self.pass_through.load(Ordering::Relaxed)
    }

    /// Lets the policy decide without being followed, or be followed again. Pass-through goes before it.
    pub fn set_shadow(&self, on: bool) {
        if self.shadow.swap(on, Ordering::Relaxed) != on {
            tracing::warn!(pool = self.model, on, "shadow");
        }
        self.update_holding();
    }

    /// While requests go past the decision core it holds nobody, and those held before go at once.
    fn update_holding(&self) {
        self.change(|fleet, _| fleet.set_view_is_whole(!self.passes_through() && !self.is_shadow()));
    }

    /// Whether requests go by load while the policy only says what it would do.
    pub fn is_shadow(&self) -> bool {
        self.shadow.load(Ordering::Relaxed)
    }

    /// How it chooses.
    pub fn policy(&self) -> PolicyKind {
        self.fleet.lock().policy()
    }

    /// Whether clients may call its model `name`: by config, or because an engine lists it (an adapter).
    pub fn serves(&self, name: &str) -> bool {
        self.is_own_name(name) || self.endpoints.load().iter().any(|e| lists(e, name))
    }

    fn is_own_name(&self, name: &str) -> bool {
        self.model == name || self.aliases.iter().any(|a| a == name)
    }

    /// Endpoints that cannot serve `name`: an adapter that some engines list and others do not.
    pub fn not_serving(&self, name: &str) -> Vec<EndpointId> {
        if self.is_own_name(name) {
            return Vec::new();
        }
        self.endpoints.load().iter().filter(|e| !lists(e, name)).map(|e| e.id).collect()
    }

    /// Whether there is an endpoint that is none of these.
    pub fn has_another(&self, exclude: &[EndpointId]) -> bool {
        self.endpoints.load().iter().any(|endpoint| !exclude.contains(&endpoint.id))
    }

    /// Chooses an endpoint and counts the request as its load, until the [`InFlight`] goes.
    ///
    /// # Errors
    /// No endpoint may be chosen; says why.
    pub fn route(self: &Arc<Self>, wanted: &Wanted<'_>, arrived: Instant) -> Result<InFlight, NoEndpoint> {
        if self.passes_through() {
            return self.by_load(wanted, arrived);
        }
        let mut fleet = self.fleet.lock();
        self.tell_of_outside(&mut fleet);
        let (request, now) = (wanted.request(), self.now());
        let routed = if self.is_shadow() { fleet.shadow(&request, now) } else { fleet.route(&request, now) };
        drop(fleet);
        self.in_flight(routed?, wanted, arrived)
    }

    fn in_flight(
        self: &Arc<Self>,
        decision: Decision,
        wanted: &Wanted<'_>,
        arrived: Instant,
    ) -> Result<InFlight, NoEndpoint> {
        let chosen = self.endpoint(decision.endpoint);
        // Counted by the endpoint too, since the fleet does not see what was chosen without it meanwhile.
        let Some(endpoint) = chosen.filter(|endpoint| endpoint.begin_within(endpoint.bound())) else {
            // Removed or filled up since the decision, which is made anew among those that are left.
            self.change(|fleet, now| fleet.finish(decision.ticket, Outcome::FailedBeforeFirstByte, now));
            return self.route(wanted, arrived);
        };
        let record = Record::new(wanted.id, &self.model, &decision);
        let missing_tokens = missing(&decision);
        let Decision { ticket, reason, matched_tokens, held_s, .. } = decision;
        self.metrics.decided(&self.model, reason.label());
        let mut in_flight = self.begin(endpoint, wanted, arrived, record);
        in_flight.ticket = Some(ticket);
        in_flight.matched_tokens = matched_tokens;
        in_flight.missing_tokens = missing_tokens;
        in_flight.held = self.wall(held_s);
        Ok(in_flight)
    }

    /// A request that is counted as an endpoint's load already, with what is known of it without the fleet.
    fn begin(
        self: &Arc<Self>,
        endpoint: Arc<Endpoint>,
        wanted: &Wanted<'_>,
        arrived: Instant,
        record: Arc<Record>,
    ) -> InFlight {
        InFlight {
            pool: Arc::clone(self),
            probe: endpoint.guard.begin(self.origin.elapsed()),
            endpoint,
            ticket: None,
            settled: false,
            arrived,
            matched_tokens: 0,
            missing_tokens: 0,
            held: Duration::ZERO,
            has_prompt: wanted.prompt.is_some(),
            place: None,
            record,
        }
    }

    /// A digest of how its prompts are hashed, the secret included: chains of pools with the same one are comparable.
    pub fn fingerprint(&self) -> u64 {
        // Longer than the longest run, so that it has an element.
        let body = format!("{{\"prompt\":\"{}\"}}", "larder ".repeat(1_200));
        let chain = self.hasher.walk(larder_identity::Api::Completions, b"", body.as_bytes()).prompt;
        let elements = chain.map(|chain| chain.elements().to_vec()).unwrap_or_default();
        elements
            .iter()
            .fold(1, |sum, element| xxhash_rust::xxh3::xxh3_64_with_seed(&element.to_le_bytes(), sum))
    }

    /// What is believed of who holds what, see [`Fleet::export`].
    pub fn export_index(
        &self,
        from: ExportCursor,
        most: usize,
        each: impl FnMut(&str, &[u64]),
    ) -> Option<ExportCursor> {
        self.fleet.lock().export(from, most, each)
    }

    /// Takes what an endpoint was believed to hold once as what it holds now.
    pub fn remember_held(&self, endpoint: &Endpoint, elements: &[u64], run_bytes: u32) {
        self.fleet.lock().remember_held(endpoint.id, elements, run_bytes);
    }

    /// What [`Pool::route`] would weigh, the cheapest first. Changes nothing.
    pub fn explain(&self, wanted: &Wanted<'_>) -> Vec<Candidate> {
        self.fleet.lock().explain(&wanted.request(), self.now())
    }

    /// Records what a health check found.
    pub fn set_healthy(&self, endpoint: &Endpoint, healthy: bool) {
        if endpoint.healthy.swap(healthy, Ordering::Relaxed) == healthy {
            return;
        }
        if healthy {
            tracing::info!(pool = self.model, endpoint = endpoint.name, "endpoint is back");
            self.fleet.lock().returned(endpoint.id, self.now());
            self.note_return(endpoint);
        }
        self.update_state(endpoint);
    }

    /// Records the KV capacity that an engine reports, in tokens.
    pub fn set_kv_tokens(&self, endpoint: &Endpoint, tokens: u64) {
        self.fleet.lock().set_kv_tokens(endpoint.id, tokens);
    }

    /// Forgets what an engine held: it has restarted.
    pub fn restarted(&self, endpoint: &Endpoint) {
        tracing::info!(
            pool = self.model,
            endpoint = endpoint.name,
            "engine restarted, its cache counts as empty"
        );
        self.fleet.lock().cleared(endpoint.id);
    }

    /// Writes the pool's gauges.
    pub fn export(&self) {
        // Under the lock, or a series that was just dropped would come back.
        let fleet = self.fleet.lock();
        let stats = fleet.snapshot(self.now());
        let endpoints = self.endpoints();
        let m = &self.metrics;
        let pool = self.model.as_str();
        for endpoint in endpoints.iter() {
            let Some(e) = stats.endpoints.iter().find(|e| e.endpoint == endpoint.id) else { continue };
            let labels = &[pool, endpoint.name.as_str()];
            m.in_flight.with_label_values(labels).set(gauge(endpoint.in_flight.load(Ordering::Relaxed)));
            m.uncached_tokens_in_flight.with_label_values(labels).set(gauge(e.uncached_tokens));
            m.index_elements.with_label_values(labels).set(gauge(e.elements));
            m.kv_capacity_tokens.with_label_values(labels).set(gauge(e.kv_tokens));
            m.endpoint_trusted.with_label_values(labels).set(i64::from(e.trust == Trust::Estimated));
            m.endpoint_up.with_label_values(labels).set(i64::from(endpoint.healthy.load(Ordering::Relaxed)));
            let draining = endpoint.draining.load(Ordering::Relaxed);
            m.endpoint_ejected.with_label_values(labels).set(i64::from(!endpoint.guard.is_closed()));
            m.endpoint_draining.with_label_values(labels).set(i64::from(draining));
        }
        m.index_bytes.with_label_values(&[pool]).set(gauge(stats.index_bytes));
        m.held_requests.with_label_values(&[pool]).set(gauge(stats.held));
        m.shadow_price.with_label_values(&[pool]).set(stats.price);
        m.bytes_per_token.with_label_values(&[pool]).set(stats.bytes_per_token);
    }

    fn endpoint(&self, id: EndpointId) -> Option<Arc<Endpoint>> {
        self.endpoints.load().iter().find(|e| e.id == id).cloned()
    }

    fn now(&self) -> Now {
        Now::from_secs_f64(self.origin.elapsed().as_secs_f64() * self.time_scale)
    }

    /// The time by the wall that so many seconds of the fleet's clock take.
    fn wall(&self, seconds: f64) -> Duration {
        Duration::try_from_secs_f64(seconds / self.time_scale).unwrap_or(Duration::MAX)
    }

    /// Ends a request, and says so once when its answer changed what is to be believed of its endpoint.
    fn settle(&self, ticket: Ticket, outcome: Outcome, endpoint: &Endpoint) {
        let trust = self.change(|fleet, now| {
            fleet.finish(ticket, outcome, now);
            fleet.trust(endpoint.id)
        });
        let Some(trust) = trust else { return };
        if endpoint.trust.swap(trust as u8, Ordering::Relaxed) != trust as u8 {
            if trust == Trust::Estimated {
                tracing::info!(
                    pool = self.model,
                    endpoint = endpoint.name,
                    "its answers confirm what it holds"
                );
            } else {
                tracing::warn!(pool = self.model, endpoint = endpoint.name, reason = %trust, "untrusted");
            }
        }
    }
}

/// See [`InFlight::missing_tokens`].
fn missing(decision: &Decision) -> u64 {
    let declined = decision.warehoused_tokens > 0 && decision.fetch_tokens == 0;
    if declined { 0 } else { decision.prompt_tokens.saturating_sub(decision.matched_tokens) }
}

fn lists(endpoint: &Endpoint, name: &str) -> bool {
    endpoint.models.load().iter().any(|m| m.id == name)
}

fn gauge(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
