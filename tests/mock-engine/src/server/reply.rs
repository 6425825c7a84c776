//! Response bodies: whole, or a stream of tokens as the engine makes them, either of them cut by a fault.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use super::Server;
use super::connection::{Busy, Control};
use super::format::Form;
use crate::content::Answer;
use crate::engine::Ticket;
use crate::fault::Kind;

/// The response ends here, and with it the connection.
#[derive(Debug, thiserror::Error)]
#[error("abandoned on purpose or by the client")]
pub(super) struct Abandoned;

/// Chunks that arrive together travel in one write, up to this many: some 10 KB.
const CHUNKS_PER_FRAME_MAX: u32 = 64;

/// Chunks sent before a cut get this long to leave the process and be read.
const CUT_PAUSE: Duration = Duration::from_millis(30);

/// See the module documentation.
pub(super) struct Reply {
    content: Content,
    trailers: Option<HeaderMap>,
    cut: Option<Cut>,
    busy: Option<Busy>,
}

enum Content {
    Whole(Bytes),
    Tokens(Box<TokenStream>),
}

impl Reply {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self { content: Content::Whole(bytes.into()), trailers: None, cut: None, busy: None }
    }

    pub(super) fn tokens(stream: TokenStream) -> Self {
        Self { content: Content::Tokens(Box::new(stream)), trailers: None, cut: None, busy: None }
    }

    pub(super) fn set_trailers(&mut self, trailers: HeaderMap) {
        self.trailers = Some(trailers);
    }

    pub(super) fn set_busy(&mut self, busy: Busy) {
        self.busy = Some(busy);
    }

    /// Arms a fault. A whole body is cut in half; its full length is returned, to be claimed in the head.
    pub(super) fn cut(mut self, mut cut: Cut) -> (Option<usize>, Self) {
        let length = match &mut self.content {
            Content::Whole(bytes) => {
                let length = bytes.len();
                bytes.truncate(length / 2);
                cut.chunks_left = u32::from(!bytes.is_empty());
                Some(length)
            }
            Content::Tokens(stream) => {
                stream.chunks_per_frame = 1;
                None
            }
        };
        self.cut = Some(cut);
        (length, self)
    }
}

/// A fault in the middle of a body.
pub(super) struct Cut {
    kind: Kind,
    chunks_left: u32,
    control: Arc<Control>,
    server: Arc<Server>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Cut {
    pub(super) fn new(kind: Kind, chunks_left: u32, control: Arc<Control>, server: Arc<Server>) -> Self {
        Self { kind, chunks_left, control, server, pause: None }
    }

    /// Lets what was sent leave, then strikes.
    fn poll_strike(&mut self, cx: &mut Context<'_>) -> Poll<Abandoned> {
        let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(CUT_PAUSE)));
        ready!(pause.as_mut().poll(cx));
        match self.kind {
            Kind::ResetMidStream => {
                self.control.reset();
                Poll::Ready(Abandoned)
            }
            Kind::Die => {
                self.server.die();
                Poll::Pending
            }
            // Hang: the engine's part goes on, nobody hears of it.
            _ => Poll::Pending,
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Abandoned;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Abandoned>>> {
        let this = self.get_mut();
        if let Some(cut) = &mut this.cut
            && cut.chunks_left == 0
        {
            return cut.poll_strike(cx).map(|abandoned| Some(Err(abandoned)));
        }
        let data = match &mut this.content {
            Content::Whole(bytes) => std::mem::take(bytes),
            Content::Tokens(stream) => ready!(stream.poll_chunks(cx)),
        };
        if data.is_empty() {
            return Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        if let Some(cut) = &mut this.cut {
            cut.chunks_left -= 1;
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        let empty = matches!(&self.content, Content::Whole(bytes) if bytes.is_empty());
        empty && self.trailers.is_none() && self.cut.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            // Trailers need the chunked framing, a cut body claims its length by itself.
            Content::Whole(bytes) if self.trailers.is_none() && self.cut.is_none() => {
                SizeHint::with_exact(bytes.len() as u64)
            }
            _ => SizeHint::default(),
        }
    }
}

/// An answer on its way, as server-sent events.
pub(super) struct TokenStream {
    pub(super) ticket: Ticket,
    pub(super) answer: Answer,
    pub(super) form: Form,
    /// Whether a chunk with the usage precedes the end.
    pub(super) include_usage: bool,
    sent: u32,
    chunks_per_frame: u32,
    opened: bool,
    closed: bool,
}

impl TokenStream {
    pub(super) fn new(ticket: Ticket, answer: Answer, form: Form, include_usage: bool) -> Self {
        let chunks_per_frame = CHUNKS_PER_FRAME_MAX;
        Self { ticket, answer, form, include_usage, sent: 0, chunks_per_frame, opened: false, closed: false }
    }

    /// The next chunks, as many as are due; empty at the end.
    fn poll_chunks(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        if self.closed {
            return Poll::Ready(Bytes::new());
        }
        let progress = ready!(self.ticket.progress().poll_past(self.sent, cx));
        let total = self.answer.tokens();
        let mut out = Vec::with_capacity(512);
        if !self.opened {
            self.opened = true;
            self.form.open_chunk(&mut out);
        }
        let until = progress.produced.min(self.sent.saturating_add(self.chunks_per_frame));
        for index in self.sent..until {
            self.form.token_chunk(self.answer.token_text(index), index + 1 == total, &mut out);
        }
        self.sent = until;
        if self.sent == total {
            self.closed = true;
            if self.include_usage {
                self.form.usage_chunk(total, progress.cached_tokens, &mut out);
            }
            out.extend_from_slice(b"data: [DONE]\n\n");
        }
        Poll::Ready(out.into())
    }
}
