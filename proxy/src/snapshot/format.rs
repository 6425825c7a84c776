//! The file's form: a header, definitions of endpoints, what they hold, and a checksum over all of it.
//!
//! Numbers are little-endian. `LARDERIX`, a version (u32) and four zero bytes; then pieces that begin with a byte:
//! 1 defines an endpoint (fingerprint of its pool's hashing u64, run bytes u32, lengths of model and authority u16 each, both as
//! UTF-8; the first is number 0), 2 is something that an endpoint holds (its number u32, count u32, so many elements u64),
//! 0 is the end and followed by the XXH3-64 of everything before the sum. Written front to back without a seek.

use std::io::{self, Write};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const MAGIC: &[u8; 8] = b"LARDERIX";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
const END: u8 = 0;
const ENDPOINT: u8 = 1;
const HELD: u8 = 2;
/// The end and the sum.
const FOOTER_BYTES: usize = 9;

/// Who an endpoint is: what must be the same for a hint about it to be worth something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) model: String,
    pub(super) authority: String,
    /// Digest of how its pool's prompts are hashed, the secret included.
    pub(super) fingerprint: u64,
    pub(super) run_bytes: u32,
}

/// Writes a snapshot of at most so many bytes.
pub(super) struct Writer<W> {
    out: W,
    sum: Xxh3,
    written: u64,
    most: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W, most: u64) -> io::Result<Self> {
        let mut writer = Self { out, sum: Xxh3::new(), written: 0, most };
        writer.put(MAGIC)?;
        writer.put(&VERSION.to_le_bytes())?;
        writer.put(&[0; 4])?;
        Ok(writer)
    }

    /// Defines the next endpoint. One with names too long for the form is none that the configuration allows.
    pub(super) fn endpoint(&mut self, identity: &Identity) -> io::Result<()> {
        let length = |text: &str| {
            u16::try_from(text.len())
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a name too long"))
        };
        let (model, authority) = (length(&identity.model)?, length(&identity.authority)?);
        self.put(&[ENDPOINT])?;
        self.put(&identity.fingerprint.to_le_bytes())?;
        self.put(&identity.run_bytes.to_le_bytes())?;
        self.put(&model.to_le_bytes())?;
        self.put(&authority.to_le_bytes())?;
        self.put(identity.model.as_bytes())?;
        self.put(identity.authority.as_bytes())
    }

    /// Writes what an endpoint holds; says whether there was room for it.
    pub(super) fn held(&mut self, endpoint: u32, elements: &[u64]) -> io::Result<bool> {
        let size = 9 + 8 * elements.len() as u64 + FOOTER_BYTES as u64;
        let Ok(count) = u32::try_from(elements.len()) else { return Ok(false) };
        if self.written + size > self.most {
            return Ok(false);
        }
        self.put(&[HELD])?;
        self.put(&endpoint.to_le_bytes())?;
        self.put(&count.to_le_bytes())?;
        for element in elements {
            self.put(&element.to_le_bytes())?;
        }
        Ok(true)
    }

    /// Ends it; gives back what it was written to, and its size.
    pub(super) fn finish(mut self) -> io::Result<(W, u64)> {
        self.put(&[END])?;
        let sum = self.sum.digest();
        self.put(&sum.to_le_bytes())?;
        Ok((self.out, self.written))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

/// Why a file is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadSnapshot {
    #[error("it is no snapshot of an index")]
    Foreign,
    #[error("it has version {0}, and this program reads {VERSION}")]
    Version(u32),
    #[error("it is damaged or not complete: its checksum is wrong")]
    Checksum,
    #[error("it is malformed at byte {0}")]
    Malformed(usize),
}

/// A snapshot as it lies in memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Snapshot<'a> {
    pub(super) endpoints: Vec<Identity>,
    /// The number of an endpoint and the bytes of its elements, the most recently used first.
    pub(super) held: Vec<(usize, &'a [u8])>,
}

/// Reads a file: nothing of it is believed before the whole of it proves right.
pub(super) fn parse(bytes: &[u8]) -> Result<Snapshot<'_>, BadSnapshot> {
    if bytes.get(..8) != Some(MAGIC) {
        return Err(BadSnapshot::Foreign);
    }
    let mut rest = Rest { bytes, at: 8 };
    let version = rest.u32()?;
    if version != VERSION {
        return Err(BadSnapshot::Version(version));
    }
    let body = bytes.len().checked_sub(8).filter(|end| *end > HEADER_BYTES).ok_or(BadSnapshot::Checksum)?;
    let (body, sum) = bytes.split_at(body);
    if xxh3_64(body).to_le_bytes() != sum {
        return Err(BadSnapshot::Checksum);
    }
    let mut rest = Rest { bytes: body, at: HEADER_BYTES };
    let mut snapshot = Snapshot { endpoints: Vec::new(), held: Vec::new() };
    loop {
        let at = rest.at;
        match rest.take(1)?[0] {
            END if rest.at == body.len() => return Ok(snapshot),
            ENDPOINT => snapshot.endpoints.push(rest.identity()?),
            HELD => {
                let (endpoint, count) = (rest.u32()? as usize, rest.u32()? as usize);
                let elements = rest.take(count.checked_mul(8).ok_or(BadSnapshot::Malformed(at))?)?;
                if endpoint >= snapshot.endpoints.len() || count == 0 {
                    return Err(BadSnapshot::Malformed(at));
                }
                snapshot.held.push((endpoint, elements));
            }
            _ => return Err(BadSnapshot::Malformed(at)),
        }
    }
}

/// The elements in the bytes of one.
pub(super) fn elements(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
}

struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BadSnapshot> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(BadSnapshot::Malformed(self.at))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadSnapshot> {
        let at = self.at;
        self.take(N)?.try_into().map_err(|_| BadSnapshot::Malformed(at))
    }

    fn u32(&mut self) -> Result<u32, BadSnapshot> {
        self.array().map(u32::from_le_bytes)
    }

    fn identity(&mut self) -> Result<Identity, BadSnapshot> {
        let fingerprint = u64::from_le_bytes(self.array()?);
        let run_bytes = self.u32()?;
        let model = u16::from_le_bytes(self.array()?) as usize;
        let authority = u16::from_le_bytes(self.array()?) as usize;
        let mut text = |count| {
            let at = self.at;
            let bytes = self.take(count)?.to_vec();
            String::from_utf8(bytes).map_err(|_| BadSnapshot::Malformed(at))
        };
        let (model, authority) = (text(model)?, text(authority)?);
        Ok(Identity { model, authority, fingerprint, run_bytes })
    }
}

#[cfg(test)]
mod tests;
