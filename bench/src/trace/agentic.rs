//! The agentic coding trace of github.com/callanjfox/kv-cache-tester: one session a line.
//!
//! A session has `id`, `block_size`, `hash_id_scope` and `requests`; a request has `in`, `out`, `think_time` and its
//! blocks as `hash_ids` or range-coded as `hash_ranges: [[first, count], ...]`. An entry with `requests` of its own is
//! a sub-agent: its requests are replayed in its place, one after the other (the parent waits for a sub-agent's answer
//! before its next turn, so in sequence is the common case). Block ids cover whole blocks only; the tokens after the
//! last whole block are a request's own.

use super::{Blocks, Format, INPUT_TOKENS_MAX, REQUESTS_MAX, Request, Session, Trace, lines::Lines};
use crate::error::Error;
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct RawSession {
    id: String,
    block_size: u64,
    #[serde(default)]
    hash_id_scope: Scope,
    requests: Vec<RawEntry>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Scope {
    #[default]
    Local,
    Global,
}

#[derive(Deserialize)]
struct RawEntry {
    requests: Option<Vec<RawEntry>>,
    #[serde(rename = "in")]
    input: Option<u64>,
    out: Option<u64>,
    think_time: Option<f64>,
    hash_ranges: Option<Vec<(u64, u64)>>,
    hash_ids: Option<Vec<u64>>,
}

/// Reads a file of sessions, or a folder with one `.json` file (or `.jsonl`) a session.
///
/// # Errors
/// [`Error::Trace`] with the file and line that is malformed.
pub fn read(path: &Path) -> Result<Trace, Error> {
    let mut trace =
        Trace { name: String::new(), format: Format::Agentic, block_tokens: 0, sessions: Vec::new() };
    let mut requests = 0;
    for file in files(path)? {
        let mut lines = Lines::open(&file)?;
        while let Some(line) = lines.next_line()? {
            let added = Lines::json(line).and_then(|raw| add(&mut trace, raw, &mut requests));
            added.map_err(|reason| lines.malformed(reason))?;
        }
    }
    Ok(trace)
}

/// The file itself, or a folder's session files in the order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let entries = std::fs::read_dir(path).map_err(Error::file("read", path))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(Error::file("read", path))?.path();
        if file.extension().is_some_and(|ending| ending == "json" || ending == "jsonl") {
            files.push(file);
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn add(trace: &mut Trace, raw: RawSession, requests: &mut usize) -> Result<(), String> {
    if raw.block_size == 0 {
        return Err("block_size is 0".into());
    }
    if trace.block_tokens != 0 && trace.block_tokens != raw.block_size {
        let first = trace.block_tokens;
        return Err(format!("block_size {} differs from the first session's {first}", raw.block_size));
    }
    trace.block_tokens = raw.block_size;
    let scope = match raw.hash_id_scope {
        Scope::Local => raw.id.clone(),
        Scope::Global => String::new(),
    };
    let mut session = Session { id: raw.id, scope, requests: Vec::with_capacity(raw.requests.len()) };
    flatten(raw.requests, &mut session.requests)?;
    *requests += session.requests.len();
    if *requests > REQUESTS_MAX {
        return Err(format!("more than {REQUESTS_MAX} requests; replay a part of the trace"));
    }
    if !session.requests.is_empty() {
        trace.sessions.push(session);
    }
    Ok(())
}

/// Depth is bounded: serde_json refuses input nested deeper than 128 levels.
fn flatten(entries: Vec<RawEntry>, out: &mut Vec<Request>) -> Result<(), String> {
    for entry in entries {
        match entry.requests {
            Some(nested) => flatten(nested, out)?,
            None => {
                let number = out.len() + 1;
                out.push(request(entry).map_err(|reason| format!("request {number}: {reason}"))?);
            }
        }
    }
    Ok(())
}

fn request(entry: RawEntry) -> Result<Request, String> {
    let input_tokens = entry.input.ok_or("`in` is missing")?;
    if input_tokens == 0 || input_tokens > INPUT_TOKENS_MAX {
        return Err(format!("`in` is {input_tokens}, outside 1..={INPUT_TOKENS_MAX}"));
    }
    let mut blocks = Blocks::default();
    match (entry.hash_ranges, entry.hash_ids) {
        (Some(ranges), None) => ranges.into_iter().try_for_each(|(start, len)| blocks.push(start, len))?,
        (None, Some(ids)) => ids.into_iter().try_for_each(|id| blocks.push(id, 1))?,
        (Some(_), Some(_)) => return Err("both `hash_ranges` and `hash_ids`".into()),
        (None, None) => return Err("neither `hash_ranges` nor `hash_ids`".into()),
    }
    // Anonymised starts leave some think times absent or below zero: the request followed at once.
    let think_s = entry.think_time.unwrap_or(0.0).max(0.0);
    Ok(Request { at_s: 0.0, think_s, input_tokens, output_tokens: entry.out.unwrap_or(1).max(1), blocks })
}
