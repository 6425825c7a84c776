//! Chat, completion and tokenize: parse, render, check, submit, answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use super::Server;
use super::format::{self, Details, Form, Rejection};
use super::reply::{Reply, TokenStream};
use super::routes::Received;
use crate::cache::BlockHash;
use crate::content::{Answer, Tokeniser, chain_root};
use crate::fault::{Fault, Kind};
use crate::render::{ChatRequest, CompletionRequest, Rendered, StreamOptions, TokenizeRequest};
use crate::scheduler::{Job, Refusal};

/// What both kinds of request come down to.
struct Work<'a> {
    chat: bool,
    model: Option<&'a str>,
    cache_salt: Option<&'a str>,
    stream: bool,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    n: Option<u32>,
    prompt: Rendered,
}

/// `POST /v1/chat/completions`.
pub(super) async fn chat(
    server: &Arc<Server>,
    parts: &Parts,
    received: &Received,
    fault: Option<&Fault>,
) -> Result<Response<Reply>, Rejection> {
    let request: ChatRequest<'_> = parse(&received.bytes)?;
    let work = Work {
        chat: true,
        model: request.model.as_deref(),
        cache_salt: request.cache_salt.as_deref(),
        stream: request.stream == Some(true),
        stream_options: request.stream_options,
        max_tokens: request.max_completion_tokens.or(request.max_tokens),
        n: request.n,
        prompt: server.plan.renderer.chat(&request, received.bytes.len()),
    };
    run(server, parts, received, fault, work).await
}

/// `POST /v1/completions`.
pub(super) async fn completion(
    server: &Arc<Server>,
    parts: &Parts,
    received: &Received,
    fault: Option<&Fault>,
) -> Result<Response<Reply>, Rejection> {
    let request: CompletionRequest<'_> = parse(&received.bytes)?;
    let work = Work {
        chat: false,
        model: request.model.as_deref(),
        cache_salt: request.cache_salt.as_deref(),
        stream: request.stream == Some(true),
        stream_options: request.stream_options,
        max_tokens: request.max_tokens,
        n: request.n,
        prompt: server.plan.renderer.prompt(request.prompt),
    };
    run(server, parts, received, fault, work).await
}

/// `POST /tokenize`.
pub(super) fn tokenize(server: &Server, received: &Received) -> Result<Response<Reply>, Rejection> {
    let renderer = &server.plan.renderer;
    let rendered = match parse::<TokenizeRequest<'_>>(&received.bytes)?.prompt {
        Some(prompt) => renderer.prompt(prompt),
        None => renderer.chat(&parse(&received.bytes)?, received.bytes.len()),
    };
    let tokens = rendered.tokeniser.token_ids(&rendered.bytes);
    let body = json!({
        "count": tokens.len(),
        "max_model_len": server.plan.max_model_len,
        "tokens": tokens,
        "token_strs": null,
    });
    Ok(format::json(StatusCode::OK, &body))
}

fn parse<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T, Rejection> {
    // One fast pass over the whole body spares a check of each string.
    let text = std::str::from_utf8(body)
        .map_err(|error| Rejection::bad(format!("the body is not UTF-8: {error}"), None))?;
    serde_json::from_str(text).map_err(|error| Rejection::bad(format!("invalid request body: {error}"), None))
}

