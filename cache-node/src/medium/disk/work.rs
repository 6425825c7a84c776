//! What the disk tier decided, carried out on segments: appending, sealing, reading back. No thread is started here.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use larder_protocol::chunk_checksum;
use larder_tiering::disk::{BLOCK_BYTES, Chunk, LoadFault, Location, WriteFault};

use super::log::{self, Placed, Record, TAIL_RECORDS};
use super::media::{Media, Read, Write};
use crate::store::Verify;

/// Bytes written before what was written is made durable. At most so much of the tier is lost with the power.
const SYNC_BYTES: u64 = 64 << 20;

/// How many records behind the first that is not yet written whole may be under way; recovery checks as many at a
/// segment's end.
pub const WRITES_AT_ONCE: usize = TAIL_RECORDS;

/// A chunk to be appended.
#[derive(Debug)]
pub struct Append<'a> {
    /// Where its record begins.
    pub at: Location,
    /// The record.
    pub record: &'a Record,
    /// The chunk and what fills its last block.
    pub bytes: &'a [u8],
}

/// A chunk to be read back.
#[derive(Debug)]
pub struct Load<'a> {
    /// Where its record begins.
    pub at: Location,
    /// What it must be.
    pub chunk: Chunk,
    /// Filled with the chunk and what fills its last block.
    pub bytes: &'a mut [u8],
}

/// The one writer of all segments.
pub struct Appender {
    media: Arc<dyn Media>,
    verify: Verify,
    /// What a segment is given room for when it is made; 0 for none.
    segment_bytes: u64,
    /// Records of segments that have no index yet.
    open: HashMap<u64, Vec<Placed>>,
    /// Bytes written and not synced, and to which segment the last of them went.
    unsynced: (u64, u64),
}

impl Appender {
    /// A writer to `media`.
    pub fn new(media: Arc<dyn Media>, verify: Verify) -> Self {
        Self { media, verify, segment_bytes: 0, open: HashMap::new(), unsynced: (0, 0) }
    }

    /// The same, which makes room for whole segments of this length beforehand.
    #[must_use]
    pub fn with_segments_of(self, segment_bytes: u64) -> Self {
        Self { segment_bytes, ..self }
    }

    /// Makes a segment. If that fails, so will what is written to it.
    pub fn create(&mut self, segment: u64) {
        match self.media.create(segment) {
            Ok(()) => {
                self.open.insert(segment, Vec::new());
                if self.segment_bytes > 0
                    && let Err(error) = self.media.reserve(segment, self.segment_bytes)
                {
                    tracing::debug!(segment, %error, "a segment grows as it is written");
                }
            }
            Err(error) => tracing::warn!(segment, %error, "a segment cannot be made"),
        }
    }

    /// Appends chunks of one segment. Each is compared with its checksum first, while those before it are being written:
    /// nothing that was damaged in memory is kept on disk. `end` is told how each has ended, as soon as it has. Afterwards
    /// [`Self::due_sync`] says whether it is time to make it durable.
    pub fn append(&mut self, appends: &[Append<'_>], end: &mut dyn FnMut(usize, Result<(), WriteFault>)) {
        let good = |append: &Append<'_>| {
            let chunk = &append.bytes[..append.record.chunk.bytes as usize];
            self.verify == Verify::Off || chunk_checksum(chunk).0 == append.record.chunk.sum
        };
        let headers: Vec<Header> = appends.iter().map(Header::of).collect();
        let writes: Vec<Write<'_>> = appends
            .iter()
            .zip(&headers)
            .map(|(Append { at, bytes, .. }, header)| Write {
                segment: at.segment,
                offset: at.offset,
                parts: [header.block(), bytes],
            })
            .collect();
        // Told in one place, whoever finds out first: before a write, or after it.
        let refused = std::cell::RefCell::new(Vec::new());
        let mut written = Vec::new();
        self.media.write_many(
            &writes,
            WRITES_AT_ONCE,
            &mut |index| {
                let append = &appends[index];
                let fault = match self.open.contains_key(&append.at.segment) {
                    false => Some(WriteFault::Io),
                    true => (!good(append)).then_some(WriteFault::Damaged),
                };
                refused.borrow_mut().extend(fault.map(|fault| (index, fault)));
                fault.is_none()
            },
            &mut |index, result| {
                let Location { segment, offset } = appends[index].at;
                let result = result.map_err(|error| {
                    tracing::warn!(segment, offset, %error, "a chunk cannot be written to disk");
                    fault(&error)
                });
                written.extend(result.is_ok().then_some(index));
                end(index, result);
            },
        );
        refused.into_inner().into_iter().for_each(|(index, fault)| end(index, Err(fault)));
        // In the order of places, as the index has them.
        written.sort_unstable();
        for index in written {
            let Append { at, record, .. } = &appends[index];
            self.open.entry(at.segment).or_default().push((at.offset, (*record).clone()));
            self.unsynced = (self.unsynced.0 + record.chunk.record_bytes(), at.segment);
        }
    }

