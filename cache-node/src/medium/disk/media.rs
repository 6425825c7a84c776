//! Where segments lie: a directory of files, or memory that fails on purpose.

use std::io;

pub mod fake;
mod files;
mod uring;

pub use files::{Access, Files};
pub use uring::Uring;

/// One part of a bulk read.
#[derive(Debug)]
pub struct Read<'a> {
    /// The segment.
    pub segment: u64,
    /// Bytes from its beginning.
    pub offset: u64,
    /// Filled.
    pub bytes: &'a mut [u8],
}

/// One part of a bulk write.
#[derive(Debug)]
pub struct Write<'a> {
    /// The segment.
    pub segment: u64,
    /// Bytes from its beginning.
    pub offset: u64,
    /// Written one after the other.
    pub parts: [&'a [u8]; 2],
}

/// Is told which read has ended, with its bytes, and how.
pub type ReadEnd<'a> = dyn FnMut(usize, &mut [u8], io::Result<()>) + 'a;

/// Segments by number. Calls may come from several threads; a segment has one writer. Bytes that begin at whole blocks in
/// the segment and in memory, and are whole blocks, may go past the page cache.
pub trait Media: Send + Sync {
    /// Makes an empty segment.
    ///
    /// # Errors
    /// What the system said; also if it is there already.
    fn create(&self, segment: u64) -> io::Result<()>;

    /// Makes room for so many bytes beforehand, where that is cheap: writes that make a file longer are carried out one by one.
    /// The segment then has this length, and reads as zeroes where nothing was written.
    ///
    /// # Errors
    /// What the system said; the segment can be written all the same.
    fn reserve(&self, segment: u64, bytes: u64) -> io::Result<()> {
        let _ = (segment, bytes);
        Ok(())
    }

    /// Writes all parts, one after the other, or some of them and an error.
    ///
    /// # Errors
    /// What the system said.
    fn write(&self, segment: u64, offset: u64, parts: &[&[u8]]) -> io::Result<()>;

    /// Fills `bytes`.
    ///
    /// # Errors
    /// What the system said; `UnexpectedEof` past the segment's end.
    fn read(&self, segment: u64, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Several writes, begun in this order, which may end in any. `begin` is asked right before each whether it is wanted,
    /// while those before it are under way; `end` is told how each that was begun has ended. None is begun before all but
    /// the last `span` before it have ended.
    fn write_many(
        &self,
        writes: &[Write<'_>],
        span: usize,
        begin: &mut dyn FnMut(usize) -> bool,
        end: &mut dyn FnMut(usize, io::Result<()>),
    ) {
        let _ = span;
        for (index, write) in writes.iter().enumerate() {
            if begin(index) {
                end(index, self.write(write.segment, write.offset, &write.parts));
            }
        }
    }

    /// Several reads, which may end in any order; `end` is told how each has ended, while others are under way.
    fn read_many(&self, reads: &mut [Read<'_>], end: &mut ReadEnd<'_>) {
        for (index, read) in reads.iter_mut().enumerate() {
            let result = self.read(read.segment, read.offset, read.bytes);
            end(index, read.bytes, result);
        }
    }

    /// How many reads or writes are worth handing over at once.
    fn depth(&self) -> usize {
        1
    }

    /// A segment's length in bytes.
    ///
    /// # Errors
    /// What the system said.
    fn length(&self, segment: u64) -> io::Result<u64>;

    /// Cuts a segment off.
    ///
    /// # Errors
    /// What the system said.
    fn truncate(&self, segment: u64, length: u64) -> io::Result<()>;

    /// What was written before survives a loss of power after this.
    ///
    /// # Errors
    /// What the system said: then what was written since the last success may be lost.
    fn sync(&self, segment: u64) -> io::Result<()>;

    /// Forgets a segment. Reads under way may fail or still see it.
    ///
    /// # Errors
    /// What the system said.
    fn remove(&self, segment: u64) -> io::Result<()>;

    /// Every segment, the lowest number first.
    ///
    /// # Errors
    /// What the system said.
    fn segments(&self) -> io::Result<Vec<u64>>;
}

#[cfg(test)]
mod tests;
