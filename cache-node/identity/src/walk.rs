//! The one walk over a body: members of the top-level object as they come, the prompt hashed on the way.

use crate::json::{Cursor, KeySpace, Value};
use crate::limits::{ITEMS_MAX, JSON_BYTES_MAX};
use crate::sink::Sink;
use crate::{Api, ChainHasher, Envelope, NoChain, Walk};

mod calls;
mod completion;
mod finish;
mod front;
mod items;
mod message;
mod namespace;
mod parts;
mod tools;

use calls::Call;
use namespace::Namespace;
use parts::Part;

/// Bytes that never occur in UTF-8, so that no text can look like the frame around it.
mod marker {
    pub(super) const MESSAGE: u8 = 0xFF;
    pub(super) const CONTENT: u8 = 0xFE;
    pub(super) const NAME: u8 = 0xFD;
    pub(super) const CALL_ID: u8 = 0xFC;
    pub(super) const NEXT_PART: u8 = 0xFB;
    pub(super) const JSON: u8 = 0xFA;
    pub(super) const CALL: u8 = 0xF9;
    pub(super) const BINARY: u8 = 0xF8;
    pub(super) const REASONING: u8 = 0xF7;
    pub(super) const ARGUMENTS: u8 = 0xF6;
    pub(super) const PAD: u8 = 0xF5;
}

/// State of one walk.
pub(crate) struct Walker<'h, 'a> {
    hasher: &'h ChainHasher,
    api: Api,
    cursor: Cursor<'a>,
    envelope: Envelope<'a>,
    prompt_cache_key: Value,
    user: Value,
    max_tokens: Value,
    max_completion_tokens: Value,
    namespace: Namespace,
    /// `system` or `instructions`, which stand in front of all messages.
    front: Value,
    tools: Value,
    /// The last prompt member: absent, hashed into `sink`, or without a chain.
    prompt: Result<(), NoChain>,
    sink: Sink<'h>,
    /// Before which run the tools belong; `None` while that place has not come.
    tools_at: Option<usize>,
    media: u32,
    budget: Budget,
    /// Parts and calls of the message under way; kept so that a message allocates nothing.
    parts: Vec<Part>,
    calls: Vec<Call>,
}

/// What this body may still make us do.
struct Budget {
    json_bytes: usize,
    items: usize,
}

impl Budget {
    fn json(&mut self, bytes: usize) -> Result<(), NoChain> {
        let too_large = NoChain::TooLarge { what: "bytes of free JSON", limit: JSON_BYTES_MAX };
        self.json_bytes = self.json_bytes.checked_sub(bytes).ok_or(too_large)?;
        Ok(())
    }

    #[inline]
    fn item(&mut self) -> Result<(), NoChain> {
        let too_large = NoChain::TooLarge { what: "messages, parts and tool calls", limit: ITEMS_MAX };
        self.items = self.items.checked_sub(1).ok_or(too_large)?;
        Ok(())
    }
}

impl<'h, 'a> Walker<'h, 'a> {
    pub(crate) fn new(hasher: &'h ChainHasher, api: Api, body: &'a [u8]) -> Self {
        Self {
            hasher,
            api,
            cursor: Cursor::new(body, hasher.runs.cpu()),
            envelope: Envelope::default(),
            prompt_cache_key: Value::Null,
            user: Value::Null,
            max_tokens: Value::Null,
            max_completion_tokens: Value::Null,
            namespace: Namespace::default(),
            front: Value::Null,
            tools: Value::Null,
            prompt: Err(NoChain::NoPrompt { key: api.prompt_key() }),
            sink: Sink::new(&hasher.runs, body.len()),
            tools_at: None,
            media: 0,
            budget: Budget { json_bytes: JSON_BYTES_MAX, items: ITEMS_MAX },
            parts: Vec::new(),
            calls: Vec::new(),
        }
    }

