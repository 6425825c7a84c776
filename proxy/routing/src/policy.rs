//! Choosing one of the candidates. A policy sees terms in seconds and answers with an index and a reason.

mod larder;
mod min_ttft;
mod round_robin;
mod session_hash;

use crate::price::Rates;
use crate::random::Random;
use crate::{PolicyKind, Reason};

/// What a request needs of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Needed {
    /// Seconds of work, and of these of fetch.
    pub(crate) service_s: f64,
    pub(crate) fetch_s: f64,
    /// Of its memory, while it runs.
    pub(crate) tokens: f64,
}

/// One candidate's terms.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Its slot in the fleet.
    pub(crate) slot: u32,
    /// Digest of its name, the same in every proxy.
    pub(crate) digest: u64,
    /// Leading chain elements it holds.
    pub(crate) matched: u32,
    pub(crate) matched_tokens: f64,
    pub(crate) uncached_tokens: f64,
    /// Seconds until it can turn to the request, those held for it included.
    pub(crate) wait_s: f64,
    pub(crate) base_s: f64,
    pub(crate) miss_s: f64,
    /// Of the prompt, what a warehouse brings in time of the prefill of the rest, and the seconds that takes.
    pub(crate) fetch_tokens: f64,
    pub(crate) fetch_s: f64,
    /// Of the prompt, what the warehouse is believed to have beyond what is matched, fetched or not.
    pub(crate) warehoused_tokens: f64,
    /// Seconds until the link can turn to it.
    pub(crate) link_wait_s: f64,
    /// Seconds by which a token that is evicted comes back, where a warehouse is quicker at that than prefill.
    pub(crate) refetch_token_s: Option<f64>,
    pub(crate) full: bool,
    pub(crate) in_flight: u32,
    pub(crate) decoding: u32,
    /// Leading elements that it will have got from requests that wait for it, if more than it holds, and the seconds of
    /// work that are left then.
    pub(crate) coming: u32,
    pub(crate) coming_s: f64,
    /// Filled in from [`Policy::cost`].
    pub(crate) cost_s: f64,
}

impl Terms {
    /// Seconds until the prefill can begin: the engine's turn, and what is fetched for it.
    pub(crate) fn begins_s(&self) -> f64 {
        if self.fetch_tokens > 0.0 { self.wait_s.max(self.link_wait_s + self.fetch_s) } else { self.wait_s }
    }

    /// Seconds of work that the request needs, of the engine and of the link.
    pub(crate) fn service_s(&self) -> f64 {
        self.miss_s + self.fetch_s
    }

    /// What it takes, as things are.
    pub(crate) fn needed(&self) -> Needed {
        let tokens = self.matched_tokens + self.uncached_tokens + self.fetch_tokens;
        Needed { service_s: self.service_s(), fetch_s: self.fetch_s, tokens }
    }

    /// The same once it is its turn, with what comes there before.
    pub(crate) fn needed_then(&self) -> Needed {
        let now = self.needed();
        if self.coming > self.matched {
            Needed { service_s: self.coming_s, fetch_s: 0.0, ..now }
        } else {
            now
        }
    }
}

/// What a policy may look at.
pub(crate) struct View<'a> {
    /// At least one; costs are filled in.
    pub(crate) candidates: &'a [Terms],
    pub(crate) session: Option<u64>,
    pub(crate) chain: &'a [u64],
}

/// A choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pick {
    /// Index into [`View::candidates`].
    pub(crate) index: usize,
    pub(crate) reason: Reason,
}

/// A way of choosing.
pub(crate) trait Policy: Send {
    /// Cost in seconds, lower is better, finite for finite terms.
    fn cost(&self, terms: &Terms, rates: &Rates) -> f64;

    /// One of the candidates.
    fn pick(&mut self, view: &View<'_>, random: &mut Random) -> Pick;
}

/// The policy of a name.
pub(crate) fn of(kind: PolicyKind) -> Box<dyn Policy> {
    match kind {
        PolicyKind::Larder => Box::new(larder::Larder),
        PolicyKind::MinTtft => Box::new(min_ttft::MinTtft),
        PolicyKind::SessionHash => Box::new(session_hash::SessionHash),
        PolicyKind::RoundRobin => Box::new(round_robin::RoundRobin::default()),
    }
}

/// Costs this close are equal: rounding, not reason, separates them. In seconds.
const TIE_S: f64 = 1e-6;

/// The cheapest candidate, by lot among equals, and what that means for the prompt.
fn cheapest(view: &View<'_>, random: &mut Random) -> Pick {
    let least = view.candidates.iter().map(|terms| terms.cost_s).fold(f64::INFINITY, f64::min);
    let ties = || view.candidates.iter().enumerate().filter(|(_, terms)| terms.cost_s <= least + TIE_S);
    let drawn = random.below(ties().count());
    let index = ties().nth(drawn).map_or(0, |(index, _)| index);
    Pick { index, reason: reason_of(view, index) }
}

fn reason_of(view: &View<'_>, chosen: usize) -> Reason {
    let most = view.candidates.iter().map(|terms| terms.matched).max().unwrap_or(0);
    if view.candidates.len() == 1 {
        Reason::OnlyCandidate
    } else if view.chain.is_empty() {
        Reason::NoAffinity
    } else if most == 0 {
        Reason::Cold
    } else if view.candidates[chosen].matched < most {
        Reason::Spill
    } else {
        Reason::PrefixHit
    }
}

#[cfg(test)]
mod tests;
