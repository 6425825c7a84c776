//! The definition again, written to be read: build the canonical bytes of the whole prompt, cut, hash, link.
//! Shares no code with the crate; JSON comes from serde_json.

use std::fmt;

use larder_identity::{Api, Secret, ToolsOrder};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64_with_secret;

/// What the definition makes of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    /// The canonical stream.
    pub(crate) stream: Vec<u8>,
    pub(crate) namespace: u64,
    pub(crate) media: u32,
}

impl Expected {
    /// The chain of the stream.
    pub(crate) fn elements(&self, secret: &Secret, run: usize) -> Vec<u64> {
        let mut covered = 0_u64;
        let link = |covered: u64, run: &[u8]| {
            let words = [covered, xxh3_64_with_secret(run, secret.expose())].map(u64::to_le_bytes).concat();
            xxh3_64_with_secret(&words, secret.expose())
        };
        let mut elements = Vec::new();
        for run in self.stream.chunks_exact(run) {
            covered = link(covered, run);
            elements.push(covered ^ self.namespace);
        }
        elements
    }
}

/// One rule of the definition left out, to show that the tests would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    None,
    /// Escapes are not rewritten.
    EscapesAsWritten,
    /// White space inside free JSON is kept.
    WhiteSpaceKept,
    /// The first of two equal keys counts.
    FirstKeyWins,
    /// Nothing between two messages.
    NoMessageMarker,
    /// Tools stand behind the messages.
    ToolsLast,
    /// `system` and `instructions` do not count.
    NoFront,
}

/// The rules under which a body is read.
#[derive(Debug, Clone)]
pub(crate) struct Oracle {
    pub(crate) secret: Secret,
    pub(crate) run: usize,
    pub(crate) tools_order: ToolsOrder,
    pub(crate) sabotage: Sabotage,
}

/// Members in order, twice given ones twice.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Collect).map(Members)
    }
}

type Raw<'a> = Option<&'a RawValue>;

fn present(raw: Raw<'_>) -> Raw<'_> {
    raw.filter(|raw| raw.get() != "null")
}

fn string(raw: Raw<'_>) -> Option<String> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
}

fn members<'a>(raw: Raw<'a>) -> Option<Members<'a>> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
}

fn elements<'a>(raw: Raw<'a>) -> Option<Vec<&'a RawValue>> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
}

impl Oracle {
    /// `None` where the definition gives no chain.
    pub(crate) fn read(&self, api: Api, scope: &[u8], body: &[u8]) -> Option<Expected> {
        serde_json::from_slice::<serde_json::Value>(body).ok()?;
        let top: Members<'_> = serde_json::from_slice(body).ok()?;
        let mut expected = Expected { stream: Vec::new(), namespace: self.namespace(scope, &top), media: 0 };
        match api {
            Api::Chat => self.chat(&top, ("messages", ""), &mut expected)?,
            Api::Messages => self.chat(&top, ("messages", "system"), &mut expected)?,
            Api::Responses => self.chat(&top, ("input", "instructions"), &mut expected)?,
            Api::Completions => self.completion(present(self.get(&top, "prompt"))?, &mut expected.stream)?,
            Api::Embeddings => self.completion(present(self.get(&top, "input"))?, &mut expected.stream)?,
            _ => return None,
        }
        Some(expected)
    }