    pub(crate) fn run(mut self, scope: &[u8]) -> Walk<'a> {
        let read = self.members();
        self.envelope.complete = read.is_ok();
        let body = self.cursor.body;
        let text =
            |value: Value| value.text().and_then(|text| text.value(body)).filter(|text| !text.is_empty());
        self.envelope.model = self.namespace.model.text().and_then(|text| text.value(body));
        self.envelope.session = text(self.prompt_cache_key).or_else(|| text(self.user));
        let tokens = [self.max_completion_tokens, self.max_tokens];
        self.envelope.max_tokens = tokens.into_iter().find_map(|value| value.integer(body));
        let envelope = std::mem::take(&mut self.envelope);
        let prompt = read.and_then(|()| self.finish(scope));
        Walk { envelope, prompt }
    }

    /// Reads the whole body; fails where it stops being JSON.
    fn members(&mut self) -> Result<(), NoChain> {
        self.cursor.blank();
        self.cursor.expect(b'{')?;
        self.envelope.body_object = Some(self.cursor.at);
        let mut first = true;
        let mut space = KeySpace::default();
        while let Some(key) = self.cursor.key(&mut first)? {
            self.envelope.has_members = true;
            let key = key.key(self.cursor.cpu, self.cursor.body, &mut space);
            if key == self.api.prompt_key().as_bytes() {
                self.prompt_member()?;
            } else if self.api.front_key().is_some_and(|front| key == front.as_bytes()) {
                self.front = self.cursor.value()?;
            } else {
                self.member(key)?;
            }
        }
        self.cursor.blank();
        if self.cursor.at == self.cursor.body.len() { Ok(()) } else { Err(self.cursor.broken()) }
    }

    fn member(&mut self, key: &[u8]) -> Result<(), NoChain> {
        let start = self.cursor.at;
        // Not worth a copy of the code for each of these rare members.
        #[inline(never)]
        fn value(walker: &mut Walker<'_, '_>) -> Result<Value, NoChain> {
            walker.cursor.value()
        }
        match key {
            b"model" => self.namespace.model = value(self)?,
            b"cache_salt" => self.namespace.cache_salt = value(self)?,
            b"chat_template" => self.namespace.chat_template = value(self)?,
            b"chat_template_kwargs" => self.namespace.chat_template_kwargs = value(self)?,
            b"reasoning_effort" => self.namespace.reasoning_effort = value(self)?,
            b"documents" => self.namespace.documents = value(self)?,
            b"tools" => self.tools = value(self)?,
            b"stream" => self.envelope.stream = value(self)?.is_true(self.cursor.body),
            b"stream_options" => self.stream_options()?,
            b"max_tokens" => self.max_tokens = value(self)?,
            b"max_completion_tokens" => self.max_completion_tokens = value(self)?,
            b"prompt_cache_key" => self.prompt_cache_key = value(self)?,
            b"user" => self.user = value(self)?,
            b"kv_transfer_params" => {
                self.cursor.skip()?;
                self.envelope.kv_transfer_params = Some(start..self.cursor.at);
            }
            _ => self.cursor.skip()?,
        }
        Ok(())
    }

    fn stream_options(&mut self) -> Result<(), NoChain> {
        self.envelope.include_usage = false;
        if self.cursor.peek() != Some(b'{') {
            return self.cursor.skip();
        }
        self.cursor.at += 1;
        let mut first = true;
        let mut space = KeySpace::default();
        while let Some(key) = self.cursor.key(&mut first)? {
            let include_usage = key.key(self.cursor.cpu, self.cursor.body, &mut space) == b"include_usage";
            let value = self.cursor.value()?;
            if include_usage {
                self.envelope.include_usage = value.is_true(self.cursor.body);
            }
        }
        Ok(())
    }

    /// Hashes a prompt. What has no canonical form must not keep the rest of the envelope from being read, so the
    /// walk then goes on behind the value.
    fn prompt_member(&mut self) -> Result<(), NoChain> {
        let start = self.cursor.at;
        self.sink.clear();
        self.tools_at = None;
        self.media = 0;
        self.prompt = match self.api {
            Api::Chat | Api::Messages => self.messages(),
            Api::Completions | Api::Embeddings => self.completion(),
            Api::Responses => self.items(),
        };
        if self.prompt.is_err() {
            self.cursor.at = start;
            self.cursor.skip()?;
        }
        Ok(())
    }

    fn put_byte(&mut self, byte: u8) {
        self.sink.put_byte(byte);
    }
}
