//! The shadow price: what one second of prefill at one endpoint costs everyone else.
//!
//! `X = (1 + F) * G`. **F**: everyone who joins the same busy period later waits that second too; it is the mean
//! number of requests that were already in the busy period that a request joined (predecessors and followers have
//! the same mean over the pool). One exception: an endpoint whose own mean is less than half of the pool's keeps its
//! own. When one endpoint draws a crowd, say by the system prompt that all requests share, its endless busy period
//! would otherwise make a copy of that prompt look dear at the idle endpoints too, and the crowd would stay. Below
//! that threshold the pool's mean is better: the noise of each endpoint's own, times a large price, is minutes.
//!
//! **G**: an inserted token evicts another, which is missed again with probability *p*, and so on: `1 / (1 - p)`,
//! measured as the seconds of work done over those that a cache which forgot nothing would have left. In slack X is about 1.5, under memory pressure 30. Nothing is tuned.
//!
//! With a warehouse, what was evicted may come back over a link: the work counted in G is prefill and fetch, so that
//! G falls by itself where fetches are quick, and a second of fetch costs the fetches behind it, **F of the link**.

/// Bound of G and of X; reached only in overload.
const CAP: f64 = 64.0;
/// Bound of one request's predecessors: an endless busy period says no more than a long one.
const PREDECESSORS_MAX: u32 = 256;
/// The horizon, in requests per endpoint.
const HORIZON_PER_ENDPOINT: f64 = 64.0;
/// An endpoint whose followers are below this share of the pool's mean is not part of the crowd.
const QUIET: f64 = 0.5;
/// A session that moves takes room where it comes to, and leaves a copy where it was that nobody touches again and that
/// is evicted in its turn: the room is taken twice until then, for half of the time that what is cached stays on average.
const TWICE: f64 = 0.5;
/// Work below this, in seconds, is rounding.
const WORK_MIN_S: f64 = 1e-9;

/// Requests that share a busy period at one endpoint.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Crowd {
    predecessors: f64,
    requests: f64,
    /// The pool's count of requests when the sums were last brought up to date.
    counted_at: u64,
}

impl Crowd {
    /// F at one endpoint. One request more than were counted makes it fall to 0 where none arrive any more.
    pub(crate) fn followers(&self, price: &Price) -> f64 {
        let keep = price.keep(self.counted_at);
        (keep * self.predecessors / (keep * self.requests + 1.0)).min(f64::from(PREDECESSORS_MAX))
    }

    /// Counts a request that found `predecessors` in its busy period.
    pub(crate) fn observe(&mut self, predecessors: u32, price: &Price) {
        let keep = price.keep(self.counted_at);
        self.predecessors = self.predecessors * keep + f64::from(predecessors.min(PREDECESSORS_MAX));
        self.requests = self.requests * keep + 1.0;
        self.counted_at = price.count;
    }
}

/// Decayed sums over one pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Price {
    count: u64,
    endpoints: usize,
    crowd: Crowd,
    /// Fetches that share a busy period of their link.
    fetches: Crowd,
    work_s: f64,
    compulsory_s: f64,
    /// Of the work, fetches; and the requests that did it.
    fetch_s: f64,
    started: f64,
}

/// The price at one moment, in the pool or at one endpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rates {
    /// F: others delayed by one second of prefill.
    pub(crate) followers: f64,
    /// F of the links: fetches delayed by one second of fetch.
    pub(crate) link_followers: f64,
    /// G: work over compulsory work, 1 to 64.
    pub(crate) recompute: f64,
}

impl Rates {
    /// X, at most 64.
    pub(crate) fn price(&self) -> f64 {
        ((1.0 + self.followers) * self.recompute).min(CAP)
    }

    /// Future misses for each second of insertion into a full cache, at most 64.
    pub(crate) fn space(&self) -> f64 {
        (TWICE * (self.recompute - 1.0) * (1.0 + self.followers)).clamp(0.0, CAP)
    }

    /// The same where what is evicted comes back over a link.
    pub(crate) fn link_space(&self) -> f64 {
        (TWICE * (self.recompute - 1.0) * (1.0 + self.link_followers)).clamp(0.0, CAP)
    }
}

impl Price {
    /// The pool's rates.
    pub(crate) fn rates(&self) -> Rates {
        let recompute =
            if self.work_s > WORK_MIN_S { self.work_s / self.compulsory_s.max(WORK_MIN_S) } else { 1.0 };
        Rates {
            followers: self.crowd.followers(self),
            link_followers: self.fetches.followers(self),
            recompute: recompute.clamp(1.0, CAP),
        }
    }

