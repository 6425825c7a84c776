//! Trace files as lines: unpacked on the fly, with a bound on the length of a line and the number that errors name.

use super::LINE_BYTES_MAX;
use crate::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Take};
use std::path::{Path, PathBuf};

/// Read buffer in bytes: large enough that unpacking dominates, small beside any trace.
const BUFFER_BYTES: usize = 1 << 16;

/// The lines of one file. Call [`Lines::next_line`] until it gives `None`.
pub struct Lines {
    path: PathBuf,
    input: Box<dyn BufRead>,
    line: Vec<u8>,
    number: u64,
}

impl Lines {
    /// Opens `path`; the ending `.xz` or `.zst` says how it is packed.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be opened, [`Error::Trace`] if it is not packed as its name says.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file =
            BufReader::with_capacity(BUFFER_BYTES, File::open(path).map_err(Error::file("read", path))?);
        let input: Box<dyn BufRead> = match path.extension().and_then(|ending| ending.to_str()) {
            // `true`: several xz streams in one file are one text, as the xz tool has it.
            Some("xz") => {
                Box::new(BufReader::with_capacity(BUFFER_BYTES, lzma_rust2::XzReader::new(file, true)))
            }
            Some("zst") => Box::new(BufReader::with_capacity(BUFFER_BYTES, ZstdFrames::new(file))),
            _ => Box::new(file),
        };
        Ok(Self { path: path.into(), input, line: Vec::new(), number: 0 })
    }

    /// The next line that is not blank, without its end. `None` at the end of the file.
    ///
    /// # Errors
    /// [`Error::Trace`] if unpacking fails or the line is longer than [`LINE_BYTES_MAX`].
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, Error> {
        loop {
            self.line.clear();
            self.number += 1;
            let mut limited: Take<_> = Read::take(&mut self.input, LINE_BYTES_MAX as u64 + 1);
            let read = limited.read_until(b'\n', &mut self.line);
            match read {
                Err(error) => return Err(self.malformed(format!("cannot unpack or read it: {error}"))),
                Ok(0) => return Ok(None),
                Ok(_) if self.line.len() > LINE_BYTES_MAX => {
                    return Err(self.malformed(format!("longer than {LINE_BYTES_MAX} bytes")));
                }
                Ok(_) => {}
            }
            if !self.line.trim_ascii().is_empty() {
                return Ok(Some(self.line.trim_ascii()));
            }
        }
    }

    /// An error about the line that was read last.
    #[must_use]
    pub fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::Trace { path: self.path.clone(), line: self.number, reason: reason.into() }
    }

    /// Parses a line as JSON.
    ///
    /// # Errors
    /// A sentence with the column, to be given to [`Lines::malformed`].
    pub fn json<T: serde::de::DeserializeOwned>(line: &[u8]) -> Result<T, String> {
        serde_json::from_slice(line).map_err(|error| {
            // serde_json counts lines within the slice; ours is the whole file's, so only the column is kept.
            let text = error.to_string();
            let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
            format!("{reason} at column {}", error.column())
        })
    }
}

/// All frames of a Zstandard file, one after the other (parallel packers write several).
struct ZstdFrames {
    state: Option<Frame>,
}

enum Frame {
    Between(BufReader<File>),
    Inside(Box<ruzstd::decoding::StreamingDecoder<BufReader<File>, ruzstd::decoding::FrameDecoder>>),
}

impl ZstdFrames {
    fn new(file: BufReader<File>) -> Self {
        Self { state: Some(Frame::Between(file)) }
    }
}

impl Read for ZstdFrames {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match self.state.take() {
                None => return Ok(0),
                Some(Frame::Between(mut file)) => {
                    if file.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    let decoder =
                        ruzstd::decoding::StreamingDecoder::new(file).map_err(std::io::Error::other)?;
                    self.state = Some(Frame::Inside(Box::new(decoder)));
                }
                Some(Frame::Inside(mut decoder)) => {
                    let read = decoder.read(out)?;
                    if read > 0 {
                        self.state = Some(Frame::Inside(decoder));
                        return Ok(read);
                    }
                    self.state = Some(Frame::Between(decoder.into_inner()));
                }
            }
        }
    }
}
