//! `docs/cache-node-openapi.json` against the running server: every route of one is in the other, and every status that
//! the document has is answered as it says. Each request body that is answered with 200 is held against its schema, too.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpStream;

use larder_cache_node::control::ROUTES;
use serde_json::{Value, json};

use crate::engine::{Engine, register};
use crate::node::{self, Node};
use crate::schema;

fn document() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cache-node-openapi.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// What the document has: method, path and status.
type Case = (String, String, u16);

fn described(document: &Value) -> BTreeSet<Case> {
    let mut cases = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            for status in operation["responses"].as_object().unwrap().keys() {
                cases.insert((method.to_uppercase(), path.clone(), status.parse().unwrap()));
            }
        }
    }
    cases
}

/// Routes that only one of document and server has.
fn unlike_routes(document: &Value) -> Vec<(String, String)> {
    let described: BTreeSet<(String, String)> =
        described(document).into_iter().map(|(method, path, _)| (method, path)).collect();
    let served = ROUTES.iter().map(|(method, path, _)| (method.to_string(), (*path).to_owned()));
    described.symmetric_difference(&served.collect()).cloned().collect()
}

/// What is wrong with an answer, by the document.
fn answer_faults(document: &Value, (method, path, status): &Case, text: &str) -> Vec<String> {
    let operation = &document["paths"][path][method.to_lowercase()];
    let Some(content) = operation["responses"].get(status.to_string()).and_then(|it| it.get("content"))
    else {
        return vec![format!("{status} is not described")];
    };
    match content.get("application/json").map(|it| &it["schema"]) {
        None => content.get("text/plain").map_or(vec!["no content".to_owned()], |_| Vec::new()),
        Some(schema) => match serde_json::from_str(text) {
            Ok(value) => schema::faults(document, schema, &value),
            Err(error) => vec![format!("{error} in {text}")],
        },
    }
}

/// A request that is answered with 200.
fn good_body(path: &str, keys: &str) -> Value {
    let chain = json!(["00000000000000ff", "0000000000000001"]);
    match path {
        "/v1/stage" | "/v1/lookup" => json!({
            "tag": "0".repeat(32), "chain": chain, "run_bytes": 128, "prompt_bytes": 300, "engine": "one",
            "deadline_ms": 50, "max_bytes": 1_000_000, "tenant": "t0",
        }),
        "/v1/pins" => json!({
            "chain": chain, "run_bytes": 128, "prompt_bytes": 300, "engine": null, "ttl_ms": 1000,
            "max_bytes": null,
        }),
        "/v1/release" => json!({ "pin": "0".repeat(32) }),
        "/v1/quotas" => json!({ "tenant": "t0", "max_bytes": 1000 }),
        "/debug/flip" => json!({ "key": keys, "nth": 0, "byte": 0, "bit": 1 }),
        "/debug/swap" => json!({ "first": 0, "second": 1 }),
        _ => Value::Null,
    }
}

/// The server's answers, each with what it was asked for.
#[derive(Default)]
struct Answers(Vec<(Case, String)>);

impl Answers {
    fn ask(&mut self, node: &Node, method: &str, path: &str, headers: &str, body: &str) -> u16 {
        let (status, text) = node.http(method, path, headers, body);
        self.0.push(((method.to_owned(), path.to_owned(), status), text));
        status
    }
}

const TOKEN: &str = "authorization: Bearer s3cret\r\n";

