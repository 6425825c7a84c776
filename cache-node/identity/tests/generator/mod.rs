//! Random request bodies, and the ways in which one body can be written.

use larder_identity::Api;

/// A small seeded generator (xorshift64*): the same bodies in every run, on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// A JSON value. In an envelope object the order of keys is free, in an object it is part of the value.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Literal(String),
    Text(String),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
    Envelope(Vec<(String, Node)>),
}

pub(crate) fn text(value: &str) -> Node {
    Node::Text(value.to_owned())
}

pub(crate) fn envelope(members: Vec<(&str, Node)>) -> Node {
    Node::Envelope(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// How to write a body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spelling {
    pub(crate) white_space: bool,
    pub(crate) escapes: bool,
    pub(crate) shuffle: bool,
}

pub(crate) const COMPACT: Spelling = Spelling { white_space: false, escapes: false, shuffle: false };
pub(crate) const SPACED: Spelling = Spelling { white_space: true, escapes: true, shuffle: false };
pub(crate) const SHUFFLED: Spelling = Spelling { white_space: true, escapes: true, shuffle: true };

impl Node {
    pub(crate) fn write(&self, spelling: Spelling, rng: &mut Rng) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_to(&mut out, spelling, rng);
        out
    }

    fn write_to(&self, out: &mut Vec<u8>, spelling: Spelling, rng: &mut Rng) {
        match self {
            Self::Literal(literal) => out.extend(literal.as_bytes()),
            Self::Text(value) => write_text(value, out, spelling, rng),
            Self::List(values) => {
                out.push(b'[');
                for (index, value) in values.iter().enumerate() {
                    comma(index, out, spelling, rng);
                    value.write_to(out, spelling, rng);
                }
                blank(out, spelling, rng);
                out.push(b']');
            }
            Self::Object(members) => write_members(&members.iter().collect::<Vec<_>>(), out, spelling, rng),
            Self::Envelope(members) => {
                let mut members: Vec<_> = members.iter().collect();
                // Twice given keys must keep their order, since the last one counts.
                let twice = (1..members.len()).any(|i| members[..i].iter().any(|m| m.0 == members[i].0));
                if spelling.shuffle && !twice {
                    for index in (1..members.len()).rev() {
                        members.swap(index, rng.below(index + 1));
                    }
                }
                write_members(&members, out, spelling, rng);
            }
        }
    }
}

fn write_members(members: &[&(String, Node)], out: &mut Vec<u8>, spelling: Spelling, rng: &mut Rng) {
    out.push(b'{');
    for (index, (key, value)) in members.iter().enumerate() {
        comma(index, out, spelling, rng);
        write_text(key, out, spelling, rng);
        blank(out, spelling, rng);
        out.push(b':');
        blank(out, spelling, rng);
        value.write_to(out, spelling, rng);
    }
    blank(out, spelling, rng);
    out.push(b'}');
}

fn comma(index: usize, out: &mut Vec<u8>, spelling: Spelling, rng: &mut Rng) {
    if index > 0 {
        blank(out, spelling, rng);
        out.push(b',');
    }
    blank(out, spelling, rng);
}

fn blank(out: &mut Vec<u8>, spelling: Spelling, rng: &mut Rng) {
    while spelling.white_space && rng.chance(25) {
        out.push(rng.pick(b" \n\r\t"));
    }
}

fn write_text(value: &str, out: &mut Vec<u8>, spelling: Spelling, rng: &mut Rng) {
    // Some texts get many escapes, some few, as clients do.
    let rate = if spelling.escapes { rng.pick(&[0, 2, 30, 100]) } else { 0 };
    out.push(b'"');
    for character in value.chars() {
        let short = match character {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            _ => "",
        };
        if rng.chance(rate) || (character < ' ' && short.is_empty()) {
            write_units(character, out, spelling, rng);
        } else if short.is_empty() {
            out.extend(character.encode_utf8(&mut [0; 4]).as_bytes());
        } else {
            out.extend(short.as_bytes());
        }
    }
    out.push(b'"');
}

