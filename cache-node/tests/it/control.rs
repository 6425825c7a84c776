//! The control API, as the proxy uses it.

use std::time::Duration;

use larder_client::{Client, Settings};
use larder_protocol::control::{
    ChainPoint, PinRequest, QuotaRequest, ReleaseRequest, StageReason, StageRequest,
};
use larder_protocol::message::Verdict;
use larder_protocol::{Tag, ToEngine};
use serde_json::{Value, json};

use crate::engine::{Engine, register};
use crate::node::{self, Node};

const PART: u64 = 100_000;

/// A prompt of 32-token chunks and 128-byte runs at 4 bytes a token: one run a chunk.
fn request(tag: u128, runs: u64, engine: Option<&str>) -> StageRequest {
    StageRequest {
        tag: Some(Tag(tag)),
        chain: (0..runs).map(ChainPoint).collect(),
        run_bytes: 128,
        prompt_bytes: runs * 128 + 12,
        engine: engine.map(str::to_owned),
        deadline_ms: Some(10_000),
        max_bytes: None,
        tenant: None,
    }
}

fn client(node: &Node) -> Client {
    Client::new(Settings::new(node.address.parse().unwrap()))
}

const PATIENT: Duration = Duration::from_secs(20);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// One engine computes a prompt; its second turn is staged for another, whose grant has come before the answer.
#[test]
fn a_prompt_is_staged_for_another_engine() {
    let node = node::start("");
    let mut one = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    let mut two = Engine::connect(&node.socket(), "two", register(PART, 1, 1));
    block_on(async {
        let client = client(&node);
        let answer = client.stage(&request(1, 20, Some("http://one")), PATIENT).await.unwrap();
        assert_eq!((answer.lease, answer.reason), (None, StageReason::NoRecipe));
        assert!(matches!(one.lookup_tagged(0..20, Some(Tag(1))), ToEngine::Miss(_)));
        assert_eq!(one.offload(0..20), [Verdict::Accepted; 20]);
        let second = request(2, 30, Some("http://two"));
        let probe = client.lookup(&second, PATIENT).await.unwrap();
        assert_eq!(probe.lease, None);
        let answer = client.stage(&second, PATIENT).await.unwrap();
        assert_eq!((answer.reason, answer.chunks), (StageReason::Staged, probe.chunks));
        assert!(answer.chunks >= 17, "{} of 20", answer.chunks);
        assert_eq!((answer.tokens_ready, answer.bytes), (answer.chunks * 32, answer.chunks * PART));
        // Already in the socket's buffer: the answer was sent only after the grant was written.
        two.wire.say(larder_protocol::message::Release { id: 1, lease: larder_protocol::LeaseId(0) });
        two.hear();
        let grant = two.grants.pop().expect("the grant came before anything said after the answer");
        assert_eq!((Some(grant.lease), grant.tag), (answer.lease, Tag(2)));
        assert_eq!(grant.keys, crate::engine::keys(0..answer.chunks));
        assert!(matches!(two.load(grant.lease, grant.slots.len()), ToEngine::Okay(_)));
        assert!(two.reads_right(0, &grant.slots, &grant.generations));
        assert!(matches!(two.complete(grant.lease), ToEngine::Okay(_)));
        assert!(matches!(two.release(grant.lease), ToEngine::Okay(_)));
        let cut = StageRequest { max_bytes: Some(3 * PART), ..request(3, 30, Some("two")) };
        let answer = client.stage(&cut, PATIENT).await.unwrap();
        assert_eq!((answer.chunks, answer.reason), (3, StageReason::Cut));
        let nobody = client.stage(&request(4, 30, Some("http://three")), PATIENT).await.unwrap();
        assert_eq!(nobody.reason, StageReason::NoEngine);
        let which = client.stage(&request(5, 30, None), PATIENT).await.unwrap();
        assert_eq!(which.reason, StageReason::AmbiguousEngine);
        client.health(PATIENT).await.unwrap();
    });
}

