//! The chain against a naive second implementation, on random bodies, spellings and damage.
//!
//! Every check runs through [`Suite::check`], so that the negative controls at the end break the very oracle that the
//! other tests trust and see it noticed.
#![expect(clippy::unwrap_used, reason = "test")]

mod generator;
mod oracle;

use generator::{COMPACT, Node, Rng, SHUFFLED, SPACED, body, item, message};
use larder_identity::{Api, ChainHasher, HasherSettings, NoChain, RunBytes, Secret, Simd, ToolsOrder};
use oracle::{Expected, Oracle, Sabotage};

const RUNS: [usize; 4] = [64, 128, 256, 512];

/// Every API, the one with the most forms more often.
const APIS: [Api; 8] = [
    Api::Chat,
    Api::Chat,
    Api::Chat,
    Api::Completions,
    Api::Embeddings,
    Api::Messages,
    Api::Responses,
    Api::Responses,
];

/// A conversation: where its turns are, and what makes one.
type Conversation = (Api, &'static str, fn(&mut Rng) -> Node);

const CONVERSATIONS: [Conversation; 3] =
    [(Api::Chat, "messages", message), (Api::Messages, "messages", message), (Api::Responses, "input", item)];

struct Suite {
    oracle: Oracle,
    hashers: [ChainHasher; 2],
}

impl Suite {
    fn new(run: usize, tools_order: ToolsOrder, sabotage: Sabotage) -> Self {
        let secret = Secret::derive(b"property tests");
        let hashers = [Simd::Detect, Simd::Portable].map(|simd| {
            let mut settings = HasherSettings::new(secret.clone());
            settings.run_bytes = RunBytes::try_from(run).unwrap();
            settings.tools_order = tools_order;
            settings.simd = simd;
            ChainHasher::new(settings)
        });
        Self { oracle: Oracle { secret, run, tools_order, sabotage }, hashers }
    }

    fn all(sabotage: Sabotage) -> Vec<Self> {
        let orders = [ToolsOrder::BeforeSystem, ToolsOrder::FirstUserTurn];
        RUNS.into_iter().flat_map(|run| orders.map(|order| Self::new(run, order, sabotage))).collect()
    }

    /// Compares both code paths with the oracle; the elements, or what differs.
    fn check(&self, api: Api, scope: &[u8], body: &[u8]) -> Result<Option<(Vec<u64>, Expected)>, String> {
        let expected = self.oracle.read(api, scope, body);
        let [walk, portable] = self.hashers.each_ref().map(|hasher| hasher.walk(api, scope, body));
        if walk != portable {
            return Err(format!("code paths differ: {walk:?} {portable:?}"));
        }
        match (walk.prompt, expected) {
            (Err(_), None) => Ok(None),
            (Ok(chain), Some(expected)) => {
                let elements = expected.elements(&self.oracle.secret, self.oracle.run);
                let equal = chain.elements() == elements
                    && chain.bytes() == expected.stream.len() as u64
                    && chain.media() == expected.media
                    && chain.namespace() == expected.namespace;
                if equal { Ok(Some((elements, expected))) } else { Err(format!("{chain:?} {expected:?}")) }
            }
            (got, want) => Err(format!("got {got:?}, want {want:?}")),
        }
    }
}

fn api(rng: &mut Rng) -> Api {
    rng.pick(&APIS)
}

fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}

/// How many of `bodies` random bodies, in three spellings each, break a promise.
fn spellings(sabotage: Sabotage, bodies: u64) -> (usize, usize, String) {
    let suites = Suite::all(sabotage);
    let (mut chains, mut broken, mut example) = (0, 0, String::new());
    for seed in 0..bodies {
        let mut rng = Rng::new(seed + 1);
        let suite = &suites[rng.below(suites.len())];
        let api = api(&mut rng);
        let node = body(api, &mut rng);
        let mut first = None;
        for spelling in [COMPACT, SPACED, SHUFFLED] {
            let body = node.write(spelling, &mut rng);
            let result = suite.check(api, b"scope", &body);
            let agrees =
                result.as_ref().is_ok_and(|chain| first.get_or_insert_with(|| chain.clone()) == chain);
            chains += usize::from(matches!(result, Ok(Some(_))));
            if !agrees {
                broken += 1;
                example = format!("seed {seed} {spelling:?} {}\n{result:?}\nfirst {first:?}", shown(&body));
            }
        }
    }
    (chains, broken, example)
}

