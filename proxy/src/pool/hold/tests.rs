use larder_identity::{HasherSettings, Secret};
use larder_routing::Settings;

use super::*;
use crate::metrics::Metrics;
use crate::pool::{EndpointPlan, Guards};
use crate::upstream::{Limits, Upstream};
use crate::{breaker, retry};

fn pool() -> Arc<Pool> {
    pool_of(None)
}

/// Two endpoints with so many requests each at most.
fn pool_of(max_in_flight: Option<u32>) -> Arc<Pool> {
    let second = Duration::from_secs(1);
    let plan = |name: &str| EndpointPlan {
        name: name.to_owned(),
        upstream: Upstream::new(name.to_owned(), Limits { connect: second, first_byte: second, idle: 1 }),
        kv_tokens: None,
        max_in_flight,
        cache_node: None,
    };
    let hashing = HasherSettings::new(Secret::derive(b"test"));
    let plans = vec![plan("127.0.0.1:1"), plan("127.0.0.1:2")];
    let metrics = Arc::new(Metrics::new().unwrap());
    let guards = Guards {
        breaker: breaker::Settings { failures: 5, open: second, open_max: second },
        retry: retry::Settings { ratio: 0.2, burst: 10.0 },
    };
    Pool::new(("m".to_owned(), Vec::new()), plans, hashing, (Settings::default(), guards, 1.0), metrics)
}

const ANY: Wanted<'static> = Wanted { prompt: None, session: None, streamed: true, exclude: &[], id: "" };

/// A core that does not answer within its time costs a good choice, never the request; load is spread and released.
#[expect(clippy::await_holding_lock, reason = "a held lock is the slow core; the one await does not pend")]
#[tokio::test]
async fn a_slow_core_is_gone_around_by_least_load() {
    let pool = pool();
    let chosen = {
        let _busy = pool.fleet.lock();
        [pool.admit(&ANY, Instant::now()).await.unwrap(), pool.admit(&ANY, Instant::now()).await.unwrap()]
    };
    assert_ne!(chosen[0].endpoint().name, chosen[1].endpoint().name);
    let excluded = [chosen[0].endpoint().id];
    let wanted = Wanted { exclude: &excluded, ..ANY };
    let third = pool.fallback(&wanted, Instant::now(), "slow").unwrap();
    assert_eq!(third.endpoint().name, chosen[1].endpoint().name);
    drop((chosen, third));
    assert!(pool.endpoints().iter().all(|e| e.in_flight.load(std::sync::atomic::Ordering::Relaxed) == 0));
    let text = String::from_utf8(pool.metrics.text()).unwrap();
    assert!(text.contains("larder_decision_fallbacks_total{pool=\"m\",reason=\"slow\"} 3"), "{text}");
}

/// The negative control: a core that answers is asked.
#[tokio::test]
async fn a_core_that_answers_is_not_gone_around() {
    let pool = pool();
    drop(pool.admit(&ANY, Instant::now()).await.unwrap());
    let text = String::from_utf8(pool.metrics.text()).unwrap();
    assert!(text.contains("larder_decision_fallbacks_total{pool=\"m\",reason=\"slow\"} 0"));
}

/// While another is on its way a request waits for it, though all is free, and the last hands out for both.
#[test]
fn who_comes_while_another_is_taken_in_is_placed_with_it() {
    let pool = pool();
    pool.coming.count.fetch_add(1, Ordering::Relaxed);
    let (first, turn) = pool.submit(&ANY);
    assert!(matches!(first, Verdict::Settled(Ok(Submitted::Held(_)))));
    let mut turn = turn.unwrap();
    assert!(turn.try_recv().is_err());
    pool.coming.count.fetch_sub(1, Ordering::Relaxed);
    let (last, its_turn) = pool.submit(&ANY);
    assert!(turn.try_recv().unwrap().is_ok());
    match last {
        Verdict::Settled(Ok(Submitted::Go(_))) => {}
        _ => assert!(its_turn.unwrap().try_recv().unwrap().is_ok()),
    }
    assert_eq!(pool.coming.count.load(Ordering::Relaxed), 0);
}