async fn run(
    server: &Arc<Server>,
    parts: &Parts,
    received: &Received,
    fault: Option<&Fault>,
    work: Work<'_>,
) -> Result<Response<Reply>, Rejection> {
    let (model, namespace) = served(server, work.model)?;
    let (prompt_tokens, output_tokens) = check(server, &work)?;
    let tokeniser = server.plan.renderer.tokeniser;
    let seed = server.config.seed;
    let answer = Answer::new(tokeniser, output_tokens, received.xxh3, received.bytes.len(), seed);
    let hashes = block_hashes(work.prompt, &answer, tokeniser, chain_root(namespace, work.cache_salt));
    let job = Job { prompt_tokens, output_tokens, hashes, streamed: work.stream };
    let ticket = server.engine.submit(job).map_err(refused)?;
    let details = Details {
        enabled: server.config.enable_prompt_tokens_details,
        null_when_zero: server.config.null_when_uncached,
        instead: fault.filter(|fault| fault.kind == Kind::LieCached).map(|fault| fault.cached_tokens),
    };
    let id = request_id(server, parts, received);
    let form = Form::new(work.chat, &id, model, u64::from(prompt_tokens), details);
    if work.stream {
        let include_usage = work.stream_options.and_then(|options| options.include_usage) == Some(true);
        let stream = TokenStream::new(ticket, answer, form, include_usage);
        let mut response = Response::new(Reply::tokens(stream));
        let event_stream = HeaderValue::from_static("text/event-stream; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, event_stream);
        return Ok(response);
    }
    let progress = ticket.progress().finished().await;
    let body = form.whole(answer.text(), progress.produced, progress.cached_tokens);
    Ok(format::raw_json(StatusCode::OK, body))
}

/// Hashes of prompt and answer together: the KV of an answer is found again by whoever quotes it.
fn block_hashes(prompt: Rendered, answer: &Answer, text: Tokeniser, root: u64) -> Vec<BlockHash> {
    let Rendered { mut bytes, tokeniser } = prompt;
    if tokeniser == text {
        bytes.extend_from_slice(answer.computed_text().as_bytes());
    } else {
        let ids = text.token_ids(answer.computed_text().as_bytes());
        bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
    }
    tokeniser.block_hashes(root, &bytes)
}

/// The name to answer with and the name that the cache knows: aliases share the base model's.
fn served<'a>(server: &'a Server, asked: Option<&str>) -> Result<(&'a str, &'a str), Rejection> {
    let config = &server.config;
    let base = config.models.first().map_or("", String::as_str);
    let Some(asked) = asked else { return Ok((base, base)) };
    if let Some(name) = config.models.iter().find(|name| *name == asked) {
        return Ok((name, base));
    }
    if let Some(name) = config.loras.iter().find(|name| *name == asked) {
        return Ok((name, name));
    }
    Err(Rejection {
        status: StatusCode::NOT_FOUND,
        kind: "NotFoundError",
        message: format!("The model `{asked}` does not exist."),
        param: Some("model"),
    })
}

/// Prompt and output tokens, if the request is one that this engine can serve.
fn check(server: &Server, work: &Work<'_>) -> Result<(u32, u32), Rejection> {
    let refuse = |message: String, param| Err(Rejection::bad(message, Some(param)));
    if work.n.is_some_and(|n| n != 1) {
        return refuse("n other than 1 is not imitated".to_owned(), "n");
    }
    if work.cache_salt == Some("") {
        return refuse("cache_salt must be a non-empty string if provided".to_owned(), "cache_salt");
    }
    if work.max_tokens == Some(0) {
        return refuse("max_tokens must be at least 1, got 0.".to_owned(), "max_tokens");
    }
    let limit = server.plan.max_model_len;
    let prompt = match work.prompt.tokens() {
        0 => return refuse("The decoder prompt cannot be empty".to_owned(), "prompt"),
        prompt if prompt < u64::from(limit) => prompt as u32,
        prompt => {
            let message = format!(
                "This model's maximum context length is {limit} tokens. However, your request has {prompt} \
                 input tokens. Please reduce the length of the input messages."
            );
            return refuse(message, "input_tokens");
        }
    };
    let room = limit - prompt;
    match work.max_tokens {
        Some(asked) if asked > room => {
            let message = format!(
                "'max_tokens' or 'max_completion_tokens' is too large: {asked}. This model's maximum context \
                 length is {limit} tokens and your request has {prompt} input tokens ({asked} > {limit} - \
                 {prompt})."
            );
            refuse(message, "max_tokens")
        }
        Some(asked) => Ok((prompt, asked)),
        None => Ok((prompt, server.config.default_max_tokens.min(room))),
    }
}

fn refused(refusal: Refusal) -> Rejection {
    let message = refusal.to_string();
    match refusal {
        Refusal::QueueFull => Rejection {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "ServiceUnavailableError",
            message,
            param: None,
        },
        Refusal::TooLarge { .. } | Refusal::Empty => Rejection::bad(message, None),
    }
}

/// The client's id as in vLLM, else one of the body's hash and the request's number.
fn request_id(server: &Server, parts: &Parts, received: &Received) -> String {
    let given = parts.headers.get("x-request-id").and_then(|value| value.to_str().ok());
    given.map_or_else(
        || format!("{:016x}-{}", received.xxh3, server.requests.load(Ordering::Relaxed)),
        str::to_owned,
    )
}
