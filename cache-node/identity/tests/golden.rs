//! The definition, frozen: bodies with their canonical bytes written out by hand, and the chains that follow.
//!
//! If one of these tests fails, chains of different versions do not meet any more: a rolling upgrade then splits a
//! fleet in two. That needs a note in the changelog, not a new number here.
#![expect(clippy::unwrap_used, reason = "test")]

use larder_identity::{Api, ChainHasher, HasherSettings, RunBytes, Secret, ToolsOrder};
use xxhash_rust::xxh3::xxh3_64_with_secret;

const RUN: usize = 64;

struct Case {
    api: Api,
    order: ToolsOrder,
    body: String,
    canonical: Vec<u8>,
    elements: &'static [u64],
}

fn check(case: &Case) {
    let secret = Secret::derive(b"golden");
    let hash = |bytes: &[u8]| xxh3_64_with_secret(bytes, secret.expose());
    let mut settings = HasherSettings::new(secret.clone());
    settings.run_bytes = RunBytes::try_from(RUN).unwrap();
    settings.tools_order = case.order;
    let chain = ChainHasher::new(settings).walk(case.api, b"", case.body.as_bytes()).prompt.unwrap();
    let (mut covered, mut want) = (0_u64, Vec::new());
    for run in case.canonical.chunks_exact(RUN) {
        covered = hash(&[covered.to_le_bytes(), hash(run).to_le_bytes()].concat());
        want.push(covered ^ hash(b""));
    }
    assert_eq!(chain.bytes(), case.canonical.len() as u64);
    assert_eq!(chain.elements(), want, "not the canonical bytes of this test");
    assert_eq!(chain.elements(), case.elements, "not the frozen chain: {:#018x?}", chain.elements());
}

#[test]
fn secret_derivation() {
    let secret = Secret::derive(b"correct horse battery staple");
    let words = secret.expose().map(u64::from);
    let sum = words.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte));
    assert_eq!(&secret.expose()[..16], &SECRET_START, "{:?}", &secret.expose()[..16]);
    assert_eq!(sum, SECRET_SUM, "{sum:#x}");
    assert_eq!(format!("{secret:?}"), "Secret(..)");
}

const SECRET_START: [u8; 16] = [68, 72, 20, 211, 165, 193, 70, 201, 115, 14, 25, 144, 88, 202, 239, 19];
const SECRET_SUM: u64 = 0xae61cd23a00e36ea;

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(RUN), 0xF5);
    bytes
}

#[test]
fn chat() {
    let body = r#"{"messages":[
        {"role":"system","content":"You are a helpful assistant that answers in one line."},
        {"content":[{"type":"text","text":"first \u0070art"},{"text":"second\npart \u20ac"}],"role":"user","name":"ann"},
        {"role":"assistant","reasoning_content":"hm","content":null,"tool_calls":[
            {"id":"c1","type":"function","function":{"name":"read","arguments":"{\"path\": \"a\/b\"}"}},
            {"function":{"arguments":{ "b" : 1, "a" : [ 2.0 ] },"name":"write"}}]},
        {"role":"tool","tool_call_id":"c1","content":"done"}]}"#;
    let canonical = [
        b"\xFFsystem\xFEYou are a helpful assistant that answers in one line.".as_slice(),
        b"\xFFuser\xFDann\xFEfirst part\xFBsecond\\npart \xE2\x82\xAC",
        b"\xFFassistant\xF7hm\xFE\xF9read\xF6{\\\"path\\\": \\\"a/b\\\"}\xFCc1",
        b"\xF9write\xF6\xFA{\"b\":1,\"a\":[2.0]}",
        b"\xFFtool\xFCc1\xFEdone",
    ]
    .concat();
    check(&Case {
        api: Api::Chat,
        order: ToolsOrder::BeforeSystem,
        body: body.to_owned(),
        canonical,
        elements: &[0x5AB7_DECA_247D_06E9, 0x20DB_784D_B247_9A83],
    });
}

#[test]
fn tools() {
    let body = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}],
        "tools":[ {"type":"function","function":{"name":"f","parameters":{"z":1,"a":"\u0061\/"}}} ]}"#;
    let tools = padded(
        b"\xFA[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"z\":1,\"a\":\"a/\"}}}]",
    );
    let (system, user) = (b"\xFFsystem\xFEs".as_slice(), b"\xFFuser\xFEu".as_slice());
    check(&Case {
        api: Api::Chat,
        order: ToolsOrder::BeforeSystem,
        body: body.to_owned(),
        canonical: [&tools, system, user].concat(),
        elements: &[0x47DE_9349_3C8D_11D1, 0x09F2_0A7F_30DE_F2D5],
    });
    check(&Case {
        api: Api::Chat,
        order: ToolsOrder::FirstUserTurn,
        body: body.to_owned(),
        canonical: [&padded(system), &tools, user].concat(),
        elements: &[0xC2E5_A029_29C1_D0EF, 0x63DA_AFF9_654A_D69F, 0x137E_6D44_5882_9EC6],
    });
}