fn write_units(character: char, out: &mut Vec<u8>, spelling: Spelling, rng: &mut Rng) {
    if character == '/' && rng.chance(50) {
        return out.extend(b"\\/");
    }
    for unit in character.encode_utf16(&mut [0; 2]) {
        let upper = spelling.escapes && rng.chance(50);
        let written = if upper { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") };
        out.extend(written.as_bytes());
    }
}

const WORDS: [&str; 16] = [
    "let x = \"a\\b\";\n",
    "the ",
    "quick",
    " fox/",
    "é",
    "漢字 ",
    "😀",
    "\t",
    "\u{1}",
    "\u{7f}",
    "\\u0041 ",
    "\r\n",
    "</s>",
    "{\"k\": [1, 2]}",
    "\u{8}\u{c}",
    "a long plain stretch of text that has nothing to escape in it at all; ",
];

pub(crate) fn prose(rng: &mut Rng, words_max: usize) -> String {
    (0..rng.below(words_max + 1)).map(|_| rng.pick(&WORDS)).collect()
}

pub(crate) fn text_or_odd(rng: &mut Rng, words_max: usize) -> Node {
    match rng.below(30) {
        0 => Node::Literal("null".to_owned()),
        1 => free(rng, 2),
        _ => Node::Text(prose(rng, words_max)),
    }
}

/// A free value: schemas, arguments.
pub(crate) fn free(rng: &mut Rng, depth: usize) -> Node {
    let kinds = if depth == 0 { 2 } else { 4 };
    match rng.below(kinds) {
        0 => Node::Literal(
            rng.pick(&["0", "-1.50", "1e2", "true", "false", "null", "12345678901234567890", "-0"])
                .to_owned(),
        ),
        1 => Node::Text(prose(rng, 4)),
        2 => Node::List((0..rng.below(4)).map(|_| free(rng, depth - 1)).collect()),
        _ => Node::Object((0..rng.below(5)).map(|_| (prose(rng, 1), free(rng, depth - 1))).collect()),
    }
}

fn maybe<'a>(
    rng: &mut Rng,
    percent: usize,
    key: &'a str,
    value: impl FnOnce(&mut Rng) -> Node,
) -> Vec<(&'a str, Node)> {
    if rng.chance(percent) { vec![(key, value(rng))] } else { Vec::new() }
}

fn part(rng: &mut Rng) -> Node {
    let url = |rng: &mut Rng| Node::Text(format!("data:image/png;base64,iVBOR/{}", rng.below(50)));
    match rng.below(12) {
        0 => envelope(vec![
            ("type", text("image_url")),
            ("image_url", envelope(vec![("detail", text("low")), ("url", url(rng))])),
        ]),
        1 => envelope(vec![("type", text("input_image")), ("image_url", url(rng))]),
        2 => envelope(vec![
            ("type", text("input_audio")),
            ("input_audio", envelope(vec![("data", url(rng)), ("format", text("wav"))])),
        ]),
        3 => envelope(vec![
            ("type", text(rng.pick(&["file", "video_url", "audio_url"]))),
            ("uuid", text("u-1")),
            ("file", envelope(vec![("file_id", url(rng))])),
        ]),
        4 => Node::Object(vec![
            ("type".to_owned(), text("thinking")),
            ("thinking".to_owned(), Node::Text(prose(rng, 5))),
        ]),
        5 => Node::Text(prose(rng, 5)),
        6 => free(rng, 1),
        _ => envelope(vec![
            ("type", text("text")),
            ("text", Node::Text(prose(rng, 12))),
            ("cache_control", free(rng, 1)),
        ]),
    }
}

fn call(rng: &mut Rng) -> Node {
    let arguments = if rng.chance(70) { Node::Text(prose(rng, 8)) } else { free(rng, 3) };
    let function = envelope(vec![("name", text_or_odd(rng, 2)), ("arguments", arguments)]);
    match rng.below(12) {
        0 => free(rng, 2),
        1 => Node::Object(vec![("type".to_owned(), text("custom")), ("custom".to_owned(), free(rng, 2))]),
        _ => {
            let mut members = vec![("type", text("function")), ("function", function)];
            members.extend(maybe(rng, 80, "id", |rng| Node::Text(format!("call_{}", rng.below(1000)))));
            envelope(members)
        }
    }
}

pub(crate) fn message(rng: &mut Rng) -> Node {
    let role = rng.pick(&["system", "user", "user", "assistant", "tool"]);
    let mut members = maybe(rng, 95, "role", |_| text(role));
    members.extend(maybe(rng, 90, "content", |rng| {
        if rng.chance(35) {
            Node::List((0..rng.below(5)).map(|_| part(rng)).collect())
        } else {
            text_or_odd(rng, 40)
        }
    }));
    members.extend(maybe(rng, 10, "name", |rng| text_or_odd(rng, 2)));
    members.extend(maybe(rng, 15, "tool_call_id", |rng| text_or_odd(rng, 2)));
    members.extend(maybe(rng, 10, "reasoning_content", |rng| text_or_odd(rng, 10)));
    members.extend(maybe(rng, 10, "reasoning", |rng| text_or_odd(rng, 10)));
    members.extend(maybe(rng, 20, "tool_calls", |rng| {
        if rng.chance(95) { Node::List((0..rng.below(4)).map(|_| call(rng)).collect()) } else { free(rng, 1) }
    }));
    members.extend(maybe(rng, 10, "unknown", |rng| free(rng, 3)));
    members.extend(maybe(rng, 5, "content", |rng| Node::Text(prose(rng, 10))));
    envelope(members)
}