    fn get<'a>(&self, members: &Members<'a>, key: &str) -> Raw<'a> {
        let mut found = members.0.iter().filter(|(name, _)| name == key).map(|(_, value)| *value);
        if self.sabotage == Sabotage::FirstKeyWins { found.next() } else { found.next_back() }
    }

    fn namespace(&self, scope: &[u8], top: &Members<'_>) -> u64 {
        let hash = |bytes: &[u8]| xxh3_64_with_secret(bytes, self.secret.expose());
        let mut namespace = hash(scope);
        let keys =
            ["model", "cache_salt", "chat_template", "chat_template_kwargs", "reasoning_effort", "documents"];
        for (number, key) in (1_u64..).zip(keys) {
            if let Some(value) = present(self.get(top, key)) {
                let mut canonical = Vec::new();
                self.value(Some(value), &mut canonical);
                namespace = hash(&[namespace.to_le_bytes(), number.to_le_bytes()].concat());
                namespace = hash(&[namespace.to_le_bytes(), hash(&canonical).to_le_bytes()].concat());
            }
        }
        namespace
    }

    fn chat(&self, top: &Members<'_>, (key, front): (&str, &str), expected: &mut Expected) -> Option<()> {
        let raw = present(self.get(top, key));
        let items = key == "input";
        let user = string(raw).map(|_| format!(r#"{{"role":"user","content":{}}}"#, raw.unwrap().get()));
        let user: Option<&RawValue> = user.as_deref().map(|user| serde_json::from_str(user).unwrap());
        let messages = match user {
            Some(user) if items => vec![user],
            _ => elements(raw)?,
        };
        let front = present(self.get(top, front));
        let tools = present(self.get(top, "tools"))
            .filter(|tools| !elements(Some(tools)).is_some_and(|t| t.is_empty()));
        if messages.is_empty() {
            return None;
        }
        let mut placed = false;
        if let Some(front) = front {
            let first = self.tools_order == ToolsOrder::BeforeSystem;
            if first
                && let Some(tools) = tools
                && self.sabotage != Sabotage::ToolsLast
            {
                placed = true;
                self.json(tools, &mut expected.stream);
                self.pad(&mut expected.stream);
            }
            if self.sabotage != Sabotage::NoFront {
                expected.stream.extend(b"\xFFsystem\xFE");
                self.content(Some(front), expected);
                self.pad(&mut expected.stream);
            }
        }
        for raw in messages {
            let message = members(Some(raw))?;
            let kind = present(self.get(&message, "type"));
            let other = items && kind.is_some() && string(kind).as_deref() != Some("message");
            let here = match self.tools_order {
                ToolsOrder::BeforeSystem => self.sabotage != Sabotage::ToolsLast,
                _ => !other && string(self.get(&message, "role")).as_deref() == Some("user"),
            };
            if here && !placed {
                placed = true;
                self.pad(&mut expected.stream);
                if let Some(tools) = tools {
                    self.json(tools, &mut expected.stream);
                    self.pad(&mut expected.stream);
                }
            }
            if other {
                expected.stream.push(0xFF);
                self.json(raw, &mut expected.stream);
            } else {
                self.message(&message, expected);
            }
        }
        if self.sabotage == Sabotage::ToolsLast
            && let Some(tools) = tools
        {
            self.json(tools, &mut expected.stream);
        }
        Some(())
    }

    fn pad(&self, stream: &mut Vec<u8>) {
        while !stream.len().is_multiple_of(self.run) {
            stream.push(0xF5);
        }
    }

    fn message(&self, message: &Members<'_>, expected: &mut Expected) {
        let out = &mut expected.stream;
        if self.sabotage != Sabotage::NoMessageMarker {
            out.push(0xFF);
        }
        self.value(self.get(message, "role"), out);
        self.marked(0xFD, self.get(message, "name"), out);
        self.marked(0xFC, self.get(message, "tool_call_id"), out);
        let reasoning = present(self.get(message, "reasoning_content")).or(self.get(message, "reasoning"));
        self.marked(0xF7, reasoning, out);
        out.push(0xFE);
        self.content(self.get(message, "content"), expected);
        let calls = self.get(message, "tool_calls");
        match elements(present(calls)) {
            Some(calls) => calls.into_iter().for_each(|call| self.call(call, &mut expected.stream)),
            None => self.marked(0xF9, calls, &mut expected.stream),
        }
    }

    fn content(&self, content: Raw<'_>, expected: &mut Expected) {
        match elements(present(content)) {
            Some(parts) => {
                for (index, part) in parts.into_iter().enumerate() {
                    if index > 0 {
                        expected.stream.push(0xFB);
                    }
                    self.part(part, expected);
                }
            }
            None => self.value(content, &mut expected.stream),
        }
    }

    fn part(&self, raw: &RawValue, expected: &mut Expected) {
        if let Some(text) = string(Some(raw)) {
            return expected.stream.extend(self.spell(&text, raw.get()));
        }
        let Some(part) = members(Some(raw)) else { return self.json(raw, &mut expected.stream) };
        let kind = match present(self.get(&part, "type")) {
            None => "text".to_owned(),
            kind => string(kind).unwrap_or_default(),
        };
        let media = |letter, key| Some((letter, key));
        let media = match kind.as_str() {
            "text" | "input_text" | "output_text" => None,
            "image_url" | "input_image" => media(b'I', "image_url"),
            "input_audio" => media(b'A', "input_audio"),
            "audio_url" => media(b'U', "audio_url"),
            "video_url" => media(b'V', "video_url"),
            "file" | "input_file" => media(b'F', "file"),
            _ => return self.json(raw, &mut expected.stream),
        };
        let Some((letter, key)) = media else {
            let text = self.get(&part, "text");
            return match string(text) {
                Some(_) => self.value(text, &mut expected.stream),
                None => self.json(raw, &mut expected.stream),
            };
        };
        let payload = self.get(&part, key);
        let within = members(payload).and_then(|inner| {
            let named = ["url", "data", "file_data", "file_id"].map(|key| self.get(&inner, key));
            named.into_iter().find(|value| string(*value).is_some()).flatten()
        });
        let candidates = [payload, within, self.get(&part, "uuid")];
        match candidates.into_iter().find(|value| string(*value).is_some()) {
            Some(payload) => {
                let mut text = Vec::new();
                self.value(payload, &mut text);
                let hash = xxh3_64_with_secret(&text, self.secret.expose());
                expected.stream.extend([0xF8, letter]);
                expected.stream.extend(hash.to_le_bytes());
                expected.media += 1;
            }
            None => self.json(raw, &mut expected.stream),
        }
    }

    fn call(&self, raw: &RawValue, out: &mut Vec<u8>) {
        out.push(0xF9);
        let function =
            members(Some(raw)).and_then(|call| members(self.get(&call, "function")).map(|f| (call, f)));
        let Some((call, function)) = function else { return self.json(raw, out) };
        self.value(self.get(&function, "name"), out);
        out.push(0xF6);
        self.value(self.get(&function, "arguments"), out);
        self.marked(0xFC, self.get(&call, "id"), out);
    }

    fn completion(&self, prompt: &RawValue, out: &mut Vec<u8>) -> Option<()> {
        let text = |raw: &RawValue, out: &mut Vec<u8>| {
            let text = string(Some(raw))?;
            out.push(0xFE);
            out.extend(self.spell(&text, raw.get()));
            Some(())
        };
        let Some(items) = elements(Some(prompt)) else { return text(prompt, out) };
        let first = items.first()?;
        if string(Some(first)).is_some() {
            return items.into_iter().try_for_each(|item| text(item, out));
        }
        out.extend([0xF8, b'T']);
        let batch = if first.get().starts_with('[') { items } else { vec![prompt] };
        for (index, prompt) in batch.into_iter().enumerate() {
            if index > 0 {
                out.extend([0xFF; 4]);
            }
            for token in elements(Some(prompt))? {
                let token: u32 = token.get().parse().ok().filter(|token| *token != u32::MAX)?;
                out.extend(token.to_le_bytes());
            }
        }
        Some(())
    }

    fn marked(&self, marker: u8, raw: Raw<'_>, out: &mut Vec<u8>) {
        if present(raw).is_some() {
            out.push(marker);
            self.value(raw, out);
        }
    }

    fn value(&self, raw: Raw<'_>, out: &mut Vec<u8>) {
        let Some(raw) = present(raw) else { return };
        match string(Some(raw)) {
            Some(text) => out.extend(self.spell(&text, raw.get())),
            None => self.json(raw, out),
        }
    }

    fn json(&self, raw: &RawValue, out: &mut Vec<u8>) {
        out.push(0xFA);
        if self.sabotage == Sabotage::WhiteSpaceKept {
            return out.extend(raw.get().as_bytes());
        }
        self.compact(raw, out);
    }

    fn compact(&self, raw: &RawValue, out: &mut Vec<u8>) {
        let mut comma = "";
        if let Some(members) = members(Some(raw)) {
            out.push(b'{');
            for (key, value) in members.0 {
                out.extend(std::mem::replace(&mut comma, ",").as_bytes());
                out.push(b'"');
                out.extend(self.spell(&key, &key));
                out.extend(b"\":");
                self.compact(value, out);
            }
            out.push(b'}');
        } else if let Some(elements) = elements(Some(raw)) {
            out.push(b'[');
            for value in elements {
                out.extend(std::mem::replace(&mut comma, ",").as_bytes());
                self.compact(value, out);
            }
            out.push(b']');
        } else if let Some(text) = string(Some(raw)) {
            out.push(b'"');
            out.extend(self.spell(&text, raw.get()));
            out.push(b'"');
        } else {
            out.extend(raw.get().as_bytes());
        }
    }

    /// The canonical spelling of a string.
    fn spell(&self, text: &str, written: &str) -> Vec<u8> {
        if self.sabotage == Sabotage::EscapesAsWritten {
            return written.as_bytes().to_vec();
        }
        let mut out = String::new();
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                control if control < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(control))),
                other => out.push(other),
            }
        }
        out.into_bytes()
    }
}
