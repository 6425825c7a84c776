use super::*;
use crate::{Outcome, Reason, RouteRequest, Usage};

fn at(seconds: f64) -> Now {
    Now::from_secs_f64(seconds)
}

fn request(chain: &[u64]) -> RouteRequest<'_> {
    RouteRequest {
        chain,
        run_bytes: 512,
        prompt_bytes: chain.len() as u64 * 512,
        media: 0,
        session: None,
        streamed: true,
        exclude: &[],
    }
}

#[test]
fn smoke() {
    fn sendable<T: Send>(_: &T) {}
    let mut fleet = Fleet::new(Settings::default());
    sendable(&fleet);
    fleet.add_endpoint("a", Now::ZERO);
    fleet.add_endpoint("b", Now::ZERO);
    let chain: Vec<u64> = (1..100).collect();
    let d = fleet.route(&request(&chain), at(1.0)).unwrap();
    assert_eq!(d.reason, Reason::Cold);
    fleet.first_token(&d.ticket, at(2.0));
    let usage = Usage { prompt_tokens: 99 * 128, cached_tokens: Some(0) };
    fleet.finish(d.ticket, Outcome::Completed { usage: Some(usage) }, at(3.0));
    let d2 = fleet.route(&request(&chain), at(4.0)).unwrap();
    assert_eq!(d2.reason, Reason::PrefixHit);
    assert_eq!(d2.endpoint, d.endpoint);
}