/// A prompt is pinned through a flood that would take it, released, and a tenant kept to its quota.
#[test]
fn pins_and_quotas_over_the_control_api() {
    let node = node::start("quotas = { tenants = [{ name = \"small\", size = \"1MiB\" }] }");
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    block_on(async {
        let client = client(&node);
        client.stage(&request(1, 9, None), PATIENT).await.unwrap();
        assert!(matches!(engine.lookup_tagged(0..8, Some(Tag(1))), ToEngine::Miss(_)));
        assert_eq!(engine.offload(0..8), [Verdict::Accepted; 8]);
        let StageRequest { chain, run_bytes, prompt_bytes, .. } = request(2, 9, None);
        let pin =
            PinRequest { chain, run_bytes, prompt_bytes, engine: None, ttl_ms: 3_600_000, max_bytes: None };
        let answer = client.pin(&pin, PATIENT).await.unwrap();
        // The estimate of how many chunks a chain names is a little low.
        assert_eq!((answer.chunks, answer.reason), (7, StageReason::Staged));
        (1..100).for_each(|prompt| drop(engine.offload(prompt * 1000..prompt * 1000 + 8)));
        assert!(node.stat("evicted_chunks_total") > 0);
        assert_eq!(engine.load_and_compare(0..7), 7);
        let pins = client.pins(PATIENT).await.unwrap();
        assert_eq!((pins.pins.len(), pins.pins[0].pin, pins.bytes), (1, answer.pin, answer.bytes));
        assert_eq!(pins.pins[0].namespace, engine.registered.namespace.to_string());
        let release = ReleaseRequest { lease: None, pin: answer.pin };
        assert!(client.release(&release, PATIENT).await.unwrap().released);
        assert!(!client.release(&release, PATIENT).await.unwrap().released);
        assert_eq!((node.stat("pins"), node.stat("pin_bytes")), (0, 0));
        let quota = |max_bytes| QuotaRequest { tenant: "big".to_owned(), max_bytes };
        let set = client.set_quota(&quota(Some(7 << 20)), PATIENT).await.unwrap();
        assert_eq!((set.tenant.max_bytes, set.tenant.held_bytes, set.evicted_chunks), (Some(7 << 20), 0, 0));
        let quotas = client.quotas(PATIENT).await.unwrap();
        let sizes: Vec<(&str, Option<u64>)> =
            quotas.tenants.iter().map(|it| (it.tenant.as_str(), it.max_bytes)).collect();
        assert_eq!(sizes, [("big", Some(7 << 20)), ("small", Some(1 << 20))]);
    });
}

fn flip(node: &Node, nth: u64) -> Value {
    node.post("/debug/flip", &json!({ "nth": nth }))
}

#[test]
fn a_flipped_bit_is_quarantined_missed_and_counted() {
    let node = node::start("debug_faults = true\nverify_fresh = \"0s\"");
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    engine.offload(0..8);
    assert_eq!(engine.load_and_compare(0..8), 8);
    assert_eq!(flip(&node, 5)["damaged"], true);
    assert_eq!(engine.load_and_compare(0..8), 5);
    assert_eq!((node.stat("corrupt_chunks_total"), node.stat("quarantined_slots")), (1, 1));
    assert_eq!(engine.offload(5..8), [Verdict::Accepted, Verdict::Held, Verdict::Held], "recomputed");
    assert_eq!(engine.load_and_compare(0..8), 8);
    assert_eq!(flip(&node, 5000)["damaged"], false);
}

/// The negative control: without verification the flipped bit reaches the engine.
#[test]
fn with_verification_off_a_flipped_bit_is_handed_out() {
    let node = node::start("debug_faults = true\nverify = \"off\"");
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    engine.offload(0..8);
    let key: String = crate::engine::keys(5..6)[0].to_string();
    let answer = node.post("/debug/flip", &json!({ "key": key, "byte": 99_999, "bit": 0 }));
    assert_eq!(answer["damaged"], true);
    let lease = engine.lease(0..8);
    let mut expected = crate::engine::content(5, PART);
    expected[99_999] ^= 1;
    assert_eq!(engine.read(lease.slots[5], lease.generations[5]), Some(expected));
    assert_eq!(node.stat("corrupt_chunks_total"), 0);
}