#[test]
fn spelling_white_space_and_key_order_never_change_a_chain() {
    let (chains, broken, example) = spellings(Sabotage::None, 10_000);
    assert_eq!(broken, 0, "{example}");
    assert!(chains > 20_000, "too few of the bodies had a chain: {chains}");
}

#[test]
fn every_sabotaged_definition_is_noticed() {
    let sabotages = [
        Sabotage::EscapesAsWritten,
        Sabotage::WhiteSpaceKept,
        Sabotage::FirstKeyWins,
        Sabotage::NoMessageMarker,
        Sabotage::ToolsLast,
        Sabotage::NoFront,
    ];
    for sabotage in sabotages {
        let (_, broken, _) = spellings(sabotage, 500);
        assert!(broken > 5, "{sabotage:?} was noticed {broken} times");
    }
}

#[test]
fn an_appended_message_only_extends_the_chain() {
    let mut extended = 0;
    for suite in Suite::all(Sabotage::None) {
        for seed in 0..100 {
            let mut rng = Rng::new(seed + 77);
            let (api, prompt, turn) = rng.pick(&CONVERSATIONS);
            let Node::Envelope(mut members) = body(api, &mut rng) else { unreachable!() };
            members.retain(|(key, _)| key != prompt);
            let mut turns = vec![turn(&mut rng)];
            let mut before: Vec<u64> = Vec::new();
            for _ in 0..5 {
                let mut whole = members.clone();
                whole.push((prompt.to_owned(), Node::List(turns.clone())));
                let body = Node::Envelope(whole).write(SHUFFLED, &mut rng);
                let (elements, _) = suite.check(api, b"", &body).unwrap().unwrap();
                assert!(elements.starts_with(&before), "{}", shown(&body));
                extended += usize::from(elements.len() > before.len() && !before.is_empty());
                before = elements;
                turns.push(turn(&mut rng));
            }
        }
    }
    assert!(extended > 500, "{extended}");
}

#[test]
fn prompts_share_exactly_the_runs_of_their_common_canonical_bytes() {
    let mut partly = 0;
    for suite in Suite::all(Sabotage::None) {
        for seed in 0..200 {
            let mut rng = Rng::new(seed + 4242);
            let (api, prompt, turn) = rng.pick(&CONVERSATIONS);
            let Node::Envelope(members) = body(api, &mut rng) else { unreachable!() };
            let turns: Vec<Node> = (0..6).map(|_| turn(&mut rng)).collect();
            let write = |turns: &[Node], rng: &mut Rng| {
                let mut whole: Vec<_> = members.iter().filter(|(key, _)| key != prompt).cloned().collect();
                whole.push((prompt.to_owned(), Node::List(turns.to_vec())));
                Node::Envelope(whole).write(SHUFFLED, rng)
            };
            let mut other = turns.clone();
            let changed = rng.below(other.len());
            other[changed] = turn(&mut rng);
            let bodies = [write(&turns, &mut rng), write(&other, &mut rng)];
            let [a, b] = bodies.map(|body| suite.check(api, b"", &body).unwrap().unwrap());
            let common = a.1.stream.iter().zip(&b.1.stream).take_while(|(a, b)| a == b).count();
            let shared = a.0.iter().zip(&b.0).take_while(|(a, b)| a == b).count();
            assert_eq!(shared, common / suite.oracle.run);
            let later = a.0.iter().skip(shared).filter(|element| b.0.contains(element)).count();
            assert_eq!(later, 0, "nothing meets again behind the first difference");
            partly += usize::from(shared > 0 && shared < a.0.len());
        }
    }
    assert!(partly > 200, "{partly}");
}