fn common(rng: &mut Rng) -> Vec<(&'static str, Node)> {
    let mut members = maybe(rng, 95, "model", |rng| text(rng.pick(&["llama", "org/model é", "m\"x\\"])));
    members.extend(maybe(rng, 15, "cache_salt", |rng| text_or_odd(rng, 2)));
    members.extend(maybe(rng, 50, "stream", |_| Node::Literal("true".to_owned())));
    members.extend(maybe(rng, 30, "stream_options", |_| {
        Node::Envelope(vec![("include_usage".to_owned(), Node::Literal("true".to_owned()))])
    }));
    members.extend(maybe(rng, 40, "max_tokens", |rng| Node::Literal(rng.below(9999).to_string())));
    members.extend(maybe(rng, 20, "user", |rng| text_or_odd(rng, 2)));
    members.extend(maybe(rng, 20, "response_format", |rng| free(rng, 4)));
    members
}

fn tools(rng: &mut Rng) -> Node {
    let count = rng.below(5);
    Node::List(
        (0..count)
            .map(|_| {
                Node::Object(vec![
                    ("type".to_owned(), text("function")),
                    ("function".to_owned(), free(rng, 4)),
                ])
            })
            .collect(),
    )
}

/// A body of the given API. Most are well formed requests, some have fields of odd types.
pub(crate) fn body(api: Api, rng: &mut Rng) -> Node {
    let mut members = common(rng);
    match api {
        Api::Chat => {
            members.extend(maybe(rng, 50, "tools", tools));
            members.extend(maybe(rng, 10, "chat_template_kwargs", |rng| free(rng, 2)));
            members.extend(maybe(rng, 10, "reasoning_effort", |rng| text_or_odd(rng, 1)));
            members.push(("messages", Node::List((0..rng.below(8)).map(|_| message(rng)).collect())));
            members.extend(maybe(rng, 3, "messages", |rng| free(rng, 1)));
            members.extend(maybe(rng, 3, "messages", |rng| Node::List(vec![message(rng)])));
        }
        Api::Messages => {
            members.extend(maybe(rng, 50, "tools", tools));
            members.extend(maybe(rng, 60, "system", front));
            members.extend(maybe(rng, 2, "system", |rng| text_or_odd(rng, 20)));
            members.push(("messages", Node::List((0..rng.below(8)).map(|_| message(rng)).collect())));
        }
        Api::Responses => {
            members.extend(maybe(rng, 50, "tools", tools));
            members.extend(maybe(rng, 60, "instructions", front));
            let input = if rng.chance(80) {
                Node::List((0..rng.below(8)).map(|_| item(rng)).collect())
            } else {
                text_or_odd(rng, 80)
            };
            members.push(("input", input));
        }
        Api::Embeddings => members.push(("input", prompt(rng))),
        _ => members.push(("prompt", prompt(rng))),
    }
    members.extend(maybe(rng, 30, "kv_transfer_params", |rng| free(rng, 2)));
    envelope(members)
}

/// What stands in front of all messages.
fn front(rng: &mut Rng) -> Node {
    if rng.chance(30) {
        Node::List((0..rng.below(4)).map(|_| part(rng)).collect())
    } else {
        text_or_odd(rng, 60)
    }
}

/// An item of a response's input: mostly a message.
pub(crate) fn item(rng: &mut Rng) -> Node {
    let Node::Envelope(mut members) = message(rng) else { unreachable!("a message is an envelope") };
    match rng.below(6) {
        0 => {
            let kind = rng.pick(&["function_call", "function_call_output", "reasoning", "messages"]);
            Node::Object(vec![
                ("type".to_owned(), text(kind)),
                ("role".to_owned(), text("user")),
                ("call_id".to_owned(), text_or_odd(rng, 2)),
                ("arguments".to_owned(), free(rng, 2)),
            ])
        }
        1 => {
            members.push(("type".to_owned(), text("message")));
            Node::Envelope(members)
        }
        _ => Node::Envelope(members),
    }
}

fn prompt(rng: &mut Rng) -> Node {
    let tokens = |rng: &mut Rng| {
        Node::List((0..rng.below(300)).map(|_| Node::Literal(rng.below(150_000).to_string())).collect())
    };
    match rng.below(6) {
        0 => Node::List((0..rng.below(4)).map(|_| Node::Text(prose(rng, 30))).collect()),
        1 => tokens(rng),
        2 => Node::List((0..rng.below(4)).map(|_| tokens(rng)).collect()),
        3 => free(rng, 2),
        _ => Node::Text(prose(rng, 80)),
    }
}