/// The other control: exchanged names pass every checksum, and only comparing what was loaded shows it.
#[test]
fn swapped_names_are_seen_only_by_comparing() {
    let node = node::start("debug_faults = true");
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    engine.offload(0..8);
    assert_eq!(node.post("/debug/swap", &json!({ "first": 0, "second": 1 }))["damaged"], true);
    let lease = engine.lease(0..8);
    assert!(!engine.reads_right(0, &lease.slots, &lease.generations));
    assert_eq!(node.stat("corrupt_chunks_total"), 0);
}

#[test]
fn damage_needs_to_be_allowed() {
    let node = node::start("");
    assert_eq!(node.http("POST", "/debug/flip", "", "{}").0, 404);
}

#[test]
fn requests_that_cannot_be_answered_say_why() {
    let node = node::start("");
    let good = serde_json::to_string(&request(1, 3, None)).unwrap();
    assert_eq!(node.http("POST", "/v1/stage", "", &good).0, 200);
    for (method, path, body, status, says) in [
        ("POST", "/v1/stage", "{", 400, "not the JSON"),
        ("POST", "/v1/stage", "{}", 400, "missing field"),
        ("POST", "/v1/stage", &good.replace("128,", "0,"), 400, "run_bytes"),
        ("POST", "/v1/stage", &good.replace("0000000000000002", "2"), 400, "16 hex digits"),
        ("POST", "/v1/stage", &good.replace("run_bytes", "runbytes"), 400, "unknown field"),
        ("GET", "/v1/stage", "", 404, "no GET /v1/stage"),
        ("POST", "/v2/stage", &good, 404, "no POST /v2/stage"),
        ("POST", "/v1/stage", &" ".repeat((2 << 20) + 1), 413, "2097152"),
    ] {
        let (found, text) = node.http(method, path, "", body);
        assert_eq!(found, status, "{method} {path}: {text}");
        let error: Value = serde_json::from_str(&text).unwrap();
        assert!(error["error"].as_str().unwrap().contains(says), "{text}");
    }
}

#[test]
fn what_the_node_tells_about_itself() {
    let node = node::start("");
    let mut engine = Engine::connect(&node.socket(), "one", register(PART, 1, 1));
    engine.offload(0..8);
    assert_eq!(node.http("GET", "/healthz", "", ""), (200, "ok".to_owned()));
    let (_, metrics) = node.http("GET", "/metrics", "", "");
    for line in
        ["larder_node_held_chunks 8", "larder_node_stored_bytes_total 800000", "larder_node_sessions 1"]
    {
        assert!(metrics.lines().any(|found| found == line), "{line} in\n{metrics}");
    }
    let (_, stats) = node.http("GET", "/v1/stats", "", "");
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["engines"][0]["endpoint"], "http://one");
    assert_eq!(stats["engines"][0]["ready"], true);
    assert_eq!(stats["engines"][0]["namespace"], engine.registered.namespace.to_string());
}

#[test]
fn a_token_is_asked_for_where_one_is_set() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "s3cret\n").unwrap();
    let node = node::start_in(directory, &format!("token_file = {token:?}"));
    assert_eq!(node.http("GET", "/healthz", "", "").0, 200);
    for headers in [
        "",
        "authorization: Bearer s3cre\r\n",
        "authorization: Bearer s3crets\r\n",
        "authorization: s3cret\r\n",
    ] {
        assert_eq!(node.http("GET", "/metrics", headers, "").0, 401, "{headers}");
    }
    assert_eq!(node.http("GET", "/metrics", "authorization: Bearer s3cret\r\n", "").0, 200);
    block_on(async {
        let settings = Settings::new(node.address.parse().unwrap()).with_token("s3cret").unwrap();
        Client::new(settings).lookup(&request(1, 3, None), PATIENT).await.unwrap();
    });
}

#[test]
fn the_control_api_on_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.sock");
    let node = node::start_in(directory, &format!("control = \"unix:{}\"", path.display()));
    assert_eq!(node.address, format!("unix:{}", path.display()));
    block_on(async {
        let answer = client(&node).stage(&request(1, 3, None), PATIENT).await.unwrap();
        assert_eq!(answer.reason, StageReason::NoEngine);
    });
}
