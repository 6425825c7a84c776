use super::*;
use crate::cli::{Command, parse};
use std::path::PathBuf;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ANSWER: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n\
    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n\
    data: [DONE]\n\n";

/// What arrived, as (session header, body).
type Seen = Arc<Mutex<Vec<(String, String)>>>;

/// An upstream that keeps connections open; answers 500 where the body contains `broken`.
async fn upstream(broken: &'static str) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Seen::default();
    let shared = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&shared), broken));
        }
    });
    (url, seen)
}

async fn serve(mut stream: TcpStream, seen: Seen, broken: &str) -> Option<()> {
    let mut input = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = memchr::memmem::find(&input, b"\r\n\r\n") {
                break String::from_utf8(input.drain(..end + 4).collect()).unwrap().to_lowercase();
            }
            (stream.read_buf(&mut input).await.ok()? > 0).then_some(())?;
        };
        let header = |name: &str| {
            head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim().to_owned()
        };
        let length: usize = header("content-length:").parse().unwrap();
        while input.len() < length {
            (stream.read_buf(&mut input).await.ok()? > 0).then_some(())?;
        }
        let body = String::from_utf8(input.drain(..length).collect()).unwrap();
        let (status, text) = if body.contains(broken) { ("500 Bad", "kaputt") } else { ("200 OK", ANSWER) };
        seen.lock().unwrap().push((header("x-session-id:"), body));
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

/// A plan for a trace of these lines. Time runs so fast that waiting takes no time.
fn plan(name: &str, format: &str, lines: &str, options: &str) -> Arc<Plan> {
    let path: PathBuf =
        std::env::temp_dir().join(format!("larder-bench-drive-{name}-{}", std::process::id()));
    std::fs::write(&path, lines).unwrap();
    let trace = path.display();
    let line = format!(
        "larder-bench replay --trace {trace} --format {format} --proxy-bin {trace} --mock-bin {trace} \
         --time-scale 1000000 --prefill-tokens-per-s 1 {options}"
    );
    let command = parse(line.split_whitespace().map(Into::into)).unwrap().unwrap().command;
    let Command::Replay(args) = command else { panic!("not a replay") };
    let plan = Plan::new(&args).unwrap();
    std::fs::remove_file(&path).unwrap();
    Arc::new(plan)
}

const SESSIONS: &str = concat!(
    r#"{"id":"a","block_size":64,"requests":[{"in":64,"out":1,"hash_ids":[1]},{"in":128,"out":9,"think_time":20,"hash_ids":[1,2]}]}"#,
    "\n",
    r#"{"id":"b","block_size":64,"requests":[{"in":70,"out":1,"hash_ids":[1]}]}"#,
    "\n",
    r#"{"id":"c","block_size":64,"requests":[{"in":70,"out":1,"hash_ids":[1]}]}"#,
);

#[tokio::test]
async fn a_closed_loop_sends_every_request_once_each_session_in_order() {
    let plan = plan("closed", "agentic", SESSIONS, "--sessions 2");
    let (url, seen) = upstream("no such text").await;
    let counters = Arc::new(Counters::default());
    let outcome = replay(Arc::clone(&plan), Client::new(), url, counters).await.unwrap();
    assert_eq!((outcome.answers.len(), outcome.errors, outcome.truncated), (4, 0, false));
    assert_eq!((outcome.answers[0].prompt_tokens, outcome.answers[0].cached_tokens), (10, 4));
    let seen = seen.lock().unwrap();
    let of =
        |id: &str| seen.iter().filter(|(session, _)| session == id).map(|(_, body)| body).collect::<Vec<_>>();
    assert_eq!((of("a").len(), of("b").len(), of("c").len()), (2, 1, 1));
    assert!(of("a")[0].len() < of("a")[1].len());
    // The recorded answer of 9 tokens is capped.
    assert!(of("a")[1].contains("\"max_tokens\":2,"), "{}", of("a")[1]);
}

#[tokio::test]
async fn a_failed_request_is_counted_with_its_reason_and_the_session_goes_on() {
    let plan = plan("failed", "agentic", SESSIONS, "--sessions 1");
    let (url, _) = upstream("\"max_tokens\":1,").await;
    let outcome = replay(plan, Client::new(), url, Arc::default()).await.unwrap();
    assert_eq!((outcome.answers.len(), outcome.errors), (1, 3));
    assert!(
        outcome.samples[0].contains("status 500") && outcome.samples[0].contains("kaputt"),
        "{:?}",
        outcome.samples
    );
}

#[tokio::test]
async fn an_open_loop_sends_without_sessions() {
    let lines: String = (0..50)
        .map(|n| {
            format!(
                "{{\"timestamp\":{},\"input_length\":600,\"output_length\":1,\"hash_ids\":[0,{n}]}}\n",
                n * 100
            )
        })
        .collect();
    let plan = plan("open", "mooncake", &lines, "");
    let (url, seen) = upstream("no such text").await;
    let outcome = replay(plan, Client::new(), url, Arc::default()).await.unwrap();
    assert_eq!((outcome.answers.len(), outcome.errors, outcome.truncated), (50, 0, false));
    assert!(seen.lock().unwrap().iter().all(|(session, _)| session.is_empty()));
}

#[tokio::test]
async fn an_ended_budget_is_said_and_an_absent_proxy_is_an_error_each() {
    let spent = plan("spent", "agentic", SESSIONS, "--duration-s 0.000000001");
    let (url, _) = upstream("no such text").await;
    let outcome = replay(spent, Client::new(), url, Arc::default()).await.unwrap();
    assert!(outcome.truncated && outcome.answers.is_empty());
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let plan = plan("absent", "agentic", SESSIONS, "");
    let outcome = replay(plan, Client::new(), format!("http://{closed}"), Arc::default()).await.unwrap();
    assert_eq!((outcome.answers.len(), outcome.errors), (0, 4));
    assert!(outcome.samples[0].contains("refused"), "{:?}", outcome.samples);
}