    /// Mean seconds of fetch of a request, 0 where nothing is fetched.
    pub(crate) fn mean_fetch_s(&self) -> f64 {
        if self.started > 0.0 { self.fetch_s / self.started } else { 0.0 }
    }

    /// The rates at an endpoint with this crowd, given the pool's.
    pub(crate) fn rates_at(&self, crowd: &Crowd, pool: Rates) -> Rates {
        let own = crowd.followers(self);
        if own < QUIET * pool.followers { Rates { followers: own, ..pool } } else { pool }
    }

    /// What is left of a sum that was up to date at `counted_at`.
    fn keep(&self, counted_at: u64) -> f64 {
        let horizon = HORIZON_PER_ENDPOINT * self.endpoints.max(1) as f64;
        (-(self.count.saturating_sub(counted_at) as f64) / horizon).exp()
    }

    /// Counts a placed request and how many shared its busy period before it.
    pub(crate) fn joined(&mut self, predecessors: u32, endpoints: usize) {
        self.endpoints = endpoints;
        self.count += 1;
        let mut crowd = self.crowd;
        crowd.observe(predecessors, self);
        self.crowd = crowd;
    }

    /// Counts a fetch that begins and how many shared its link's busy period before it.
    pub(crate) fn fetches(&mut self, predecessors: u32) {
        let mut fetches = self.fetches;
        fetches.observe(predecessors, self);
        self.fetches = fetches;
    }

    /// Counts a request that starts: the seconds of prefill and of fetch it needs, and those of prefill it would need
    /// had the pool forgotten nothing.
    pub(crate) fn worked(&mut self, miss_s: f64, fetch_s: f64, compulsory_s: f64) {
        let keep = self.keep(self.count.saturating_sub(1));
        let work_s = miss_s + fetch_s;
        self.work_s = self.work_s * keep + work_s;
        self.compulsory_s = self.compulsory_s * keep + compulsory_s.min(work_s);
        self.fetch_s = self.fetch_s * keep + fetch_s;
        self.started = self.started * keep + 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Price {
        /// A request that starts as it is placed.
        fn observe(&mut self, predecessors: u32, work_s: f64, compulsory_s: f64, endpoints: usize) {
            self.joined(predecessors, endpoints);
            self.worked(work_s, 0.0, compulsory_s);
        }
    }

    #[test]
    fn an_idle_pool_has_a_price_of_one() {
        assert_eq!(Price::default().rates().price(), 1.0);
        let mut price = Price::default();
        price.observe(0, 2.0, 2.0, 4);
        assert_eq!(price.rates(), Rates { followers: 0.0, link_followers: 0.0, recompute: 1.0 });
        assert_eq!(price.rates().space(), 0.0);
    }

    #[test]
    fn followers_and_recomputation_multiply() {
        let mut price = Price::default();
        for _ in 0..1_000 {
            price.observe(3, 2.0, 1.0, 4);
        }
        let rates = price.rates();
        assert!((rates.followers - 3.0).abs() < 0.02 && (rates.recompute - 2.0).abs() < 1e-9);
        assert!((rates.price() - 8.0).abs() < 0.04);
        assert!((rates.space() - 2.0).abs() < 0.01);
    }

    #[test]
    fn a_crowd_at_one_endpoint_is_dear_there_alone_and_is_forgotten_when_it_leaves() {
        let (mut price, mut crowded, mut idle) = (Price::default(), Crowd::default(), Crowd::default());
        for turn in 0..1_000 {
            let crowd = if turn % 20 == 0 { &mut idle } else { &mut crowded };
            let predecessors = if turn % 20 == 0 { 0 } else { 100 };
            price.observe(predecessors, 1.0, 1.0, 4);
            crowd.observe(predecessors, &price);
        }
        assert!(price.rates_at(&crowded, price.rates()).price() > 60.0);
        assert_eq!(price.rates_at(&idle, price.rates()).price(), 1.0);
        for _ in 0..4_000 {
            price.observe(0, 1.0, 1.0, 4);
        }
        assert!(price.rates_at(&crowded, price.rates()).price() < 1.1, "nobody came for sixteen horizons");
    }

    #[test]
    fn the_price_falls_when_pressure_does_and_is_always_bounded() {
        let mut price = Price::default();
        for _ in 0..1_000 {
            price.observe(u32::MAX, 10.0, 0.0, 4);
        }
        assert_eq!(price.rates().price(), 64.0);
        for _ in 0..3_000 {
            price.observe(0, 1.0, 1.0, 4);
        }
        assert!(price.rates().price() < 1.1, "{:?}", price.rates());
    }
}
