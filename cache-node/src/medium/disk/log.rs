//! The form of a segment: records one after the other, each a header of one block and the chunk in whole blocks; and, once
//! nothing is appended any more, an index of all records and a trailer that says where it is.
//!
//! ```text
//! entry, 192 bytes, integers little-endian:
//!   0  offset of the record u64    8  chunk bytes u64    16  checksum u128    32  namespace, 16 bytes
//!  48  tokens u32   52  end u32   56  key length u8, parent's key length u8 (0: none), 6 of zero
//!  64  key, 64 bytes, filled with zeroes                128  parent's key, likewise
//! header, one block:   0 "LARDSEG1"   8 segment u64   16 entry                               4088 XXH3-64 of 0..4088
//! index:   an entry for each record, filled with zeroes to whole blocks
//! trailer, the file's last block:
//!   0 "LARDIDX1"   8 segment u64   16 offset of the index u64   24 entries u64   32 XXH3-128 of the index
//!                                                                                            4088 XXH3-64 of 0..4088
//! ```
//!
//! A record is written front to back in one call. After the end of the process the last ones of a segment without an index
//! may be torn, and after a loss of power any since the last sync: the chunk's checksum tells, whenever it is read. What
//! follows the last whole header is not there. The namespace digests the layout, so a chunk of another layout never
//! answers to a key.

use std::io;

use larder_protocol::{BlockKey, StoreNamespace, chunk_checksum};
use larder_tiering::disk::{BLOCK_BYTES, Chunk, INDEX_ENTRY_BYTES, index_bytes};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::media::Media;
use crate::store::ChunkName;

/// The forms' names and versions.
const RECORD_MAGIC: [u8; 8] = *b"LARDSEG1";
const INDEX_MAGIC: [u8; 8] = *b"LARDIDX1";

const BLOCK: usize = BLOCK_BYTES as usize;
const ENTRY: usize = INDEX_ENTRY_BYTES as usize;
const SUM_AT: usize = BLOCK - 8;

/// The last records of a segment without an index whose chunks are read at the start: as many as may be written at one
/// time, so that those which the end of the process tore are dropped then.
pub const TAIL_RECORDS: usize = 16;

/// The largest index that is read: that of a segment of 64 GiB full of the smallest records. A trailer that says more is
/// none.
const INDEX_BYTES_MAX: u64 = 2 << 30;

/// What a header says of its chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose bytes these are.
    pub name: ChunkName,
    /// The key of the chunk it continues, in the same namespace.
    pub parent: Option<BlockKey>,
    /// What they are.
    pub chunk: Chunk,
}

/// A record and where it begins in its segment.
pub type Placed = (u64, Record);

/// What was found in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Its records.
    pub records: Vec<Placed>,
    /// Its length from here on.
    pub length: u64,
}

fn entry(offset: u64, record: &Record) -> [u8; ENTRY] {
    let (key, parent) =
        (record.name.key.as_bytes(), record.parent.as_ref().map_or(&[][..], BlockKey::as_bytes));
    let mut entry = [0; ENTRY];
    entry[..8].copy_from_slice(&offset.to_le_bytes());
    entry[8..16].copy_from_slice(&record.chunk.bytes.to_le_bytes());
    entry[16..32].copy_from_slice(&record.chunk.sum.to_le_bytes());
    entry[32..48].copy_from_slice(&record.name.namespace.to_bytes());
    entry[48..52].copy_from_slice(&record.chunk.tokens.to_le_bytes());
    entry[52..56].copy_from_slice(&record.chunk.end.to_le_bytes());
    entry[56] = key.len() as u8;
    entry[57] = parent.len() as u8;
    entry[64..64 + key.len()].copy_from_slice(key);
    entry[128..128 + parent.len()].copy_from_slice(parent);
    entry
}