/// Those held when the core is switched off do not wait for it any more; with it on (the negative control) they do.
#[test]
fn pass_through_lets_those_go_who_are_held() {
    let pool = pool();
    let long = larder_routing::RouteRequest {
        chain: &[],
        run_bytes: 512,
        prompt_bytes: 4_000_000,
        media: 0,
        session: None,
        streamed: true,
        exclude: &[],
    };
    let submit = || pool.fleet.lock().submit(&long, pool.now()).unwrap();
    let running = [submit(), submit()];
    assert!(running.iter().all(|submitted| matches!(submitted, Submitted::Go(_))));
    let Submitted::Held(id) = submit() else { panic!("both are busy") };
    let (sender, mut turn) = oneshot::channel();
    pool.waiting.lock().turns.insert(id, sender);
    pool.change(|_, _| ());
    assert!(turn.try_recv().is_err(), "both are busy still");
    pool.set_pass_through(true);
    assert!(turn.try_recv().unwrap().is_ok());
}

#[tokio::test]
async fn nobody_able_is_an_error_on_either_way() {
    let pool = pool();
    let all: Vec<_> = pool.endpoints().iter().map(|e| e.id).collect();
    let wanted = Wanted { exclude: &all, ..ANY };
    assert!(pool.admit(&wanted, Instant::now()).await.is_err());
    assert!(pool.fallback(&wanted, Instant::now(), "slow").is_err());
}

/// Whether a future waits.
async fn waits<T>(future: &mut std::pin::Pin<&mut impl Future<Output = T>>) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending())).await
}

/// What was sent while the core was slow counts to the endpoints' bounds when it is back.
#[expect(clippy::await_holding_lock, reason = "a held lock is the slow core; the one await does not pend")]
#[tokio::test]
async fn what_was_sent_around_the_core_takes_places() {
    let pool = pool_of(Some(1));
    let around = {
        let _busy = pool.fleet.lock();
        pool.admit(&ANY, Instant::now()).await.unwrap()
    };
    let inside = pool.admit(&ANY, Instant::now()).await.unwrap();
    assert_ne!(around.endpoint().name, inside.endpoint().name);
    let mut third = std::pin::pin!(pool.admit(&ANY, Instant::now()));
    assert!(waits(&mut third).await, "both are full");
    let name = around.endpoint().name.clone();
    drop(around);
    let third = third.await.unwrap();
    assert_eq!(third.endpoint().name, name);
    drop((inside, third));
    // Both bounds are whole again.
    let two =
        [pool.admit(&ANY, Instant::now()).await.unwrap(), pool.admit(&ANY, Instant::now()).await.unwrap()];
    assert_ne!(two[0].endpoint().name, two[1].endpoint().name);
}

/// A place that is taken between a decision and its request is not taken twice.
#[tokio::test]
async fn a_decision_whose_place_was_taken_meanwhile_is_made_anew() {
    let pool = pool_of(Some(1));
    let decided = pool.fleet.lock().route(&ANY.request(), pool.now()).unwrap();
    let others: Vec<_> = pool.endpoints().iter().map(|e| e.id).filter(|id| *id != decided.endpoint).collect();
    let wanted = Wanted { exclude: &others, ..ANY };
    let around = pool.fallback(&wanted, Instant::now(), "slow").unwrap();
    let moved = pool.in_flight(decided, &ANY, Instant::now()).unwrap();
    assert_eq!(moved.endpoint().id, others[0]);
    let decided = pool.fleet.lock().route(&ANY.request(), pool.now());
    assert!(decided.is_err_and(|why| why.full == 2), "the core knows that both are full");
    drop((around, moved));
    assert!(pool.endpoints().iter().all(|e| e.in_flight() == 0));
}
