//! The traces of github.com/kvcache-ai/Mooncake (`FAST25-release/traces`): one request a line with `timestamp` in
//! milliseconds, `input_length`, `output_length` and `hash_ids` of its prefix blocks (512 tokens, the last one cut).
//! Ids are shared by the whole trace. It knows no sessions.

use super::{Blocks, Format, INPUT_TOKENS_MAX, REQUESTS_MAX, Request, Session, Trace, lines::Lines};
use crate::error::Error;
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct RawRequest {
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

/// Reads the file; requests come out by arrival, the first at 0 s.
///
/// # Errors
/// [`Error::Trace`] with the line that is malformed.
pub fn read(path: &Path, block_tokens: u64) -> Result<Trace, Error> {
    let mut lines = Lines::open(path)?;
    let mut requests = Vec::new();
    while let Some(line) = lines.next_line()? {
        let request = Lines::json(line).and_then(request).map_err(|reason| lines.malformed(reason))?;
        requests.push(request);
        if requests.len() > REQUESTS_MAX {
            return Err(
                lines.malformed(format!("more than {REQUESTS_MAX} requests; replay a part of the trace"))
            );
        }
    }
    requests.sort_by(|a: &Request, b| a.at_s.total_cmp(&b.at_s));
    let start_s = requests.first().map_or(0.0, |first| first.at_s);
    for request in &mut requests {
        request.at_s -= start_s;
    }
    let session = Session { id: String::new(), scope: String::new(), requests };
    Ok(Trace { name: String::new(), format: Format::Mooncake, block_tokens, sessions: vec![session] })
}

fn request(raw: RawRequest) -> Result<Request, String> {
    if raw.input_length == 0 || raw.input_length > INPUT_TOKENS_MAX {
        return Err(format!("`input_length` is {}, outside 1..={INPUT_TOKENS_MAX}", raw.input_length));
    }
    let mut blocks = Blocks::default();
    raw.hash_ids.into_iter().try_for_each(|id| blocks.push(id, 1))?;
    Ok(Request {
        at_s: raw.timestamp / 1000.0,
        think_s: 0.0,
        input_tokens: raw.input_length,
        output_tokens: raw.output_length.max(1),
        blocks,
    })
}
