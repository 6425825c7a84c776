//! Recipes as they lie on disk, in files of their own beside the segments: one record after the other, appended as they
//! are learnt. A file is read from its beginning until what is no header; what follows was never finished.
//!
//! ```text
//! record, integers little-endian:
//!   0 "LARDRCP1"   8 payload bytes u32   12 zero u32   16 XXH3-128 of the payload   32 payload
//! payload:
//!   namespace, 16 bytes   prompt bytes u64   run bytes u32   prompt tokens u32 (0: not known)
//!   points u32   keys u32   each point u64   each key: end token u32, length u8, its bytes
//! ```
//!
//! A wrong recipe costs speed only: the keys it names are looked up like any others.

use std::io;

use larder_protocol::control::CHAIN_LEN_MAX;
use larder_protocol::{BlockKey, StoreNamespace};
use xxhash_rust::xxh3::xxh3_128;

use super::media::Media;
use crate::recipe::{EndKey, Kept, PromptChain};

/// The form's name and version.
const MAGIC: [u8; 8] = *b"LARDRCP1";

const HEADER: usize = 32;

/// The most keys of a recipe: those of a prompt of eight million tokens in chunks of 128.
pub const KEYS_MAX: usize = 65_536;

/// The longest payload: the longest chain and the most keys, each as long as a key may be.
const PAYLOAD_BYTES_MAX: usize = 40 + CHAIN_LEN_MAX * 8 + KEYS_MAX * (5 + larder_protocol::id::KEY_BYTES_MAX);

/// Files of recipes have numbers from here on, segments those below: a node would have to write a thousand of those a
/// second for a hundred million years to get here.
pub const FIRST: u64 = 1 << 63;

/// Appends a recipe's record. One that is longer than may be is left out: its beginning would be told by others.
pub fn write(recipe: &Kept, out: &mut Vec<u8>) {
    let Kept { namespace, chain, keys, prompt_tokens } = recipe;
    if chain.points.len() > CHAIN_LEN_MAX || keys.len() > KEYS_MAX {
        return;
    }
    let begin = out.len();
    out.resize(begin + HEADER, 0);
    out.extend_from_slice(&namespace.to_bytes());
    out.extend_from_slice(&chain.prompt_bytes.to_le_bytes());
    for number in [chain.run_bytes, prompt_tokens.unwrap_or(0), chain.points.len() as u32, keys.len() as u32]
    {
        out.extend_from_slice(&number.to_le_bytes());
    }
    chain.points.iter().for_each(|point| out.extend_from_slice(&point.to_le_bytes()));
    for (end, key) in keys {
        out.extend_from_slice(&end.to_le_bytes());
        out.push(key.as_bytes().len() as u8);
        out.extend_from_slice(key.as_bytes());
    }
    let sum = xxh3_128(&out[begin + HEADER..]);
    let length = (out.len() - begin - HEADER) as u32;
    let header = &mut out[begin..begin + HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&length.to_le_bytes());
    header[16..].copy_from_slice(&sum.to_le_bytes());
}

/// A cursor over a payload.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.number()?))
    }
}

fn payload(bytes: &[u8]) -> Option<Kept> {
    let mut fields = Fields(bytes);
    let namespace = StoreNamespace::from_bytes(fields.number()?);
    let prompt_bytes = u64::from_le_bytes(fields.number()?);
    let (run_bytes, tokens) = (fields.u32()?, fields.u32()?);
    let (points, keys) = (fields.u32()? as usize, fields.u32()? as usize);
    if points > CHAIN_LEN_MAX || keys > KEYS_MAX || run_bytes == 0 {
        return None;
    }
    let points: Option<Vec<u64>> = (0..points).map(|_| Some(u64::from_le_bytes(fields.number()?))).collect();
    let points = points?.into();
    let key = |fields: &mut Fields<'_>| {
        let (end, [length]) = (fields.u32()?, fields.number()?);
        Some((end, BlockKey::new(fields.take(usize::from(length))?)?))
    };
    let keys: Vec<EndKey> = (0..keys).map(|_| key(&mut fields)).collect::<Option<_>>()?;
    let chain = PromptChain { points, run_bytes, prompt_bytes };
    fields.0.is_empty().then_some(Kept {
        namespace,
        chain,
        keys,
        prompt_tokens: Some(tokens).filter(|it| *it > 0),
    })
}

/// Reads the recipes of a file in their order and gives each away, until the end, or what is no header. Records whose
/// checksum is wrong are left out.
///
/// # Errors
/// What the system said; what came before was given away.
pub fn read(media: &dyn Media, file: u64, mut give: impl FnMut(Kept)) -> io::Result<()> {
    let length = media.length(file)?;
    let (mut at, mut bytes) = (0, Vec::new());
    while at + HEADER as u64 <= length {
        let mut header = [0; HEADER];
        media.read(file, at, &mut header)?;
        let number = |range: std::ops::Range<usize>| header[range].try_into().map(u32::from_le_bytes);
        let count = number(8..12).map_or(usize::MAX, |count| count as usize);
        let end = at + HEADER as u64 + count as u64;
        if header[..8] != MAGIC || count > PAYLOAD_BYTES_MAX || end > length {
            return Ok(());
        }
        bytes.resize(count, 0);
        media.read(file, at + HEADER as u64, &mut bytes)?;
        // A record whose bytes are wrong costs itself only.
        let right = xxh3_128(&bytes).to_le_bytes() == header[16..];
        right.then(|| payload(&bytes)).flatten().into_iter().for_each(&mut give);
        at = end;
    }
    Ok(())
}

/// Appends to one file of recipes at a time.
pub struct Journal {
    /// The file and where its records end.
    open: Option<(u64, u64)>,
    unsynced: bool,
}

impl Journal {
    /// None is open yet.
    #[expect(
        clippy::new_without_default,
        reason = "an empty journal is no value that anybody should get by chance"
    )]
    pub fn new() -> Self {
        Self { open: None, unsynced: false }
    }

    /// Appends records to a file, which is made if it is not the open one. What cannot be written is lost and written
    /// over: a recipe less costs speed only.
    pub fn append(&mut self, media: &dyn Media, file: u64, records: &[u8]) {
        if self.open.is_none_or(|(open, _)| open != file) {
            self.sync(media);
            if let Err(error) = media.create(file) {
                return tracing::warn!(file, %error, "a file of recipes cannot be made");
            }
            self.open = Some((file, 0));
        }
        let Some((_, end)) = &mut self.open else { return };
        match media.write(file, *end, &[records]) {
            Ok(()) => {
                *end += records.len() as u64;
                self.unsynced = true;
            }
            Err(error) => tracing::warn!(file, %error, "recipes cannot be written to disk"),
        }
    }

    /// Makes durable what was appended. False if that failed.
    pub fn sync(&mut self, media: &dyn Media) -> bool {
        let Some((file, _)) = self.open.filter(|_| self.unsynced) else { return true };
        match media.sync(file) {
            Ok(()) => self.unsynced = false,
            Err(error) => tracing::warn!(file, %error, "recipes may be lost with the power"),
        }
        !self.unsynced
    }

    /// Removes a file whose recipes are all in later ones, once these are durable. One that stays is read again at the next
    /// start.
    pub fn remove(&mut self, media: &dyn Media, file: u64) {
        if self.sync(media)
            && let Err(error) = media.remove(file)
        {
            tracing::warn!(file, %error, "a file of recipes cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests;
