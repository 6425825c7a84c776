//! The whole request body, read before the choice of an endpoint, within limits.
//!
//! One body has a limit (413), and all bodies together have one (429): prompts are megabytes, and a thousand
//! slow clients must not be able to fill the memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// What is read and thrown away of a refused body, at most, so that the client gets to read the refusal
/// instead of a reset connection (RFC 9112, section 9.6).
const DISCARD_MAX_BYTES: usize = 256 << 20;
/// And for how long.
const DISCARD_MAX: Duration = Duration::from_secs(5);

/// Bytes that all buffered request bodies may take together.
#[derive(Debug)]
pub struct BodyBudget {
    limit: AtomicUsize,
    used: AtomicUsize,
}

impl BodyBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(limit), used: AtomicUsize::new(0) })
    }

    /// Changes the limit. What is held stays.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn try_take(&self, bytes: usize) -> bool {
        let taken = self.used.fetch_add(bytes, Ordering::Relaxed);
        if taken.saturating_add(bytes) <= self.limit() {
            return true;
        }
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        false
    }
}

/// A share of the [`BodyBudget`], given back when dropped.
#[derive(Debug)]
pub struct BodyPermit {
    budget: Arc<BodyBudget>,
    bytes: usize,
}

impl BodyPermit {
    fn none(budget: &Arc<BodyBudget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    fn grow_to(&mut self, bytes: usize) -> Result<(), BodyError> {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 && !self.budget.try_take(more) {
            return Err(BodyError::Budget { limit: self.budget.limit() });
        }
        self.bytes += more;
        Ok(())
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Why a body was not taken.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The body is larger than one body may be.
    #[error("the request body is larger than {limit} bytes")]
    TooLarge {
        /// The limit for one body, bytes.
        limit: usize,
    },
    /// All buffered bodies together would be larger than they may be.
    #[error("request bodies being read already hold the {limit} bytes they may hold together")]
    Budget {
        /// The limit for all bodies, bytes.
        limit: usize,
    },
    /// The client took too long.
    #[error("the request body did not arrive within {limit_s} s")]
    Slow {
        /// The limit, seconds.
        limit_s: u64,
    },
    /// The body broke off, or its framing was wrong.
    #[error("the request body could not be read: {0}")]
    Broken(String),
}

/// The limits that [`read`] keeps.
#[derive(Clone, Debug)]
pub struct BodyLimits {
    /// Most bytes of one body.
    pub max_bytes: usize,
    /// Longest time for one body to arrive.
    pub max_time: Duration,
    /// The bytes of all bodies together.
    pub budget: Arc<BodyBudget>,
}

/// Reads `body` to its end, whatever its framing, into one piece of memory.
///
/// Trailers are read and dropped (RFC 9110, section 6.5.1 lets a recipient do so): the request goes on with a
/// `content-length`, which has no place for them.
///
/// # Errors
/// See [`BodyError`]. What is left of a body refused for its size is read and thrown away in the background.
pub async fn read(mut body: Incoming, limits: &BodyLimits) -> Result<(Bytes, BodyPermit), BodyError> {
    let mut permit = BodyPermit::none(&limits.budget);
    if body.is_end_stream() {
        return Ok((Bytes::new(), permit));
    }
    let hint = body.size_hint().lower();
    let reading = collect(&mut body, hint, limits.max_bytes, &mut permit);
    let read = tokio::time::timeout(limits.max_time, reading)
        .await
        .unwrap_or(Err(BodyError::Slow { limit_s: limits.max_time.as_secs() }));
    match read {
        Ok(bytes) => Ok((bytes, permit)),
        Err(e) => {
            if matches!(e, BodyError::TooLarge { .. } | BodyError::Budget { .. }) {
                tokio::spawn(discard(body));
            }
            Err(e)
        }
    }
}

async fn collect(
    body: &mut Incoming,
    hint: u64,
    max_bytes: usize,
    permit: &mut BodyPermit,
) -> Result<Bytes, BodyError> {
    let too_large = || BodyError::TooLarge { limit: max_bytes };
    let hint = usize::try_from(hint).unwrap_or(usize::MAX);
    if hint > max_bytes {
        return Err(too_large());
    }
    permit.grow_to(hint)?;
    let mut first: Option<Bytes> = None;
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| BodyError::Broken(e.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        let held = whole.len() + first.as_ref().map_or(0, Bytes::len);
        let len = held + data.len();
        if len > max_bytes {
            return Err(too_large());
        }
        permit.grow_to(len)?;
        if held == 0 && data.len() >= hint {
            // A body that came in one read stays where it lies.
            first = Some(data);
            continue;
        }
        if let Some(first) = first.take() {
            whole.reserve(len.max(hint));
            whole.extend_from_slice(&first);
        } else if held == 0 {
            whole.reserve(hint);
        }
        whole.extend_from_slice(&data);
    }
    Ok(first.unwrap_or_else(|| whole.freeze()))
}

/// Reads and throws away, in the background, what is left of a body that is not wanted, so that the client gets to read
/// the answer.
pub fn refuse(body: Incoming) {
    if !body.is_end_stream() {
        tokio::spawn(discard(body));
    }
}

async fn discard(mut body: Incoming) {
    let reading = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > DISCARD_MAX_BYTES {
                break;
            }
        }
    };
    // Out of time or bytes, the connection closes: the limit is the answer.
    let _ = tokio::time::timeout(DISCARD_MAX, reading).await;
}