/// Asks for everything well, and then wrongly in every way there is.
fn all_answers(document: &Value) -> Answers {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "s3cret\n").unwrap();
    let tenants: Vec<String> =
        (0..4096).map(|number| format!("{{ name = \"t{number}\", size = 0 }}")).collect();
    let lines = format!(
        "debug_faults = true\ntoken_file = {token:?}\nlimits = {{ control_requests = 1 }}\n\
         quotas = {{ tenants = [{}] }}",
        tenants.join(", ")
    );
    let node = node::start_in(directory, &lines);
    let plain = node::start("");
    let mut engine = Engine::connect(&node.socket(), "one", register(100_000, 1, 1));
    engine.offload(0..4);
    let key = crate::engine::keys(0..1)[0].to_string();
    let mut answers = Answers::default();
    for (method, path, _) in ROUTES {
        let (method, body) = (method.as_str(), good_body(path, &key));
        if method == "POST" && !body.is_null() {
            let schema =
                &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
            assert_eq!(schema::faults(document, schema, &body), [""; 0], "{path}");
        }
        assert_eq!(answers.ask(&node, method, path, TOKEN, &body.to_string()), 200, "{method} {path}");
        answers.ask(&node, method, path, "", &body.to_string());
        if method == "POST" && !body.is_null() {
            answers.ask(&node, method, path, TOKEN, "{]");
            answers.ask(&node, method, path, TOKEN, &" ".repeat((2 << 20) + 1));
            if path.starts_with("/debug") {
                answers.ask(&plain, method, path, "", &body.to_string());
            }
        }
    }
    let one_more = json!({ "tenant": "one more", "max_bytes": 1 }).to_string();
    answers.ask(&node, "POST", "/v1/quotas", TOKEN, &one_more);
    overload(&node, &mut answers);
    answers
}

/// One request whose body does not come takes the only place there is.
fn overload(node: &Node, answers: &mut Answers) {
    let address = node.address.strip_prefix("http://").unwrap();
    let head = format!("POST /v1/lookup HTTP/1.1\r\nhost: x\r\n{TOKEN}content-length: 10\r\n\r\n");
    let mut stuck = TcpStream::connect(address).unwrap();
    stuck.write_all(head.as_bytes()).unwrap();
    // It is on its way; until it has arrived the node answers as ever.
    while node.http("GET", "/v1/pins", TOKEN, "").0 != 503 {}
    for (method, path, _) in ROUTES {
        assert_eq!(answers.ask(node, method.as_str(), path, TOKEN, "{}"), 503, "{method} {path}");
    }
}

/// What the document and the server do not agree on.
fn disagreements(document: &Value, answers: &Answers) -> Vec<String> {
    let mut found: Vec<String> =
        unlike_routes(document).iter().map(|route| format!("{route:?} is only in one")).collect();
    let mut given = BTreeSet::new();
    for (case, text) in &answers.0 {
        given.insert(case.clone());
        let wrong = answer_faults(document, case, text);
        found.extend(wrong.iter().map(|fault| format!("{case:?}: {fault}")));
    }
    let never = described(document).into_iter().filter(|case| !given.contains(case));
    found.extend(never.map(|case| format!("{case:?} was never answered")));
    found
}

#[test]
fn the_document_is_what_the_server_does() {
    let document = document();
    let answers = all_answers(&document);
    assert_eq!(disagreements(&document, &answers), [""; 0]);
    // The control: with any of these changes to the document they must disagree.
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 6] = [
        ("a route less", |it| drop(it["paths"].as_object_mut().unwrap().remove("/v1/pins"))),
        ("a route more", |it| it["paths"]["/v1/more"] = it["paths"]["/v1/clear"].clone()),
        ("a status less", |it| {
            drop(it["paths"]["/v1/quotas"]["post"]["responses"].as_object_mut().unwrap().remove("409"))
        }),
        ("a status more", |it| {
            let responses = &mut it["paths"]["/v1/stats"]["get"]["responses"];
            responses["418"] = responses["401"].clone();
        }),
        ("another type", |it| {
            it["components"]["schemas"]["StageAnswer"]["properties"]["chunks"] = json!({ "type": "string" });
        }),
        ("a field less", |it| {
            let properties = &mut it["components"]["schemas"]["ClearAnswer"]["properties"];
            drop(properties.as_object_mut().unwrap().remove("kept_chunks"));
        }),
    ];
    for (what, change) in changes {
        let mut changed = document.clone();
        change(&mut changed);
        assert_ne!(disagreements(&changed, &answers), [""; 0], "{what}");
    }
}