    /// Makes durable what was written.
    pub fn sync(&mut self) {
        let (bytes, segment) = std::mem::take(&mut self.unsynced);
        if bytes > 0
            && let Err(error) = self.media.sync(segment)
        {
            tracing::warn!(segment, %error, "what was written to disk may be lost with the power");
        }
    }

    /// The segment that holds so much which is not durable that [`Media::sync`] is due. The caller sees to that, in any thread.
    pub fn due_sync(&mut self) -> Option<u64> {
        let due = self.unsynced.0 >= SYNC_BYTES;
        due.then(|| std::mem::take(&mut self.unsynced).1)
    }

    /// Lets nothing be appended to a segment any more. What is left to do may be done by any thread: nothing that is
    /// appended after this goes there.
    ///
    /// # Errors
    /// If this did not make the segment.
    pub fn begin_seal(&mut self, segment: u64, end: u64) -> Result<Sealing, WriteFault> {
        let records = self.open.remove(&segment).ok_or(WriteFault::Io)?;
        if self.unsynced.1 == segment {
            self.unsynced = (0, 0);
        }
        let index = log::index(segment, end, &records);
        Ok(Sealing { media: Arc::clone(&self.media), segment, end, index })
    }

    /// Writes a segment's index and makes all of it durable.
    ///
    /// # Errors
    /// Why there is no index: the headers tell all the same what is in it.
    pub fn seal(&mut self, segment: u64, end: u64) -> Result<(), WriteFault> {
        self.begin_seal(segment, end)?.finish()
    }

    /// Removes a segment.
    pub fn remove(&mut self, segment: u64) {
        self.open.remove(&segment);
        if self.unsynced.1 == segment {
            self.unsynced = (0, 0);
        }
        if let Err(error) = self.media.remove(segment) {
            tracing::warn!(segment, %error, "a segment cannot be removed");
        }
    }
}

/// A segment that waits for its index.
pub struct Sealing {
    media: Arc<dyn Media>,
    segment: u64,
    end: u64,
    index: Vec<u8>,
}

impl Sealing {
    /// Writes the index and makes all of the segment durable.
    ///
    /// # Errors
    /// Why there is no index: the headers tell all the same what is in it.
    pub fn finish(self) -> Result<(), WriteFault> {
        let Self { media, segment, end, index } = self;
        let written = (media.write(segment, end, &[&index]))
            // The trailer is the file's last block.
            .and_then(|()| media.truncate(segment, end + index.len() as u64))
            .and_then(|()| media.sync(segment));
        written.map_err(|error| {
            match error.kind() {
                // Everything was forgotten meanwhile.
                io::ErrorKind::NotFound => {
                    tracing::debug!(segment, %error, "a segment is gone before its index")
                }
                _ => tracing::warn!(segment, %error, "a segment cannot be given an index"),
            }
            fault(&error)
        })
    }
}

/// A record's header, at a multiple of a block in memory.
struct Header {
    bytes: Vec<u8>,
    start: usize,
}

impl Header {
    fn of(append: &Append<'_>) -> Self {
        let block = BLOCK_BYTES as usize;
        let mut bytes = vec![0; 2 * block];
        let start = bytes.as_ptr().align_offset(block).min(block);
        let header = log::header(append.at.segment, append.at.offset, append.record);
        bytes[start..start + block].copy_from_slice(&header);
        Self { bytes, start }
    }

    fn block(&self) -> &[u8] {
        &self.bytes[self.start..self.start + BLOCK_BYTES as usize]
    }
}

/// Reads chunks back and compares their checksums, each while others are being read. What is not right must not be used.
/// `end` is told how each has ended, as soon as it has.
pub fn load(
    media: &dyn Media,
    verify: Verify,
    loads: Vec<Load<'_>>,
    end: &mut dyn FnMut(usize, Result<(), LoadFault>),
) {
    let places: Vec<(Location, Chunk)> = loads.iter().map(|load| (load.at, load.chunk)).collect();
    let read = |Load { at, bytes, .. }| Read { segment: at.segment, offset: at.offset + BLOCK_BYTES, bytes };
    let mut reads: Vec<Read<'_>> = loads.into_iter().map(read).collect();
    media.read_many(&mut reads, &mut |index, bytes, result| {
        let (Location { segment, offset }, chunk) = places[index];
        let outcome = match result {
            Err(error) => {
                tracing::warn!(segment, offset, %error, "a chunk cannot be read from disk");
                Err(LoadFault::Io)
            }
            Ok(()) if verify == Verify::Off => Ok(()),
            Ok(()) if chunk_checksum(&bytes[..chunk.bytes as usize]).0 == chunk.sum => Ok(()),
            Ok(()) => Err(LoadFault::Damaged),
        };
        end(index, outcome);
    });
}

fn fault(error: &io::Error) -> WriteFault {
    // EDQUOT is no kind of its own in all versions.
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    if full { WriteFault::Full } else { WriteFault::Io }
}
