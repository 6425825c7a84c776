//! The one change that a body ever sees: `kv_transfer_params.larder`, from which the engine's plugin learns the
//! request's tag and its lease. A client's own `larder` key is removed, whether or not one of ours takes its place.
//!
//! The body is not copied: it goes out in up to three pieces, and hyper writes them in one call.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use serde_json::{Map, Value};

/// The key under `kv_transfer_params` that is Larder's.
const OWN_KEY: &str = "larder";

/// Where a body can be changed, as the walk over it found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The raw value of `kv_transfer_params`.
    pub kv_transfer_params: Option<Range<usize>>,
    /// Just behind the `{` of the top-level object.
    pub object: Option<usize>,
    /// Whether the object has members, so that one put first needs a comma behind it.
    pub has_members: bool,
    /// Whether the whole body was walked: if not, a later member might undo what is put first.
    pub complete: bool,
}

/// `body` with `own` as `kv_transfer_params.larder`, or with nothing there.
///
/// What cannot carry it is left as it is: a body that is no object, or whose `kv_transfer_params` is neither an
/// object nor null. The engine says what is wrong with those.
pub fn splice(body: &Bytes, places: &Places, own: Option<Value>) -> RequestBody {
    if let Some(span) = &places.kv_transfer_params {
        return match changed(&body[span.clone()], own) {
            Some(value) => RequestBody::of([body.slice(..span.start), value, body.slice(span.end..)]),
            None => RequestBody::from(body.clone()),
        };
    }
    match (own, places.object) {
        (Some(own), Some(at)) if places.complete => {
            let comma = if places.has_members { "," } else { "" };
            let member = format!("\"kv_transfer_params\":{{\"{OWN_KEY}\":{own}}}{comma}");
            RequestBody::of([body.slice(..at), Bytes::from(member), body.slice(at..)])
        }
        _ => RequestBody::from(body.clone()),
    }
}

/// The new text of a `kv_transfer_params`, if it must be another.
fn changed(raw: &[u8], own: Option<Value>) -> Option<Bytes> {
    let mut params = match serde_json::from_slice(raw).ok()? {
        Value::Object(params) => params,
        Value::Null if own.is_some() => Map::new(),
        _ => return None,
    };
    let removed = params.remove(OWN_KEY).is_some();
    if let Some(own) = own {
        params.insert(OWN_KEY.to_owned(), own);
    } else if !removed {
        return None;
    }
    Some(Bytes::from(Value::Object(params).to_string()))
}

/// A request's body: the client's bytes in one piece, or in a few around what was put between.
#[derive(Clone, Debug, Default)]
pub struct RequestBody {
    pieces: [Bytes; 3],
    left: u64,
}

impl RequestBody {
    fn of(pieces: [Bytes; 3]) -> Self {
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self { pieces, left }
    }
}

impl From<Bytes> for RequestBody {
    fn from(body: Bytes) -> Self {
        Self::of([body, Bytes::new(), Bytes::new()])
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.pieces.iter_mut().find(|piece| !piece.is_empty());
        let piece = next.map(std::mem::take);
        self.left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests;
