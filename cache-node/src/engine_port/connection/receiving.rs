//! Bytes and descriptors that an engine sends. Descriptors wait for the message that says how many are its own.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use larder_protocol::ToNode;
use larder_protocol::message::DESCRIPTORS_MAX;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Descriptors in one message of the socket, at most: `SCM_MAX_FD` of Linux.
const AT_ONCE_MAX: usize = 253;

/// What has come with the bytes that were read.
#[derive(Debug, Default)]
pub(super) struct Received {
    waiting: VecDeque<OwnedFd>,
}

impl Received {
    /// Reads bytes, 0 at the end, and puts aside the descriptors that come with them.
    ///
    /// # Errors
    /// What the system said, or that more descriptors wait than any message can name.
    pub(super) async fn read(&mut self, stream: &UnixStream, piece: &mut [u8]) -> io::Result<usize> {
        let waiting = &mut self.waiting;
        let read = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE_MAX))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received = recvmsg(stream, &mut [IoSliceMut::new(piece)], &mut ancillary, flags)?;
            // Where this process may have no more descriptors some are missing; then a message finds fewer than it names.
            for control in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = control {
                    waiting.extend(descriptors);
                }
            }
            Ok(received.bytes)
        };
        let bytes = stream.async_io(Interest::READABLE, read).await?;
        match self.waiting.len() {
            0..=DESCRIPTORS_MAX => Ok(bytes),
            more => Err(io::Error::other(format!("{more} descriptors that no message names"))),
        }
    }

    /// The descriptors of a message; fewer than it names if fewer came.
    pub(super) fn of(&mut self, message: &ToNode) -> Vec<OwnedFd> {
        let ToNode::Attach(attach) = message else { return Vec::new() };
        let own = attach.piece_bytes.len().min(self.waiting.len());
        self.waiting.drain(..own).collect()
    }
}
