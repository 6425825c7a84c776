//! When the process is told to end, does everything that runs get finished, and nothing new begin?

use std::time::Duration;

use larder_tests::client::{self, Connection, Framing, json_request};
use larder_tests::raw::Raw;
use larder_tests::world::{Engine, Proxy, chat};
use tokio::net::TcpStream;

const CHAT: &str = "/v1/chat/completions";
/// Longest any end may take: all limits here are far below or far above.
const END_MAX: Duration = Duration::from_secs(20);

async fn refuses(proxy: &Proxy) {
    for _ in 0..1000 {
        if TcpStream::connect(proxy.address).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("new connections are still accepted");
}

#[tokio::test]
async fn what_runs_is_finished_and_nothing_new_begins() {
    for signal in ["TERM", "INT"] {
        // A stream of a second, and an answer that takes as long.
        let engine = Engine::start(&["--decode-step-s=0.02"]);
        let mut proxy = Proxy::start(&[&engine], "").await;
        let mut running = tokio::task::JoinSet::new();
        for framing in Framing::ALL {
            for stream in [true, false] {
                running.spawn(client::send(
                    proxy.address,
                    json_request(CHAT, &chat("hello", 50, stream)),
                    framing,
                ));
            }
        }
        engine.stat_reaches("running", 8).await;
        let mut idle = Raw::open(proxy.address).await;
        let mut idle_h2 = Connection::open(proxy.address, Framing::H2).await;
        assert_eq!(idle_h2.send(json_request(CHAT, "x")).await.unwrap().rest().await.unwrap().status, 400);
        proxy.program.signal(signal);
        client::wait_for(proxy.admin, "/readyz", http::StatusCode::SERVICE_UNAVAILABLE).await;
        assert!(client::get(proxy.admin, "/readyz").await.text().contains("draining"));
        assert_eq!(client::get(proxy.admin, "/healthz").await.status, 200, "it is alive while it drains");
        refuses(&proxy).await;
        assert!(idle.to_end().await.0.is_empty(), "idle connections are closed");
        while let Some(answer) = running.join_next().await {
            let answer = answer.unwrap();
            let text = answer.text();
            assert_eq!(answer.status, 200);
            assert!(
                text.ends_with("data: [DONE]\n\n") || text.contains("\"completion_tokens\":50"),
                "{text}"
            );
        }
        assert_eq!(proxy.program.exit_code(END_MAX).await, Some(0), "{signal}");
        assert_eq!(engine.stat("finished").await, 8);
        assert_eq!(engine.stat("aborted").await, 0);
    }
}

#[tokio::test]
async fn with_nothing_running_the_end_comes_at_once() {
    let engine = Engine::start(&[]);
    let mut proxy = Proxy::start(&[&engine], "[timeouts]\ndrain = \"1h\"").await;
    let kept = Raw::open(proxy.address).await;
    proxy.program.signal("TERM");
    assert_eq!(proxy.program.exit_code(END_MAX).await, Some(0));
    drop(kept);
}

#[tokio::test]
async fn the_limit_cuts_what_takes_too_long() {
    let engine = Engine::start(&[]);
    let mut proxy = Proxy::start(&[&engine], "[timeouts]\ndrain = \"300ms\"").await;
    // 100 s each.
    let mut streams = Vec::new();
    for framing in Framing::ALL {
        let mut stream =
            client::open(proxy.address, json_request(CHAT, &chat("hello", 5000, true)), framing).await;
        stream.piece().await.unwrap().unwrap();
        streams.push(stream);
    }
    proxy.program.signal("TERM");
    assert_eq!(proxy.program.exit_code(END_MAX).await, Some(0));
    for stream in streams {
        assert!(stream.rest().await.is_err(), "the cut is visible");
    }
    engine.stat_reaches("aborted", 4).await;
}

#[tokio::test]
async fn a_second_signal_does_not_wait() {
    for signals in [["TERM", "INT"], ["INT", "INT"]] {
        let engine = Engine::start(&[]);
        let mut proxy = Proxy::start(&[&engine], "[timeouts]\ndrain = \"1h\"").await;
        let mut stream =
            client::open(proxy.address, json_request(CHAT, &chat("hello", 5000, true)), Framing::Length)
                .await;
        stream.piece().await.unwrap().unwrap();
        proxy.program.signal(signals[0]);
        client::wait_for(proxy.admin, "/readyz", http::StatusCode::SERVICE_UNAVAILABLE).await;
        assert!(stream.piece().await.unwrap().is_ok(), "after one signal it goes on");
        assert!(proxy.program.runs());
        proxy.program.signal(signals[1]);
        assert_eq!(proxy.program.exit_code(END_MAX).await, Some(0));
        engine.stat_reaches("aborted", 1).await;
    }
}

#[tokio::test]
async fn a_request_on_an_open_connection_is_answered_or_refused_but_never_lost() {
    let engine = Engine::start(&["--time-scale=100"]);
    let mut proxy = Proxy::start(&[&engine], "").await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let address = proxy.address;
        clients.spawn(async move {
            let mut whole = 0;
            let mut connection = Connection::open(address, Framing::Length).await;
            // Ends when the connection does, between two answers or instead of one, never within one.
            while let Ok(exchange) = connection.send(json_request(CHAT, &chat("hello", 3, false))).await {
                let answer = exchange.rest().await.expect("an answer that began comes to its end");
                assert_eq!(answer.status, 200);
                whole += 1;
            }
            whole
        });
    }
    engine.stat_reaches("finished", 20).await;
    proxy.program.signal("TERM");
    let mut whole = 0;
    while let Some(done) = clients.join_next().await {
        whole += done.unwrap();
    }
    assert_eq!(proxy.program.exit_code(END_MAX).await, Some(0));
    assert_eq!(engine.stat("finished").await + engine.stat("aborted").await, whole, "each was answered");
}