/// The record of an entry; none if it cannot be one.
fn of_entry(entry: &[u8]) -> Option<Placed> {
    let key_at = |at: usize, length: u8| entry.get(at..at + usize::from(length)).and_then(BlockKey::new);
    let name = ChunkName {
        namespace: StoreNamespace::from_bytes(array(entry, 32)?),
        key: key_at(64, *entry.get(56)?)?,
    };
    let parent = match *entry.get(57)? {
        0 => None,
        length => Some(key_at(128, length)?),
    };
    let chunk = Chunk {
        bytes: u64_at(entry, 8)?,
        sum: u128::from_le_bytes(array(entry, 16)?),
        tokens: u32::from_le_bytes(array(entry, 48)?),
        end: u32::from_le_bytes(array(entry, 52)?),
    };
    (chunk.bytes > 0).then_some((u64_at(entry, 0)?, Record { name, parent, chunk }))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// A block that begins like this and ends with its sum.
fn block(beginning: &[&[u8]]) -> Vec<u8> {
    let mut block = beginning.concat();
    block.resize(SUM_AT, 0);
    block.extend(xxh3_64(&block).to_le_bytes());
    block
}

/// The body of a block of this magic and segment, if it is whole.
fn body(block: &[u8], magic: [u8; 8], segment: u64) -> Option<&[u8]> {
    let (body, sum) = block.split_at_checked(SUM_AT)?;
    let whole = body[..8] == magic && xxh3_64(body).to_le_bytes() == sum;
    (whole && u64_at(body, 8)? == segment).then_some(body)
}

/// The header of a record at `offset` of a segment: one block.
pub fn header(segment: u64, offset: u64, record: &Record) -> Vec<u8> {
    block(&[&RECORD_MAGIC, &segment.to_le_bytes(), &entry(offset, record)])
}

/// The record of the header at `offset` of a segment; none if it is not one, whole, and of this place.
fn of_header(header: &[u8], segment: u64, offset: u64) -> Option<Record> {
    let (at, record) = of_entry(&body(header, RECORD_MAGIC, segment)?[16..16 + ENTRY])?;
    (at == offset).then_some(record)
}

/// The index and trailer of a segment whose records end at `end`.
pub fn index(segment: u64, end: u64, records: &[Placed]) -> Vec<u8> {
    let mut index: Vec<u8> = records.iter().flat_map(|(offset, record)| entry(*offset, record)).collect();
    index.resize(index.len().next_multiple_of(BLOCK), 0);
    let count = records.len() as u64;
    let sum = xxh3_128(&index).to_le_bytes();
    let numbers = [segment.to_le_bytes(), end.to_le_bytes(), count.to_le_bytes()].concat();
    index.extend(block(&[&INDEX_MAGIC, &numbers, &sum]));
    index
}

/// The records of a segment by its index; none if it has no whole one. Two reads, whatever the segment's size.
///
/// # Errors
/// What the system said.
pub fn read_index(media: &dyn Media, segment: u64) -> io::Result<Option<Contents>> {
    let length = media.length(segment)?;
    let Some(trailer_at) = length.checked_sub(BLOCK_BYTES).filter(|at| at.is_multiple_of(BLOCK_BYTES)) else {
        return Ok(None);
    };
    let mut trailer = vec![0; BLOCK];
    media.read(segment, trailer_at, &mut trailer)?;
    let Some(body) = body(&trailer, INDEX_MAGIC, segment) else { return Ok(None) };
    let (Some(from), Some(count), Some(sum)) = (u64_at(body, 16), u64_at(body, 24), array(body, 32)) else {
        return Ok(None);
    };
    let fits =
        count < INDEX_BYTES_MAX / INDEX_ENTRY_BYTES && from.checked_add(index_bytes(count)) == Some(length);
    if !fits {
        return Ok(None);
    }
    let mut index = vec![0; (trailer_at - from) as usize];
    media.read(segment, from, &mut index)?;
    if xxh3_128(&index) != u128::from_le_bytes(sum) {
        return Ok(None);
    }
    let records: Option<Vec<Placed>> = index.chunks_exact(ENTRY).take(count as usize).map(of_entry).collect();
    let within = |(offset, record): &Placed| {
        offset.checked_add(record.chunk.record_bytes()).is_some_and(|end| end <= from)
    };
    Ok(records.filter(|records| records.iter().all(within)).map(|records| Contents { records, length }))
}

/// The records of a segment by their headers, up to the first that is not whole. The contents' length is where that is.
pub fn scan(media: &dyn Media, segment: u64) -> Contents {
    let (mut records, mut offset) = (Vec::new(), 0_u64);
    let length = media.length(segment).unwrap_or(0);
    let mut header = vec![0; BLOCK];
    while offset < length
        && media.read(segment, offset, &mut header).is_ok()
        && let Some(record) = of_header(&header, segment, offset)
        && let Some(end) = offset.checked_add(record.chunk.record_bytes())
        && end <= length
    {
        records.push((offset, record));
        offset = end;
    }
    Contents { records, length: offset }
}

/// What is in a segment of an earlier run. One without an index is given one: its headers are read, the last records are
/// checked whole, and what is behind them is cut off.
///
/// # Errors
/// What the system said, if not even headers can be read.
pub fn recover(media: &dyn Media, segment: u64) -> io::Result<Contents> {
    if let Some(contents) = read_index(media, segment)? {
        return Ok(contents);
    }
    let mut contents = scan(media, segment);
    let tail = contents.records.len().saturating_sub(TAIL_RECORDS);
    let whole = |(offset, record): &Placed| {
        let mut chunk = vec![0; record.chunk.bytes as usize];
        let read = media.read(segment, offset + BLOCK_BYTES, &mut chunk);
        read.is_ok() && chunk_checksum(&chunk).0 == record.chunk.sum
    };
    let torn: Vec<bool> = contents.records[tail..].iter().map(|placed| !whole(placed)).collect();
    let mut places = 0..;
    contents.records.retain(|_| {
        let place: usize = places.next().expect("more numbers than records");
        place < tail || !torn[place - tail]
    });
    let index = index(segment, contents.length, &contents.records);
    let sealed = media
        .truncate(segment, contents.length)
        .and_then(|()| media.write(segment, contents.length, &[&index]))
        .and_then(|()| media.sync(segment));
    match sealed {
        Ok(()) => contents.length += index.len() as u64,
        // It can be read all the same, only more slowly the next time.
        Err(error) => tracing::warn!(segment, %error, "a segment of an earlier run cannot be given an index"),
    }
    Ok(contents)
}

#[cfg(test)]
mod tests;
