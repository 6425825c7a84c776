//! The request bodies, borrowed from the received bytes wherever the JSON has no escapes.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// `POST /v1/chat/completions`: the keys that matter here, all others ignored.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the OpenAI API")]
pub struct ChatRequest<'a> {
    pub model: Option<String>,
    #[serde(borrow)]
    pub messages: Vec<Message<'a>>,
    #[serde(borrow)]
    pub tools: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    pub chat_template_kwargs: Option<&'a RawValue>,
    pub add_generation_prompt: Option<bool>,
    pub continue_final_message: Option<bool>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub max_tokens: Option<u32>,
    pub max_completion_tokens: Option<u32>,
    pub cache_salt: Option<String>,
    pub n: Option<u32>,
}

/// `POST /v1/completions`.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the OpenAI API")]
pub struct CompletionRequest<'a> {
    pub model: Option<String>,
    #[serde(borrow)]
    pub prompt: Prompt<'a>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub max_tokens: Option<u32>,
    pub cache_salt: Option<String>,
    pub n: Option<u32>,
}

/// `POST /tokenize`: a prompt or a chat.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the vLLM API")]
pub struct TokenizeRequest<'a> {
    pub model: Option<String>,
    #[serde(borrow)]
    pub prompt: Option<Prompt<'a>>,
}

/// What a stream carries beside its tokens.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct StreamOptions {
    /// Whether a last chunk with the usage is sent.
    pub include_usage: Option<bool>,
}

/// One message of a chat.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the OpenAI API")]
pub struct Message<'a> {
    #[serde(borrow)]
    pub role: Cow<'a, str>,
    #[serde(borrow, default)]
    pub content: Content<'a>,
    pub name: Option<String>,
    pub tool_call_id: Option<String>,
    pub reasoning_content: Option<String>,
    pub reasoning: Option<String>,
    #[serde(borrow)]
    pub tool_calls: Option<Vec<ToolCall<'a>>>,
}

/// A call that the assistant made.
#[derive(Debug, Deserialize)]
pub struct ToolCall<'a> {
    #[serde(borrow)]
    pub(super) function: Function<'a>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Function<'a> {
    pub(super) name: Option<String>,
    #[serde(borrow)]
    pub(super) arguments: Option<&'a RawValue>,
}

/// The content of a message.
#[derive(Debug, Default)]
pub enum Content<'a> {
    /// Null or absent.
    #[default]
    None,
    /// A string.
    Text(Cow<'a, str>),
    /// An array of parts.
    Parts(Vec<Part<'a>>),
}

/// An element of a content array.
#[derive(Debug)]
pub enum Part<'a> {
    /// Text of any kind (`text`, `input_text`, `refusal`, ...), or a bare string.
    Text(Cow<'a, str>),
    /// An image, a sound or another thing that is not text.
    Media {
        /// The part's `type`.
        kind: Cow<'a, str>,
        /// The value under the key named like the type, where data or URL are.
        value: &'a RawValue,
    },
}

/// The prompt of a completion.
#[derive(Debug)]
pub enum Prompt<'a> {
    /// One string, or several joined.
    Text(Cow<'a, str>),
    /// Token ids, one list or several joined.
    TokenIds(Vec<u32>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, an array of parts or null")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Content::None)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Content::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Content::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut parts = Vec::new();
        while let Some(part) = seq.next_element()? {
            parts.push(part);
        }
        Ok(Content::Parts(parts))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Part<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PartVisitor)
    }
}

struct PartVisitor;

impl<'de> Visitor<'de> for PartVisitor {
    type Value = Part<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a content part with a type, or a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Part::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Part::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut kind: Option<String> = None;
        let mut values: Vec<(String, &'de RawValue)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "type" {
                kind = Some(map.next_value()?);
            } else {
                values.push((key, map.next_value()?));
            }
        }
        let kind = kind.ok_or_else(|| de::Error::missing_field("type"))?;
        let named = |name: &str| values.iter().find(|(key, _)| key == name).map(|(_, value)| *value);
        if let Some(text) = named("text").or_else(|| named("refusal")) {
            return serde_json::from_str::<String>(text.get())
                .map(|text| Part::Text(Cow::Owned(text)))
                .map_err(|error| de::Error::custom(format_args!("text of a {kind} part: {error}")));
        }
        let value = named(&kind)
            .or_else(|| values.first().map(|(_, value)| *value))
            .ok_or_else(|| de::Error::custom(format_args!("a {kind} part without a value")))?;
        Ok(Part::Media { kind: Cow::Owned(kind), value })
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Prompt<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptVisitor)
    }
}

struct PromptVisitor;

/// An element of a prompt array.
#[derive(Deserialize)]
#[serde(untagged)]
enum PromptElement {
    Id(u32),
    Text(String),
    Ids(Vec<u32>),
}

impl<'de> Visitor<'de> for PromptVisitor {
    type Value = Prompt<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, an array of strings, an array of token ids or an array of such arrays")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Prompt::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Prompt::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut text = String::new();
        let mut ids = Vec::new();
        while let Some(element) = seq.next_element()? {
            match element {
                PromptElement::Id(id) => ids.push(id),
                PromptElement::Ids(more) => ids.extend(more),
                PromptElement::Text(more) => text.push_str(&more),
            }
        }
        match (text.is_empty(), ids.is_empty()) {
            (_, true) => Ok(Prompt::Text(Cow::Owned(text))),
            (true, false) => Ok(Prompt::TokenIds(ids)),
            (false, false) => Err(de::Error::custom("a prompt of both strings and token ids")),
        }
    }
}