#[test]
fn a_changed_namespace_changes_every_element() {
    let suite = Suite::new(64, ToolsOrder::BeforeSystem, Sabotage::None);
    let body = |extra: &str| {
        format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]{extra}}}"#, "words ".repeat(100))
            .into_bytes()
    };
    let variants: Vec<Vec<u8>> = [
        "",
        r#","model":"a""#,
        r#","model":"b""#,
        r#","cache_salt":"a""#,
        r#","chat_template":"a""#,
        r#","chat_template_kwargs":{"a":1}"#,
        r#","chat_template_kwargs":{"a":1,"b":2}"#,
        r#","chat_template_kwargs":{"b":2,"a":1}"#,
        r#","reasoning_effort":"a""#,
        r#","documents":["a"]"#,
        r#","model":"a","cache_salt":"b""#,
        r#","model":"b","cache_salt":"a""#,
    ]
    .into_iter()
    .map(body)
    .collect();
    let mut chains = Vec::new();
    for scope in [b"one".as_slice(), b"two"] {
        for body in &variants {
            chains.push(suite.check(Api::Chat, scope, body).unwrap().unwrap().0);
        }
    }
    assert!(chains[0].len() > 8);
    for (index, chain) in chains.iter().enumerate() {
        for other in &chains[..index] {
            assert!(chain.iter().all(|element| !other.contains(element)));
        }
    }
}

#[test]
fn damaged_bodies_never_panic_and_never_get_a_chain_that_differs() {
    let suites = Suite::all(Sabotage::None);
    let (mut accepted, mut rejected) = (0, 0);
    for seed in 0..20_000 {
        let mut rng = Rng::new(seed + 900_000);
        let suite = &suites[rng.below(suites.len())];
        let api = api(&mut rng);
        let node = body(api, &mut rng);
        let spelling = rng.pick(&[COMPACT, SPACED]);
        let mut bytes = node.write(spelling, &mut rng);
        damage(&mut bytes, &mut rng);
        if serde_json::from_slice::<serde_json::Value>(&bytes).is_ok() {
            accepted += 1;
            let result = suite.check(api, b"", &bytes);
            assert!(result.is_ok(), "seed {seed} {}\n{result:?}", shown(&bytes));
        } else {
            rejected += 1;
            let [walk, portable] = suite.hashers.each_ref().map(|hasher| hasher.walk(api, b"", &bytes));
            assert_eq!(walk, portable, "seed {seed} {}", shown(&bytes));
        }
    }
    assert!(accepted > 2_000 && rejected > 2_000, "{accepted} {rejected}");
}

fn damage(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..=rng.below(3) {
        let at = rng.below(bytes.len().max(1));
        match rng.below(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..(at + 1 + rng.below(4)).min(bytes.len()))),
            2 => bytes.insert(at, rng.pick(b"\"\\{}[],: 019unul/\x00\x1f\x80\xf5\xff")),
            3 if at < bytes.len() => bytes[at] = rng.next() as u8,
            4 if at < bytes.len() => bytes[at] = rng.pick(b"\"\\{}[],: aeu/"),
            _ => {
                let piece: Vec<u8> = bytes.iter().skip(at).take(rng.below(40)).copied().collect();
                let to = rng.below(bytes.len().max(1));
                bytes.splice(to..to, piece);
            }
        }
    }
}

#[test]
fn every_prefix_of_a_body_is_survived() {
    let suite = Suite::new(64, ToolsOrder::FirstUserTurn, Sabotage::None);
    for seed in 0..20 {
        let mut rng = Rng::new(seed + 31);
        let api = rng.pick(&APIS);
        let bytes = body(api, &mut rng).write(SPACED, &mut rng);
        for len in 0..bytes.len() {
            let walk = suite.hashers[0].walk(api, b"", &bytes[..len]);
            assert!(matches!(walk.prompt, Err(NoChain::NotJson { .. })), "{}", shown(&bytes[..len]));
            assert!(!walk.envelope.complete);
        }
    }
}

#[test]
fn garbage_is_survived() {
    let suite = Suite::new(64, ToolsOrder::BeforeSystem, Sabotage::None);
    for seed in 0..20_000 {
        let mut rng = Rng::new(seed + 5);
        let alphabet: &[u8] = if rng.chance(50) { b"{}[]\":,\\u0/ messagesroletoolsprompt" } else { b"" };
        let garbage: Vec<u8> = (0..rng.below(200))
            .map(|_| if alphabet.is_empty() { rng.next() as u8 } else { rng.pick(alphabet) })
            .collect();
        let opened = [br#"{"messages":[{"content":"#.as_slice(), &garbage].concat();
        for bytes in [&garbage, &opened] {
            for api in APIS {
                let [walk, portable] = suite.hashers.each_ref().map(|hasher| hasher.walk(api, b"", bytes));
                assert_eq!(walk, portable);
            }
        }
    }
}
