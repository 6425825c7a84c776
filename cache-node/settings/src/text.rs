//! The file's text, and which line a byte of it is on.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use crate::{Fault, Faults};

#[cfg(test)]
mod tests;

/// The largest configuration file read, in bytes. A thousand endpoints take about 100 kB; a larger file is a
/// mistaken path (a log, a model), and must not be loaded into memory to find that out.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// Loads a configuration file.
///
/// # Errors
/// One fault when the file cannot be opened or read, is larger than [`MAX_FILE_BYTES`], or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, Faults> {
    let refuse = |reason: String| Faults::from(Fault::new("", reason)).in_file(path);
    let file = File::open(path).map_err(|error| refuse(format!("cannot be opened: {error}")))?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file of exactly the limit from a longer one.
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| refuse(format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(refuse(format!("larger than {MAX_FILE_BYTES} bytes, so not a configuration file")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        refuse(format!("not UTF-8 text at byte {valid}, so not a TOML file"))
    })
}

/// Finds the line of a byte offset.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    /// The offset of each line's first byte; the first is 0.
    starts: Vec<usize>,
}

impl Lines {
    pub(crate) fn of(text: &str) -> Self {
        let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { starts: std::iter::once(0).chain(after_breaks).collect() }
    }

    /// The line of the span's first byte, counted from 1.
    pub(crate) fn line(&self, span: &Range<usize>) -> usize {
        self.starts.partition_point(|start| *start <= span.start)
    }

    /// The column of the span's first byte in `text`, in characters, counted from 1.
    pub(crate) fn column(&self, text: &str, span: &Range<usize>) -> usize {
        let start = self.starts[self.line(span) - 1];
        text.get(start..span.start).map_or(1, |before| before.chars().count() + 1)
    }
}
