//! From a request body to the text a model would see.
//!
//! The template is fixed and simple: chat-template arguments if any, tools, then each message as
//! `<|role|>\n`, its parts, `<|end|>\n`, then `<|assistant|>\n` for the answer. What an engine's template would
//! not see doesn't change the text: white space between JSON tokens, string escapes, the order of the envelope's
//! keys. Inside tools and other free objects the order of keys is kept, as Jinja's `tojson` does.

mod canonical;
#[cfg(test)]
mod tests;
mod wire;

pub use canonical::canonical_json;
pub use wire::{ChatRequest, CompletionRequest, Content, Message, Prompt, StreamOptions, TokenizeRequest};

use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use crate::content::{TOKEN_ID_BYTES, Tokeniser};

/// A rendered prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// Text, or token ids of [`TOKEN_ID_BYTES`] bytes each.
    pub bytes: Vec<u8>,
    /// How `bytes` divide into tokens.
    pub tokeniser: Tokeniser,
}

impl Rendered {
    /// Tokens of the prompt.
    pub fn tokens(&self) -> u64 {
        self.tokeniser.tokens_in(self.bytes.len())
    }
}

/// Renders chats and prompts for one engine.
#[derive(Clone, Copy, Debug)]
pub struct Renderer {
    /// The cut into tokens.
    pub tokeniser: Tokeniser,
    /// Tokens that an image, a video or a sound takes in the prompt, whatever its size.
    pub media_tokens: u32,
}

impl Renderer {
    /// The text of a chat. `body_bytes` is a guess of its size.
    pub fn chat(&self, request: &ChatRequest<'_>, body_bytes: usize) -> Rendered {
        let mut out = String::with_capacity(body_bytes + 64);
        if let Some(kwargs) = request.chat_template_kwargs {
            push_section(&mut out, "kwargs", |out| canonical_json(kwargs.get(), out));
        }
        if let Some(tools) = request.tools.as_ref().filter(|tools| !tools.is_empty()) {
            push_section(&mut out, "tools", |out| {
                for tool in tools {
                    canonical_json(tool.get(), out);
                    out.push('\n');
                }
            });
        }
        for message in &request.messages {
            self.message(&mut out, message);
        }
        if request.continue_final_message == Some(true) {
            out.truncate(out.strip_suffix(END).map_or(out.len(), str::len));
        } else if request.add_generation_prompt != Some(false) {
            out.push_str("<|assistant|>\n");
        }
        Rendered { bytes: out.into_bytes(), tokeniser: self.tokeniser }
    }

    /// The text of a completion. An array of strings is one prompt, its elements joined (vLLM would answer each
    /// with a choice of its own).
    pub fn prompt(&self, prompt: Prompt<'_>) -> Rendered {
        match prompt {
            Prompt::Text(text) => {
                Rendered { bytes: text.into_owned().into_bytes(), tokeniser: self.tokeniser }
            }
            Prompt::TokenIds(ids) => {
                let mut bytes = Vec::with_capacity(ids.len() * TOKEN_ID_BYTES);
                bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
                Rendered { bytes, tokeniser: self.tokeniser.for_token_ids() }
            }
        }
    }

    fn message(&self, out: &mut String, message: &Message<'_>) {
        push_section(out, &message.role, |out| {
            if let Some(name) = &message.name {
                push_field(out, "name", name);
            }
            if let Some(id) = &message.tool_call_id {
                push_field(out, "tool_call_id", id);
            }
            if let Some(thought) = message.reasoning_content.as_ref().or(message.reasoning.as_ref()) {
                push_field(out, "think", thought);
            }
            match &message.content {
                Content::None => {}
                Content::Text(text) => out.push_str(text),
                Content::Parts(parts) => parts.iter().for_each(|part| self.part(out, part)),
            }
            for call in message.tool_calls.iter().flatten() {
                push_field(out, "call", call.function.name.as_deref().unwrap_or(""));
                match call.function.arguments {
                    Some(arguments) => push_text_or_json(out, arguments),
                    None => continue,
                }
                out.push('\n');
            }
        });
    }

    fn part(&self, out: &mut String, part: &wire::Part<'_>) {
        match part {
            wire::Part::Text(text) => out.push_str(text),
            wire::Part::Media { kind, value } => {
                let mut canonical = String::with_capacity(value.get().len());
                canonical_json(value.get(), &mut canonical);
                let start = out.len();
                let bytes = self.tokeniser.bytes_of(u64::from(self.media_tokens));
                let marker = format!("<|{kind}:{:016x}|>", xxh3_64(canonical.as_bytes()));
                out.push_str(&marker);
                // An engine puts the placeholder once for each token of the media.
                while out.len() - start + marker.len() <= bytes {
                    out.push_str(&marker);
                }
                out.extend(std::iter::repeat_n('~', bytes.saturating_sub(out.len() - start)));
            }
        }
    }
}

const END: &str = "<|end|>\n";

fn push_section(out: &mut String, name: &str, body: impl FnOnce(&mut String)) {
    out.push_str("<|");
    out.push_str(name);
    out.push_str("|>\n");
    body(out);
    out.push_str(END);
}

fn push_field(out: &mut String, name: &str, value: &str) {
    out.push('<');
    out.push_str(name);
    out.push('>');
    out.push_str(value);
    out.push('\n');
}

/// Tool-call arguments are JSON inside a string by OpenAI's specification; some clients send the object itself.
fn push_text_or_json(out: &mut String, value: &RawValue) {
    match serde_json::from_str::<std::borrow::Cow<'_, str>>(value.get()) {
        Ok(text) => out.push_str(&text),
        Err(_) => canonical_json(value.get(), out),
    }
}
