//! Engines and nodes that die or stop, at the worst moments.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use larder_protocol::ToEngine;
use larder_protocol::message::Verdict;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::engine::{Engine, register};
use crate::node;

const PART: u64 = 120_000;

/// The body of an engine process: does one command a line from standard input, answers one line to standard output.
/// Runs only in a process that [`EngineProcess::start`] made; as a test of its own it does nothing.
#[test]
fn engine_process() {
    let Ok(socket) = std::env::var("LARDER_FAKE_ENGINE") else { return };
    let mut engine = Engine::connect(Path::new(&socket), "process", register(PART, 1, 1));
    let mut leased = None;
    println!("\nengine: connected");
    for line in std::io::stdin().lines() {
        let answer = match &line.unwrap()[..] {
            "lease" => {
                let lease = engine.lease(0..8);
                let count = lease.slots.len();
                leased = Some(lease);
                format!("leased {count}")
            }
            "load" => {
                let lease = leased.as_ref().unwrap();
                let answer = engine.load(lease.lease, lease.slots.len());
                assert!(matches!(answer, ToEngine::Okay(_)), "{answer:?}");
                "loading".to_owned()
            }
            "compare" => {
                let lease = leased.as_ref().unwrap();
                format!("right {}", engine.reads_right(0, &lease.slots, &lease.generations))
            }
            "complete" => {
                let lease = leased.as_ref().unwrap().lease;
                assert!(matches!(engine.complete(lease), ToEngine::Okay(_)));
                "completed".to_owned()
            }
            "write" => {
                (0..4).for_each(|slot| engine.write(slot, 900 + u64::from(slot)));
                "written".to_owned()
            }
            "commit" => {
                // Without waiting for the answer: whoever kills this process may be faster than the copy.
                let commit = engine.commit_message(900..904);
                engine.wire.say(commit);
                "committing".to_owned()
            }
            other => panic!("{other}"),
        };
        println!("engine: {answer}");
    }
}

struct EngineProcess {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl EngineProcess {
    fn start(socket: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crashes::engine_process", "--nocapture"])
            .env("LARDER_FAKE_ENGINE", socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut process = Self { child, commands, answers };
        assert_eq!(process.answer(), "connected");
        process
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "the engine process ended");
            if let Some(answer) = line.strip_prefix("engine: ") {
                return answer.trim_end().to_owned();
            }
        }
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
    }

    fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Stores so much of other keys, and so often that they are worth more than what a test has used once or twice, that
/// everything not held by a lease is evicted.
fn flood(node: &node::Node, name: &str) {
    let mut engine = Engine::connect(&node.socket(), name, register(PART, 1, 9));
    for batch in 0..80 {
        for _ in 0..4 {
            engine.offload(10_000 + batch * 8..10_000 + batch * 8 + 8);
        }
    }
}

#[test]
fn an_engine_killed_in_a_load_frees_its_slots() {
    let node = node::start("");
    let mut engine = Engine::connect(&node.socket(), "first", register(PART, 1, 1));
    assert_eq!(engine.offload(0..8), [Verdict::Accepted; 8]);
    let mut process = EngineProcess::start(&node.socket());
    assert_eq!(process.ask("lease"), "leased 8");
    assert_eq!(process.ask("load"), "loading");
    assert!(node.stat("pinned_bytes") > 0);
    process.kill();
    node.wait_for("pinned_bytes", 0);
    node.wait_for("orphaned_leases", 0);
    assert_eq!(engine.load_and_compare(0..8), 8);
}

#[test]
fn an_engine_killed_in_an_offload_leaves_nothing_half_stored() {
    let node = node::start("");
    let mut process = EngineProcess::start(&node.socket());
    assert_eq!(process.ask("write"), "written");
    process.kill();
    node.wait_for("sessions", 0);
    let mut engine = Engine::connect(&node.socket(), "first", register(PART, 1, 1));
    assert_eq!(engine.load_and_compare(900..904), 0, "never committed");
    let mut process = EngineProcess::start(&node.socket());
    assert_eq!(process.ask("write"), "written");
    assert_eq!(process.ask("commit"), "committing");
    process.kill();
    node.wait_for("sessions", 1);
    node.wait_for("writing_slots", 0);
    // All of it or none, as the node had read the commit or not; and if so, whole.
    assert!(matches!(engine.load_and_compare(900..904), 0 | 4));
    assert_eq!(engine.offload(900..904).len(), 4);
    assert_eq!(engine.load_and_compare(900..904), 4);
}

/// A process stopped in the middle of a copy, past its lease's expiry, never reads another key's bytes.
#[test]
fn an_engine_stopped_in_a_load_past_expiry_reads_its_own_bytes() {
    let node = node::start("lease_ttl = \"1s\"");
    let mut engine = Engine::connect(&node.socket(), "first", register(PART, 1, 1));
    assert_eq!(engine.offload(0..8), [Verdict::Accepted; 8]);
    let mut process = EngineProcess::start(&node.socket());
    assert_eq!(process.ask("lease"), "leased 8");
    assert_eq!(process.ask("load"), "loading");
    process.signal(Signal::SIGSTOP);
    node.wait_for("leases_expired_total", 1);
    flood(&node, "flood");
    assert!(node.stat("evicted_chunks_total") > 0);
    process.signal(Signal::SIGCONT);
    assert_eq!(process.ask("compare"), "right true");
    assert_eq!(process.ask("complete"), "completed");
    node.wait_for("pinned_bytes", 0);
}

/// The control of the test above: a lease that was never started is given up, and the generation tells.
#[test]
fn an_engine_stopped_before_its_load_past_expiry_knows_that_it_read_nothing() {
    let node = node::start("lease_ttl = \"1s\"");
    let mut engine = Engine::connect(&node.socket(), "first", register(PART, 1, 1));
    assert_eq!(engine.offload(0..8), [Verdict::Accepted; 8]);
    let mut process = EngineProcess::start(&node.socket());
    assert_eq!(process.ask("lease"), "leased 8");
    process.signal(Signal::SIGSTOP);
    node.wait_for("leases_expired_total", 1);
    flood(&node, "flood");
    process.signal(Signal::SIGCONT);
    assert_eq!(process.ask("compare"), "right false");
}

#[test]
fn an_engine_that_never_completes_keeps_only_its_own() {
    let node = node::start("lease_ttl = \"1s\"");
    let mut engine = Engine::connect(&node.socket(), "first", register(PART, 1, 1));
    assert_eq!(engine.offload(0..8), [Verdict::Accepted; 8]);
    let lease = engine.lease(0..8);
    assert!(matches!(engine.load(lease.lease, 8), ToEngine::Okay(_)));
    flood(&node, "flood");
    node.wait_for("leases_expired_total", 1);
    flood(&node, "again");
    assert!(engine.reads_right(0, &lease.slots, &lease.generations));
    assert_eq!(node.stat("open_loads"), 1);
}

#[test]
fn a_killed_node_is_started_again_at_the_same_socket() {
    let node = node::start("");
    let mut engine = Engine::connect(&node.socket(), "first", register(PART, 1, 1));
    assert_eq!(engine.offload(0..8), [Verdict::Accepted; 8]);
    let lease = engine.lease(0..8);
    assert!(matches!(engine.load(lease.lease, 8), ToEngine::Okay(_)));
    let directory = node.kill();
    assert!(directory.path().join("node.sock").exists(), "left by the dead");
    assert_eq!(engine.wire.hear(), None, "the engine learns of it");
    // What it was copying is still there: the memory lives as long as anyone maps it.
    assert!(engine.reads_right(0, &lease.slots, &lease.generations));
    let node = node::start_in(directory, "");
    let mut again = Engine::connect(&node.socket(), "first", register(PART, 1, 1));
    assert_eq!(again.load_and_compare(0..8), 0, "the host tier does not outlive its node");
    assert_eq!(again.offload(0..8), [Verdict::Accepted; 8]);
    assert_eq!(again.load_and_compare(0..8), 8);
}

#[test]
fn a_node_told_to_end_says_goodbye_and_cleans_up() {
    let mut node = node::start("");
    let mut engine = Engine::connect(&node.socket(), "first", register(PART, 1, 1));
    node.signal(Signal::SIGTERM);
    assert!(matches!(engine.wire.hear(), Some(ToEngine::Farewell(_))));
    assert_eq!(engine.wire.hear(), None);
    assert!(node.wait().success());
    assert!(!node.socket().exists());
}

#[test]
fn a_stopped_node_holds_nobody_who_does_not_wait() {
    let node = node::start("");
    let mut engine = Engine::connect(&node.socket(), "first", register(PART, 1, 1));
    assert_eq!(engine.offload(0..8), [Verdict::Accepted; 8]);
    let lease = engine.lease(0..8);
    assert!(matches!(engine.load(lease.lease, 8), ToEngine::Okay(_)));
    node.signal(Signal::SIGSTOP);
    assert!(engine.reads_right(0, &lease.slots, &lease.generations), "copying needs no node");
    std::thread::sleep(Duration::from_millis(50));
    node.signal(Signal::SIGCONT);
    assert!(matches!(engine.complete(lease.lease), ToEngine::Okay(_)));
}

#[test]
fn a_live_socket_is_not_taken_over_and_bad_configs_exit_64() {
    let node = node::start("");
    let config = node::config(node.directory.path(), "");
    let second = node::command(&config).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another process listens there"), "{second:?}");
    let mut engine = Engine::connect(&node.socket(), "first", register(PART, 1, 1));
    assert_eq!(engine.load_and_compare(0..1), 0, "the first still serves");
    let config = node::config(node.directory.path(), "lease_tl = \"1s\"");
    for arguments in [&[][..], &["--check"]] {
        let bad = node::command(&config).args(arguments).output().unwrap();
        assert_eq!(bad.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&bad.stderr).contains("did you mean `lease_ttl`?"), "{bad:?}");
    }
    let config = node::config(node.directory.path(), "");
    assert!(node::command(&config).arg("--check").status().unwrap().success());
}
