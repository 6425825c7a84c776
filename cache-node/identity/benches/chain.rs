//! How fast a body becomes a chain, in body bytes a second, beside XXH3 over the same bytes.
//!
//! `hot`: one body again and again, in cache. `cold`: bodies in turn, over 64 MB of them, so that each comes from
//! memory as it does behind a socket. Their texts differ, so that the branch predictor cannot learn them either.

use std::fmt::Write;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use larder_identity::{Api, ChainHasher, HasherSettings, Secret, Simd};
use xxhash_rust::xxh3::xxh3_64_with_secret;

const COLD_BYTES: usize = 72 << 20;

/// What the texts are made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ascii,
    Code,
    Utf8,
    Escaped,
    Parts,
    Tools,
}

const KINDS: [(Kind, &str); 6] = [
    (Kind::Ascii, "ascii"),
    (Kind::Code, "code"),
    (Kind::Utf8, "utf8"),
    (Kind::Escaped, "u-escaped"),
    (Kind::Parts, "parts"),
    (Kind::Tools, "code+32k-tools"),
];

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn text(kind: Kind, len: usize, rng: &mut Rng) -> String {
    let mut text = String::with_capacity(len + 64);
    while text.len() < len {
        match kind {
            Kind::Ascii => write!(text, "word{} and so on ", rng.below(100_000)),
            Kind::Utf8 => write!(text, "слово{} und größer 漢字\\n", rng.below(100_000)),
            Kind::Escaped => {
                write!(text, "\\u{:04x}\\u{:04x}\\u0438 ", 0x430 + rng.below(32), 0x4e00 + rng.below(4000))
            }
            // About an escape in 50 bytes, at uneven distances.
            _ => {
                let escape = ["\\n    ", "\\\"", "\\n", "\\t"][rng.below(4) as usize];
                let name = &"a_long_identifier_of_some_kind"[..4 + rng.below(26) as usize];
                write!(text, "let {name} = call({}, x[{}]);{escape}", rng.below(1 << 20), rng.below(99))
            }
        }
        .expect("writing to a string");
    }
    text
}

fn body(kind: Kind, len: usize, messages: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    let mut body = String::from(r#"{"model":"llama-3.1-8b","stream":true,"messages":["#);
    for index in 0..messages {
        let role = if index % 2 == 0 { "user" } else { "assistant" };
        let text = text(kind, len / messages, &mut rng);
        let comma = if index == 0 { "" } else { "," };
        let content = match kind {
            Kind::Parts => {
                let (a, b) = text.split_at(text.len() / 2);
                let b = b.trim_start_matches(|c| "nt\"".contains(c));
                let a = a.trim_end_matches('\\');
                format!(r#"[{{"type":"text","text":"{a}"}},{{"type":"text","text":"{b}"}}]"#)
            }
            _ => format!("\"{text}\""),
        };
        write!(body, r#"{comma}{{"role":"{role}","content":{content}}}"#).expect("writing to a string");
    }
    body.push(']');
    if kind == Kind::Tools {
        body.push_str(r#","tools":["#);
        for index in 0..60 {
            let comma = if index == 0 { "" } else { "," };
            write!(
                body,
                r#"{comma}{{"type":"function","function":{{"name":"tool_{index}","description":"{}","parameters":{{"type":"object","properties":{{"path":{{"type":"string","description":"where"}},"line":{{"type":"integer"}}}},"required":["path"]}}}}}}"#,
                "Does a thing with a file and says what it did. ".repeat(7)
            )
            .expect("writing to a string");
        }
        body.push(']');
    }
    body.push_str(r#","max_tokens":512}"#);
    body.into_bytes()
}

fn bench(criterion: &mut Criterion) {
    let secret = Secret::derive(b"bench");
    let hasher = ChainHasher::new(HasherSettings::new(secret.clone()));
    let mut settings = HasherSettings::new(secret.clone());
    settings.simd = Simd::Portable;
    let portable = ChainHasher::new(settings);
    let chain = |hasher: &ChainHasher, body: &[u8]| {
        let walk = hasher.walk(Api::Chat, b"tenant", black_box(body));
        assert!(walk.prompt.is_ok());
        walk.prompt.map_or(0, |chain| chain.elements().len())
    };
    for (size, len, messages) in [("400K", 400 << 10, 60), ("32K", 32 << 10, 60), ("1K", 1 << 10, 4)] {
        for (kind, name) in KINDS {
            let one = body(kind, len, messages, 1);
            let mut group = criterion.benchmark_group(size);
            group.warm_up_time(Duration::from_millis(150)).measurement_time(Duration::from_millis(350));
            group.sample_size(20).throughput(Throughput::Bytes(one.len() as u64));
            group.bench_function(BenchmarkId::new("hot", name), |b| b.iter(|| chain(&hasher, &one)));
            group.bench_function(BenchmarkId::new("hot-portable", name), |b| {
                b.iter(|| chain(&portable, &one))
            });
            group.bench_function(BenchmarkId::new("hot-raw-xxh3", name), |b| {
                b.iter(|| xxh3_64_with_secret(black_box(&one), secret.expose()));
            });
            let bodies: Vec<Vec<u8>> =
                (0..(COLD_BYTES / one.len()) as u64).map(|seed| body(kind, len, messages, seed)).collect();
            let mut turn = bodies.iter().cycle();
            group.bench_function(BenchmarkId::new("cold", name), |b| {
                b.iter(|| chain(&hasher, turn.next().expect("endless")));
            });
            group.bench_function(BenchmarkId::new("cold-raw-xxh3", name), |b| {
                b.iter(|| xxh3_64_with_secret(turn.next().expect("endless"), secret.expose()));
            });
            group.finish();
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
