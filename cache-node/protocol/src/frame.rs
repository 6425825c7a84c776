//! Frames: a u32 little-endian length, then that many bytes of body.

use crate::fault::FrameFault;

/// The longest body of a frame, in bytes. A `grant` of 65,536 chunks with 36-byte keys takes about 4 MB; twice that
/// leaves room for fields to come, and bounds what one connection can make the other side hold.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// Puts the length prefix before a body.
///
/// # Panics
/// Never for bodies made by this crate's encoders: their lists are capped so that a body stays below
/// [`FRAME_BYTES_MAX`].
pub fn frame(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("bodies stay below FRAME_BYTES_MAX");
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Cuts a byte stream into frame bodies, whatever pieces it arrives in.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// Where the next frame starts in `bytes`; what lies before has been given out.
    start: usize,
}

impl FrameBuffer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what was read from the stream. Holds at most one frame and one read, if [`Self::next_body`] is called
    /// until it answers `None` after each push.
    pub fn push(&mut self, read: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(read);
    }

    /// The next whole body, or `None` until more was pushed.
    ///
    /// # Errors
    /// [`FrameFault`] when the length prefix cannot be right; the stream is lost from there on.
    pub fn next_body(&mut self) -> Result<Option<&[u8]>, FrameFault> {
        let rest = &self.bytes[self.start..];
        let Some(prefix) = rest.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length == 0 {
            return Err(FrameFault::Empty);
        }
        if length > FRAME_BYTES_MAX {
            return Err(FrameFault::TooLong { bytes: length, max: FRAME_BYTES_MAX });
        }
        if rest.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        let from = self.start + PREFIX_BYTES;
        self.start = from + length;
        Ok(Some(&self.bytes[from..from + length]))
    }

    /// Bytes held that belong to a frame not yet whole.
    pub fn pending_bytes(&self) -> usize {
        self.bytes.len() - self.start
    }
}

#[cfg(test)]
mod tests;
