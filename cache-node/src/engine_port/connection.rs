//! One connection: a task that reads frames, a task that writes them, and the outbox between it and the driver.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use larder_protocol::control::StageAnswer;
use larder_protocol::frame::frame;
use larder_protocol::{FrameBuffer, ToEngine, ToNode};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::driver::Event;
use crate::medium::memory::SharedMemory;
use crate::peer::Peer;
use crate::store::{ConnectionId, Input};

mod receiving;

use receiving::Received;

/// Bytes read at once. Lookups of long prompts are a few hundred kilobytes.
const READ_BYTES: usize = 64 << 10;

/// Bytes that may wait for an engine that does not read. A stopped engine is sent a grant now and then; far below this.
const OUTBOX_BYTES_MAX: usize = 64 << 20;

/// How long one frame may take to be written. An engine that does not read for this long is given up; a garbage
/// collection or a debugger takes less.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// One frame to be written, with what goes with it.
#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    descriptors: Vec<Arc<SharedMemory>>,
    /// Sent once the frame is written to the socket; dropped if it never is.
    then: Option<(oneshot::Sender<StageAnswer>, StageAnswer)>,
}

/// Where the driver puts what an engine is told. Dropping it closes the connection after what waits is written.
#[derive(Debug)]
pub struct Outbox {
    frames: mpsc::UnboundedSender<Outgoing>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// The connection's reading task; aborted to close.
#[derive(Debug)]
pub struct Tasks {
    reader: JoinHandle<()>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Outbox {
    /// Queues a message. False if the engine has let too much pile up, or the connection is lost.
    pub fn send(&self, message: &ToEngine) -> bool {
        self.put(Outgoing { bytes: frame(&message.encode()), descriptors: Vec::new(), then: None })
    }

    /// Queues a message that carries descriptors.
    pub fn send_with(&self, message: &ToEngine, descriptors: Vec<Arc<SharedMemory>>) -> bool {
        self.put(Outgoing { bytes: frame(&message.encode()), descriptors, then: None })
    }

    /// Queues a message, and an answer to be sent once it is written.
    pub fn send_then(
        &self,
        message: &ToEngine,
        reply: oneshot::Sender<StageAnswer>,
        answer: StageAnswer,
    ) -> bool {
        let then = Some((reply, answer));
        self.put(Outgoing { bytes: frame(&message.encode()), descriptors: Vec::new(), then })
    }

    fn put(&self, outgoing: Outgoing) -> bool {
        let bytes = outgoing.bytes.len();
        if self.waiting_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes > OUTBOX_BYTES_MAX {
            return false;
        }
        self.frames.send(outgoing).is_ok()
    }
}

/// Starts the tasks of a connection. Nothing is read until `known` is sent: the driver must know the connection before
/// it hears from it. The permit is held until both tasks have ended.
pub fn start(
    id: ConnectionId,
    stream: UnixStream,
    events: mpsc::Sender<Event>,
    permit: OwnedSemaphorePermit,
    known: oneshot::Receiver<()>,
) -> (Option<Peer>, Outbox, Tasks) {
    let peer = Peer::of(&stream);
    let (read, write) = stream.into_split();
    let (frames, queue) = mpsc::unbounded_channel();
    let waiting_bytes = Arc::new(AtomicUsize::new(0));
    let permit = Arc::new(permit);
    let reader_permit = Arc::clone(&permit);
    let reader_events = events.clone();
    let reader = tokio::spawn(async move {
        if known.await.is_err() {
            return;
        }
        read_frames(id, read, &reader_events).await;
        let closed = Event::Engine(Input::Closed { connection: id });
        // If the driver is gone there is nobody to tell.
        let _ = reader_events.send(closed).await;
        drop(reader_permit);
    });
    let waiting = Arc::clone(&waiting_bytes);
    tokio::spawn(async move {
        if let Err(error) = write_frames(write, queue, &waiting).await {
            tracing::info!(connection = id.0, %error, "an engine connection cannot be written");
            let _ = events.send(Event::Engine(Input::Closed { connection: id })).await;
        }
        drop(permit);
    });
    (peer, Outbox { frames, waiting_bytes }, Tasks { reader })
}

/// Reads until the connection ends or its stream is lost.
async fn read_frames(id: ConnectionId, read: OwnedReadHalf, events: &mpsc::Sender<Event>) {
    let mut buffer = FrameBuffer::new();
    let mut received = Received::default();
    let mut piece = vec![0; READ_BYTES];
    loop {
        let count = match received.read(read.as_ref(), &mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        buffer.push(&piece[..count]);
        loop {
            let input = match buffer.next_body() {
                Ok(None) => break,
                Ok(Some(body)) => match ToNode::decode(body) {
                    Ok(message) => {
                        let descriptors = received.of(&message);
                        Event::Message { connection: id, message, descriptors }
                    }
                    Err(fault) => Event::Engine(Input::Undecodable { connection: id, fault }),
                },
                Err(fault) => {
                    let _ = events.send(Event::Engine(Input::Unframed { connection: id, fault })).await;
                    // The driver closes the connection once the error is written; until then nothing is read.
                    return std::future::pending().await;
                }
            };
            if events.send(input).await.is_err() {
                return;
            }
        }
    }
}

async fn write_frames(
    mut write: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
    waiting_bytes: &AtomicUsize,
) -> io::Result<()> {
    while let Some(outgoing) = queue.recv().await {
        let written = timeout(WRITE_TIMEOUT, write_frame(&mut write, &outgoing)).await;
        written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        waiting_bytes.fetch_sub(outgoing.bytes.len(), Ordering::AcqRel);
        if let Some((reply, answer)) = outgoing.then {
            // The asker may have given up.
            let _ = reply.send(answer);
        }
    }
    Ok(())
}

async fn write_frame(write: &mut OwnedWriteHalf, outgoing: &Outgoing) -> io::Result<()> {
    let mut sent = 0;
    if !outgoing.descriptors.is_empty() {
        let borrowed: Vec<BorrowedFd<'_>> =
            outgoing.descriptors.iter().map(|memory| memory.as_fd()).collect();
        sent = send_descriptors(write.as_ref(), &outgoing.bytes, &borrowed).await?;
    }
    write.write_all(&outgoing.bytes[sent..]).await
}

/// Writes the beginning of `bytes` with the descriptors on its first byte. Returns how much was written.
async fn send_descriptors(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    stream
        .async_io(Interest::WRITABLE, || {
            let pieces = [IoSlice::new(bytes)];
            let rights = [ControlMessage::ScmRights(&raw)];
            Ok(sendmsg::<()>(stream.as_raw_fd(), &pieces, &rights, MsgFlags::MSG_NOSIGNAL, None)?)
        })
        .await
}
