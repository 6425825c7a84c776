//! One engine instance as the policy sees it.

use std::borrow::Cow;
use std::sync::Arc;

use crate::estimate::{TtftLine, TtftModel};
use crate::foresight::Foresight;
use crate::index::HolderId;
use crate::link::Linked;
use crate::load::Load;
use crate::price::Crowd;
use crate::random::name_digest;
use crate::time::Now;
use crate::trust::Promises;

/// Names an endpoint of one [`Fleet`](crate::Fleet). Stays unique after the endpoint is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndpointId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Whether an endpoint may be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum EndpointState {
    /// It takes new requests.
    #[default]
    Available,
    /// It takes none, for the given reason; what it holds is kept for its return.
    Unavailable(Cow<'static, str>),
    /// It finishes what it has and takes no more.
    Draining,
}

/// How far the modelled KV capacity may move from the reported one, as a factor either way.
const CAPACITY_DRIFT: f64 = 8.0;

/// Share of an endpoint's time that those who have waited beyond the hold limit take before all others. All of it would
/// be first come, first served as soon as everyone is late, and then the hits of overload are misses when they come.
const OVERDUE_SHARE: f64 = 0.25;

/// Capacity of an endpoint's KV, in tokens: what was reported, and what feedback makes of it.
#[derive(Debug)]
pub(crate) struct Capacity {
    reported: f64,
    modelled: f64,
    /// Whether it was reported at all, and is not the pool's default.
    pub(crate) known: bool,
}

impl Capacity {
    pub(crate) fn new(tokens: u64, known: bool) -> Self {
        // A zero would divide nothing, but an endpoint without any KV does not exist.
        let tokens = tokens.max(1) as f64;
        Capacity { reported: tokens, modelled: tokens, known }
    }

    pub(crate) fn tokens(&self) -> f64 {
        self.modelled
    }

    pub(crate) fn scale(&mut self, factor: f64) {
        self.modelled =
            (self.modelled * factor).clamp(self.reported / CAPACITY_DRIFT, self.reported * CAPACITY_DRIFT);
    }
}

/// Everything known about one endpoint, except what the index holds under `holder`.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) name: Arc<str>,
    pub(crate) digest: u64,
    pub(crate) state: EndpointState,
    pub(crate) holder: HolderId,
    /// What is to come here with the requests that wait for it, once any does.
    pub(crate) queued: Option<HolderId>,
    /// Raised when the endpoint's cache was lost: older requests in flight pin nothing any more.
    pub(crate) epoch: u32,
    pub(crate) capacity: Capacity,
    /// Its cache was full once, and a cache that evicts only for what comes stays so. Feedback moves the modelled
    /// capacity by more than what separates full from not: an endpoint must not look roomy for that.
    pub(crate) filled: bool,
    pub(crate) ttft: TtftModel,
    pub(crate) load: Load,
    pub(crate) linked: Option<Linked>,
    pub(crate) crowd: Crowd,
    pub(crate) foresight: Foresight,
    /// Seconds that held requests beyond the hold limit may take before it is the others' turn.
    pub(crate) overdue_credit_s: f64,
    /// Sums over answers that told their cached tokens.
    pub(crate) predicted_cached_tokens: u64,
    pub(crate) actual_cached_tokens: u64,
    pub(crate) promises: Promises,
    /// Most requests in flight.
    pub(crate) max_in_flight: u32,
    /// When it came back after a failure.
    pub(crate) returned: Option<Now>,
    /// It fails: nobody is to wait for it.
    pub(crate) avoided: bool,
}

impl Endpoint {
    pub(crate) fn new(name: &str, holder: HolderId, kv_tokens: u64) -> Self {
        Endpoint {
            name: Arc::from(name),
            digest: name_digest(name),
            state: EndpointState::Available,
            holder,
            queued: None,
            epoch: 0,
            capacity: Capacity::new(kv_tokens, false),
            filled: false,
            ttft: TtftModel::empty(),
            load: Load::default(),
            linked: None,
            crowd: Crowd::default(),
            foresight: Foresight::default(),
            overdue_credit_s: 0.0,
            predicted_cached_tokens: 0,
            actual_cached_tokens: 0,
            promises: Promises::default(),
            max_in_flight: u32::MAX,
            returned: None,
            avoided: false,
        }
    }

    /// A held request of `service_s` is sent here, which has waited beyond the limit or not.
    pub(crate) fn ration(&mut self, overdue: bool, service_s: f64) {
        let change = if overdue { -service_s } else { service_s * OVERDUE_SHARE / (1.0 - OVERDUE_SHARE) };
        self.overdue_credit_s = (self.overdue_credit_s + change).min(0.0);
    }

    /// Capacity in elements of `element_tokens` tokens each.
    pub(crate) fn capacity_elements(&self, element_tokens: f64) -> u64 {
        // A float to integer cast saturates; a pool whose elements are unknown (0 tokens) holds without limit.
        (self.capacity.tokens() / element_tokens) as u64
    }

    /// What is expected of a prefill here.
    pub(crate) fn line(&self, pool: TtftLine, pool_count: f64, endpoints: usize) -> TtftLine {
        self.ttft.within(pool, pool_count, endpoints)
    }
}
