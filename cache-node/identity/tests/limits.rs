//! Beyond a limit there is no chain, and everything else of the body is still read.

use std::fmt::Write;

use larder_identity::limits::{ITEMS_MAX, JSON_BYTES_MAX, JSON_DEPTH_MAX, TOKENS_MAX};
use larder_identity::{Api, ChainHasher, HasherSettings, NoChain, Secret, ToolsOrder};

fn hasher() -> ChainHasher {
    ChainHasher::new(HasherSettings::new(Secret::derive(b"limits")))
}

fn check(api: Api, body: &str, want: Result<(), NoChain>) {
    let walk = hasher().walk(api, b"", body.as_bytes());
    assert_eq!(walk.envelope.model.as_deref(), Some("m"), "the envelope is read whatever the prompt is");
    assert_eq!(walk.prompt.map(|_| ()), want);
}

#[test]
fn messages_parts_and_calls_are_counted_together() {
    let messages = |count: usize| {
        let each = r#"{"role":"u","content":["a"],"tool_calls":[{}]},"#;
        let list = each.repeat(count);
        format!(r#"{{"messages":[{}],"model":"m"}}"#, &list[..list.len() - 1])
    };
    check(Api::Chat, &messages(ITEMS_MAX / 3), Ok(()));
    let what = "messages, parts and tool calls";
    check(Api::Chat, &messages(ITEMS_MAX / 3 + 1), Err(NoChain::TooLarge { what, limit: ITEMS_MAX }));
}

#[test]
fn free_json_of_a_body_is_counted_together() {
    let body = |bytes: usize| {
        let tools = format!("[\"{}\"]", "x".repeat(bytes / 2 - 4));
        let kwargs = format!("[\"{}\"]", "x".repeat(bytes - bytes / 2 - 4));
        let prompt = r#""messages":[{"role":"u","content":"c"}]"#;
        format!(r#"{{{prompt},"tools":{tools},"chat_template_kwargs":{kwargs},"model":"m"}}"#)
    };
    check(Api::Chat, &body(JSON_BYTES_MAX), Ok(()));
    let too_large = NoChain::TooLarge { what: "bytes of free JSON", limit: JSON_BYTES_MAX };
    check(Api::Chat, &body(JSON_BYTES_MAX + 1), Err(too_large));
}

#[test]
fn free_json_has_a_greatest_depth_and_other_json_has_none() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let body = |tools: &str, unknown: &str| {
        format!(r#"{{"unknown":{unknown},"tools":{tools},"messages":[{{"content":"c"}}],"model":"m"}}"#)
    };
    let limit = JSON_DEPTH_MAX;
    check(Api::Chat, &body(&nested(limit as usize), &nested(100_000)), Ok(()));
    let deep = body(&nested(limit as usize + 1), "1");
    let at = deep.find("[[").unwrap() + limit as usize;
    check(Api::Chat, &deep, Err(NoChain::TooDeep { at, limit }));
}

#[test]
fn tokens_are_counted() {
    let body = |count: usize| {
        let mut list = "1,".repeat(count);
        list.pop();
        format!(r#"{{"prompt":[{list}],"model":"m"}}"#)
    };
    check(Api::Completions, &body(TOKENS_MAX), Ok(()));
    let too_large = NoChain::TooLarge { what: "token ids", limit: TOKENS_MAX };
    check(Api::Completions, &body(TOKENS_MAX + 1), Err(too_large));
}

#[test]
fn token_ids_are_plain_integers() {
    let prompt = |prompt: &str| {
        let body = format!(r#"{{"prompt":{prompt}}}"#);
        hasher().walk(Api::Completions, b"", body.as_bytes()).prompt.map(|chain| chain.bytes())
    };
    assert_eq!(prompt("[0,4294967294]"), Ok(10));
    assert_eq!(prompt("[[1],[2,3]]"), Ok(18));
    for odd in [
        "[-1]",
        "[1.0]",
        "[1e3]",
        "[4294967295]",
        "[99999999999]",
        "[1,\"a\"]",
        "[[1],2]",
        "[\"a\",1]",
        "{}",
        "1",
    ] {
        assert!(matches!(prompt(odd), Err(NoChain::Unsupported { .. })), "{odd} {:?}", prompt(odd));
    }
    for none in ["[]", "null"] {
        assert_eq!(prompt(none), Err(NoChain::NoPrompt { key: "prompt" }));
    }
}

#[test]
fn media_of_megabytes_take_ten_canonical_bytes() {
    let mut body = String::from(r#"{"messages":[{"content":["#);
    for image in 0..3 {
        let comma = if image == 0 { "" } else { "," };
        let data = "iVBORw0KGgo/".repeat(100_000 + image);
        write!(body, r#"{comma}{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}}"#)
            .unwrap();
    }
    body.push_str("]}]}");
    let chain = hasher().walk(Api::Chat, b"", body.as_bytes()).prompt.unwrap();
    assert_eq!((chain.media(), chain.bytes()), (3, 2 + 3 * 10 + 2));
    assert!(chain.into_elements().capacity() < 128, "what was reserved for the media is given back");
}

#[test]
fn remembered_tools_give_the_chains_that_forgotten_ones_give() {
    // More lists than the memo holds, so that threads also evict each other's entries.
    let bodies: Vec<String> = (0..400)
        .map(|index| {
            let tools =
                format!(r#"[{{"name":"tool {index}","text":"{}"}}]"#, "schema ".repeat(100 + index % 7));
            let user = r#"{"role":"user","content":"hello"}"#;
            format!(r#"{{"messages":[{{"role":"system","content":"{index}"}},{user}],"tools":{tools}}}"#)
        })
        .collect();
    for order in [ToolsOrder::BeforeSystem, ToolsOrder::FirstUserTurn] {
        let fresh = || {
            let mut settings = HasherSettings::new(Secret::derive(b"memo"));
            settings.tools_order = order;
            ChainHasher::new(settings)
        };
        let want: Vec<_> =
            bodies.iter().map(|body| fresh().walk(Api::Chat, b"", body.as_bytes()).prompt).collect();
        assert!(want.iter().all(|chain| chain.as_ref().is_ok_and(|chain| chain.elements().len() > 1)));
        let shared = fresh();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (shared, bodies, want) = (&shared, &bodies, &want);
                scope.spawn(move || {
                    for step in 0..4_000 {
                        // Some lists come again at once, some after all others.
                        let index = (step / 3 * (thread + 1) + step % 3) % bodies.len();
                        let walk = shared.walk(Api::Chat, b"", bodies[index].as_bytes());
                        assert_eq!(walk.prompt, want[index]);
                    }
                });
            }
        });
    }
}
