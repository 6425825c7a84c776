//! JSON as vLLM writes it: answers, chunks, errors, the list of models.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::Server;
use super::reply::Reply;

/// A JSON response.
pub(super) fn json(status: StatusCode, value: &Value) -> Response<Reply> {
    raw_json(status, value.to_string())
}

pub(super) fn raw_json(status: StatusCode, text: impl Into<bytes::Bytes>) -> Response<Reply> {
    let mut response = Response::new(Reply::whole(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A request that is not served, and why.
#[derive(Debug)]
pub(super) struct Rejection {
    pub(super) status: StatusCode,
    /// vLLM's name of the error.
    pub(super) kind: &'static str,
    pub(super) message: String,
    /// The key of the body that is at fault.
    pub(super) param: Option<&'static str>,
}

impl Rejection {
    /// The client's mistake.
    pub(super) fn bad(message: impl Into<String>, param: Option<&'static str>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: "BadRequestError", message: message.into(), param }
    }

    pub(super) fn response(&self) -> Response<Reply> {
        error(self.status, self.kind, &self.message, self.param)
    }
}

/// An error in OpenAI's shape; `kind` is vLLM's name of the error.
pub(super) fn error(status: StatusCode, kind: &str, message: &str, param: Option<&str>) -> Response<Reply> {
    let error = json!({"message": message, "type": kind, "param": param, "code": status.as_u16()});
    json(status, &json!({ "error": error }))
}

/// `GET /v1/models`.
pub(super) fn models(server: &Server) -> Response<Reply> {
    let base = server.config.models.first();
    let card = |name: &String, parent: Option<&String>| {
        json!({
            "id": name,
            "object": "model",
            "created": now_s(),
            "owned_by": "vllm",
            "root": parent.or(base),
            "parent": parent,
            "max_model_len": server.plan.max_model_len,
            "permission": [],
        })
    };
    let served = server.config.models.iter().map(|name| card(name, None));
    let adapters = server.config.loras.iter().map(|name| card(name, base));
    let data: Vec<Value> = served.chain(adapters).collect();
    json(StatusCode::OK, &json!({"object": "list", "data": data}))
}

/// Seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// What all chunks of an answer have in common.
pub(super) struct Form {
    pub(super) chat: bool,
    /// A JSON string, quotes included.
    id: String,
    /// A JSON string, quotes included.
    model: String,
    created: u64,
    prompt_tokens: u64,
    details: Details,
}

/// How cached tokens are reported.
#[derive(Clone, Copy, Debug)]
pub(super) struct Details {
    pub(super) enabled: bool,
    pub(super) null_when_zero: bool,
    /// A lie ordered by a fault.
    pub(super) instead: Option<u32>,
}

impl Form {
    pub(super) fn new(chat: bool, id: &str, model: &str, prompt_tokens: u64, details: Details) -> Self {
        let quote = |text: &str| Value::from(text).to_string();
        let id = quote(&format!("{}-{id}", if chat { "chatcmpl" } else { "cmpl" }));
        Self { chat, id, model: quote(model), created: now_s(), prompt_tokens, details }
    }

    /// The chunk that opens a chat; a completion has none.
    pub(super) fn open_chunk(&self, out: &mut Vec<u8>) {
        if self.chat {
            self.chunk_head(out);
            out.extend_from_slice(br#""choices":[{"index":0,"delta":{"role":"assistant","content":""},"#);
            out.extend_from_slice(b"\"logprobs\":null,\"finish_reason\":null}]}\n\n");
        }
    }

    /// One token. `text` must need no escapes.
    pub(super) fn token_chunk(&self, text: &str, last: bool, out: &mut Vec<u8>) {
        self.chunk_head(out);
        let (open, close) =
            if self.chat { (r#""delta":{"content":""#, r#""}"#) } else { (r#""text":""#, r#"""#) };
        let finish = if last { r#""length""# } else { "null" };
        push(
            out,
            format_args!(
                "\"choices\":[{{\"index\":0,{open}{text}{close},\"logprobs\":null,\"finish_reason\":{finish},\
             \"stop_reason\":null}}]}}\n\n"
            ),
        );
    }

    /// The chunk with the usage and without choices.
    pub(super) fn usage_chunk(&self, completion_tokens: u32, cached_tokens: u32, out: &mut Vec<u8>) {
        self.chunk_head(out);
        out.extend_from_slice(br#""choices":[],"#);
        self.usage(completion_tokens, cached_tokens, out);
        out.extend_from_slice(b"}\n\n");
    }

    /// An answer in one piece. `text` must need no escapes.
    pub(super) fn whole(&self, text: &str, completion_tokens: u32, cached_tokens: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len() + 512);
        out.push(b'{');
        self.envelope(if self.chat { "chat.completion" } else { "text_completion" }, &mut out);
        let (open, close) = if self.chat {
            (r#""message":{"role":"assistant","content":""#, r#"","refusal":null,"tool_calls":[]}"#)
        } else {
            (r#""text":""#, r#"""#)
        };
        push(
            &mut out,
            format_args!(
                "\"choices\":[{{\"index\":0,{open}{text}{close},\"logprobs\":null,\"finish_reason\":\"length\",\
             \"stop_reason\":null}}],\"system_fingerprint\":null,"
            ),
        );
        self.usage(completion_tokens, cached_tokens, &mut out);
        out.extend_from_slice(br#","kv_transfer_params":null}"#);
        out
    }

    fn chunk_head(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"data: {");
        self.envelope(if self.chat { "chat.completion.chunk" } else { "text_completion" }, out);
    }

    fn envelope(&self, object: &str, out: &mut Vec<u8>) {
        let Self { id, created, model, .. } = self;
        push(out, format_args!(r#""id":{id},"object":"{object}","created":{created},"model":{model},"#));
    }

    fn usage(&self, completion_tokens: u32, cached_tokens: u32, out: &mut Vec<u8>) {
        let prompt_tokens = self.prompt_tokens;
        let total_tokens = prompt_tokens + u64::from(completion_tokens);
        push(
            out,
            format_args!(
                "\"usage\":{{\"prompt_tokens\":{prompt_tokens},\"total_tokens\":{total_tokens},\
             \"completion_tokens\":{completion_tokens},\"prompt_tokens_details\":"
            ),
        );
        let cached = self.details.instead.unwrap_or(cached_tokens);
        if !self.details.enabled || (cached == 0 && self.details.null_when_zero) {
            out.extend_from_slice(b"null}");
        } else {
            push(out, format_args!("{{\"cached_tokens\":{cached}}}}}"));
        }
    }
}

fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a Vec cannot fail");
}
