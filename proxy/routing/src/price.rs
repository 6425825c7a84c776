//! The shadow price: what one second of prefill at one endpoint costs everyone else.
//!
//! `X = (1 + F) * G`. **F**: everyone who joins the same busy period later waits that second too; it is the mean
//! number of requests that were already in the busy period that a request joined (predecessors and followers have
//! the same mean). **G**: an inserted token evicts another, which is missed again with probability *p*, and so on:
//! `1 / (1 - p)`, measured as the seconds of work done over those that a cache which forgot nothing would have
//! left. In slack X is about 1.5, under memory pressure 30. Nothing is tuned.

/// Bound of G and of X; reached only in overload.
const CAP: f64 = 64.0;
/// Bound of one request's predecessors: an endless busy period says no more than a long one.
const PREDECESSORS_MAX: u32 = 256;
/// The horizon, in requests per endpoint.
const HORIZON_PER_ENDPOINT: f64 = 64.0;
/// Work below this, in seconds, is rounding.
const WORK_MIN_S: f64 = 1e-9;

/// Decayed sums over one pool.
#[derive(Debug, Clone, Default)]
pub(crate) struct Price {
    predecessors: f64,
    requests: f64,
    work_s: f64,
    compulsory_s: f64,
}

/// The price at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rates {
    /// F: others delayed by one second of prefill.
    pub(crate) followers: f64,
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
        ((self.recompute - 1.0) * (1.0 + self.followers)).clamp(0.0, CAP)
    }
}

impl Price {
    pub(crate) fn rates(&self) -> Rates {
        let followers = if self.requests > 0.0 { self.predecessors / self.requests } else { 0.0 };
        let recompute =
            if self.work_s > WORK_MIN_S { self.work_s / self.compulsory_s.max(WORK_MIN_S) } else { 1.0 };
        Rates {
            followers: followers.clamp(0.0, f64::from(PREDECESSORS_MAX)),
            recompute: recompute.clamp(1.0, CAP),
        }
    }

    /// Counts a routed request: how many shared its busy period before it, the seconds of prefill it needs, and
    /// those it would need had the pool forgotten nothing.
    pub(crate) fn observe(&mut self, predecessors: u32, work_s: f64, compulsory_s: f64, endpoints: usize) {
        let keep = (-1.0 / (HORIZON_PER_ENDPOINT * endpoints.max(1) as f64)).exp();
        self.predecessors = self.predecessors * keep + f64::from(predecessors.min(PREDECESSORS_MAX));
        self.requests = self.requests * keep + 1.0;
        self.work_s = self.work_s * keep + work_s;
        self.compulsory_s = self.compulsory_s * keep + compulsory_s.min(work_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_pool_has_a_price_of_one() {
        assert_eq!(Price::default().rates().price(), 1.0);
        let mut price = Price::default();
        price.observe(0, 2.0, 2.0, 4);
        assert_eq!(price.rates(), Rates { followers: 0.0, recompute: 1.0 });
        assert_eq!(price.rates().space(), 0.0);
    }

    #[test]
    fn followers_and_recomputation_multiply() {
        let mut price = Price::default();
        for _ in 0..1_000 {
            price.observe(3, 2.0, 1.0, 4);
        }
        let rates = price.rates();
        assert!((rates.followers - 3.0).abs() < 1e-9 && (rates.recompute - 2.0).abs() < 1e-9);
        assert!((rates.price() - 8.0).abs() < 1e-9);
        assert!((rates.space() - 4.0).abs() < 1e-9);
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