#[test]
fn media() {
    let body = r#"{"messages":[{"role":"user","content":["look at these two pictures and tell me what they have in common",
        {"type":"image_url","image_url":{"url":"data:image\/png;base64,AAAA"}},
        {"type":"input_audio","input_audio":{"format":"wav","data":"BBBB"}},
        {"type":"odd","x":null}]}]}"#;
    let secret = Secret::derive(b"golden");
    let hash = |bytes: &[u8]| xxh3_64_with_secret(bytes, secret.expose()).to_le_bytes();
    let canonical = [
        b"\xFFuser\xFElook at these two pictures and tell me what they have in common\xFB".as_slice(),
        b"\xF8I",
        &hash(b"data:image/png;base64,AAAA"),
        b"\xFB\xF8A",
        &hash(b"BBBB"),
        b"\xFB\xFA{\"type\":\"odd\",\"x\":null}",
    ]
    .concat();
    check(&Case {
        api: Api::Chat,
        order: ToolsOrder::BeforeSystem,
        body: body.to_owned(),
        canonical,
        elements: &[0xC082_6844_1452_8FE6],
    });
}

#[test]
fn completions() {
    let text = "Once upon a time there was a very long text that went on and on until it filled a run.";
    let body = format!(r#"{{"prompt":["{text}","two"]}}"#);
    let canonical = [b"\xFE".as_slice(), text.as_bytes(), b"\xFEtwo"].concat();
    let order = ToolsOrder::BeforeSystem;
    check(&Case { api: Api::Completions, order, body, canonical, elements: &[0x257A_9E33_FB36_64D1] });
    let tokens: Vec<u32> = (0..20).map(|index| index * 7_001).collect();
    let body = format!(r#"{{"prompt":[{tokens:?},[1]]}}"#);
    let mut canonical = b"\xF8T".to_vec();
    for token in tokens.into_iter().chain([u32::MAX, 1]) {
        canonical.extend(token.to_le_bytes());
    }
    check(&Case { api: Api::Completions, order, body, canonical, elements: &[0x1B66_CB60_78EB_A1CB] });
}

#[test]
fn namespace() {
    let secret = Secret::derive(b"golden");
    let hash = |bytes: &[u8]| xxh3_64_with_secret(bytes, secret.expose());
    let link = |a: u64, b: u64| hash(&[a.to_le_bytes(), b.to_le_bytes()].concat());
    let body = br#"{"chat_template_kwargs":{ "x" : true },"model":"m\u0031","messages":[{}]}"#;
    let chain =
        ChainHasher::new(HasherSettings::new(secret.clone())).walk(Api::Chat, b"acme", body).prompt.unwrap();
    let model = link(link(hash(b"acme"), 1), hash(b"m1"));
    assert_eq!(chain.namespace(), link(link(model, 4), hash(b"\xFA{\"x\":true}")));
}

#[test]
fn messages_with_a_system_prompt_behind_them() {
    let body = r#"{"messages":[{"role":"user","content":"hello there, this is one whole run of sixty-four bytes"}],
        "tools":[{"name": "f"}],"system":[{"type":"text","text":"be brief"},{"text":"and kind"}]}"#;
    check(&Case {
        api: Api::Messages,
        order: ToolsOrder::BeforeSystem,
        body: body.to_owned(),
        canonical: [
            padded(b"\xFA[{\"name\":\"f\"}]"),
            padded(b"\xFFsystem\xFEbe brief\xFBand kind"),
            b"\xFFuser\xFEhello there, this is one whole run of sixty-four bytes".to_vec(),
        ]
        .concat(),
        elements: &[0xCCD9_DEF4_A408_8BDD, 0x7486_D35F_12A9_1D03],
    });
}

#[test]
fn responses_with_items_and_text() {
    let call = r#"{"type":"function_call","call_id":"c1","name":"f","arguments":"{}"}"#;
    let items = format!(
        r#"{{"instructions":"be brief","input":[{call},{{"type":"message","role":"user","content":[{{"type":"input_text","text":"hello"}}]}}],"tools":[1]}}"#
    );
    let front = padded(b"\xFFsystem\xFEbe brief");
    check(&Case {
        api: Api::Responses,
        order: ToolsOrder::FirstUserTurn,
        body: items,
        canonical: [
            front.clone(),
            padded(&[b"\xFF\xFA", call.as_bytes()].concat()),
            padded(b"\xFA[1]"),
            b"\xFFuser\xFEhello".to_vec(),
        ]
        .concat(),
        elements: &[
            0xFD32_D7F2_A0DC_17C3,
            0x3915_AA07_E9B5_EC3C,
            0x9D78_C1F5_F58E_BEBE,
            0xDA4C_8C49_5720_C9D9,
        ],
    });
    check(&Case {
        api: Api::Responses,
        order: ToolsOrder::BeforeSystem,
        body: r#"{"input":"hello","instructions":"be brief"}"#.to_owned(),
        canonical: [front, b"\xFFuser\xFEhello".to_vec()].concat(),
        elements: &[0xFD32_D7F2_A0DC_17C3],
    });
}

#[test]
fn embeddings_are_hashed_as_completions() {
    let text = "a text that is a little longer than one run of sixty-four bytes is";
    for (api, key) in [(Api::Embeddings, "input"), (Api::Completions, "prompt")] {
        check(&Case {
            api,
            order: ToolsOrder::BeforeSystem,
            body: format!(r#"{{"{key}":"{text}"}}"#),
            canonical: [b"\xFE", text.as_bytes()].concat(),
            elements: &[0x9FAF_34E5_F047_DC48],
        });
    }
}
