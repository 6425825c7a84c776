//! What was appended comes back or is missed, whatever the disk did.

use std::sync::Arc;

use larder_tiering::disk::{LoadFault, Location, WriteFault};

use super::*;
use crate::medium::disk::media::fake::{Fake, Fault};
use crate::medium::disk::media::{Access, Files};
use crate::medium::disk::work::{Append, Appender, Load, load};
use crate::store::Verify;

const SEGMENT: u64 = 3;

/// Appends one chunk, and says what was told of it: one thing.
fn outcomes(appender: &mut Appender, append: Append<'_>) -> Vec<Result<(), WriteFault>> {
    let mut told = Vec::new();
    appender.append(&[append], &mut |_, outcome| told.push(outcome));
    told
}

fn chunk(number: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index as u8).wrapping_mul(31) ^ number).collect()
}

fn record(number: u8) -> (Record, Vec<u8>) {
    let bytes = chunk(number, 5000 + usize::from(number) * 777);
    let key = |number: u8| BlockKey::new(&vec![number; usize::from(number) % 64 + 1]).unwrap();
    let record = Record {
        name: ChunkName { namespace: StoreNamespace(7), key: key(number) },
        parent: number.checked_sub(1).map(key),
        chunk: Chunk {
            bytes: bytes.len() as u64,
            sum: chunk_checksum(&bytes).0,
            tokens: 32,
            end: u32::from(number) * 32 + 32,
        },
    };
    (record, bytes)
}

fn in_blocks(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// Makes a segment and appends chunks of odd sizes, one at a time. Returns what was appended and where it ends.
fn fill(media: Arc<dyn Media>, numbers: std::ops::Range<u8>) -> (Appender, Vec<Placed>, u64) {
    let mut appender = Appender::new(media, Verify::Lease);
    appender.create(SEGMENT);
    let (mut appended, mut offset) = (Vec::new(), 0);
    for number in numbers {
        let (record, bytes) = record(number);
        let at = Location { segment: SEGMENT, offset };
        let append = Append { at, record: &record, bytes: &in_blocks(bytes) };
        assert_eq!(outcomes(&mut appender, append), [Ok(())]);
        appended.push((offset, record.clone()));
        offset += record.chunk.record_bytes();
    }
    (appender, appended, offset)
}

fn read_back(media: &dyn Media, (offset, record): &Placed) -> Result<Vec<u8>, LoadFault> {
    let mut bytes = vec![0; record.chunk.bytes.next_multiple_of(BLOCK_BYTES) as usize];
    let at = Location { segment: SEGMENT, offset: *offset };
    let mut result = Vec::new();
    let one = Load { at, chunk: record.chunk, bytes: &mut bytes };
    load(media, Verify::Lease, vec![one], &mut |_, outcome| result.push(outcome));
    bytes.truncate(record.chunk.bytes as usize);
    result[0].map(|()| bytes)
}

fn assert_right(media: &dyn Media, number: u8, placed: &Placed) {
    assert_eq!(read_back(media, placed).unwrap(), record(number).1);
}

#[test]
fn files_are_found_again_by_another_process_life_with_an_index_or_without() {
    for sealed in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kv");
        let open = || Arc::new(Files::open(path.clone(), Access::Cached).unwrap());
        let (mut appender, appended, end) = fill(open(), 0..9);
        if sealed {
            appender.seal(SEGMENT, end).unwrap();
        }
        drop(appender);
        std::fs::write(path.join("notes.txt"), "not a segment").unwrap();
        let again = open();
        assert_eq!(again.segments().unwrap(), [SEGMENT]);
        assert_eq!(read_index(&*again, SEGMENT).unwrap().is_some(), sealed);
        let found = recover(&*again, SEGMENT).unwrap();
        assert_eq!(found.records, appended);
        assert_eq!(found.length, end + index_bytes(9));
        assert_eq!(read_index(&*again, SEGMENT).unwrap(), Some(found.clone()), "it has one from here on");
        (0..).zip(&found.records).for_each(|(number, placed)| assert_right(&*again, number, placed));
        again.remove(SEGMENT).unwrap();
        assert_eq!(read_back(&*again, &found.records[0]), Err(LoadFault::Io));
    }
}

#[test]
fn wherever_the_file_ends_what_is_left_is_right() {
    let media = Arc::new(Fake::default());
    let (mut appender, appended, end) = fill(media.clone(), 0..5);
    appender.seal(SEGMENT, end).unwrap();
    let whole = media.bytes(SEGMENT).unwrap();
    for cut in (0..=whole.len()).step_by(509).chain([end as usize, whole.len()]) {
        media.set_bytes(SEGMENT, whole[..cut].to_vec());
        let found = recover(&*media, SEGMENT).unwrap();
        let before =
            appended.iter().filter(|(offset, record)| offset + record.chunk.record_bytes() <= cut as u64);
        assert_eq!(found.records, before.cloned().collect::<Vec<_>>(), "cut at {cut}");
        (0..).zip(&found.records).for_each(|(number, placed)| assert_right(&*media, number, placed));
    }
}

#[test]
fn any_flipped_byte_is_a_miss_and_never_a_wrong_chunk() {
    for sealed in [true, false] {
        let media = Arc::new(Fake::default());
        let (mut appender, appended, end) = fill(media.clone(), 0..3);
        if sealed {
            appender.seal(SEGMENT, end).unwrap();
        }
        let whole = media.bytes(SEGMENT).unwrap();
        let mut missed = 0;
        for byte in (0..whole.len()).step_by(97) {
            media.set_bytes(SEGMENT, whole.clone());
            media.flip(SEGMENT, byte);
            let found = recover(&*media, SEGMENT).unwrap();
            for placed in &found.records {
                let number =
                    appended.iter().position(|known| known == placed).expect("only what was appended");
                match read_back(&*media, placed) {
                    Ok(bytes) => assert_eq!(bytes, record(number as u8).1),
                    Err(fault) => {
                        assert_eq!(fault, LoadFault::Damaged);
                        missed += 1;
                    }
                }
            }
            missed += 3 - found.records.len();
        }
        assert!(missed > 100, "the damage was seen");
    }
}

#[test]
fn a_write_that_failed_or_was_torn_is_not_there() {
    for fault in
        [Fault::Io, Fault::Full, Fault::Short(9000), Fault::Torn(4000), Fault::Torn(9000), Fault::Flip(9000)]
    {
        let media = Arc::new(Fake::default());
        let (mut appender, before, end) = fill(media.clone(), 0..2);
        media.fail(0, fault);
        let (record, bytes) = record(2);
        let at = Location { segment: SEGMENT, offset: end };
        let written = outcomes(&mut appender, Append { at, record: &record, bytes: &in_blocks(bytes) })[0];
        let expected = match fault {
            Fault::Full => Err(WriteFault::Full),
            Fault::Io | Fault::Short(_) => Err(WriteFault::Io),
            _ => Ok(()),
        };
        assert_eq!(written, expected, "{fault:?}");
        if written.is_ok() {
            assert!(read_back(&*media, &(end, record)).is_err(), "{fault:?}: what nobody said is seen");
        }
        let found = recover(&*media, SEGMENT).unwrap();
        assert_eq!(found.records, before, "{fault:?}");
        (0..).zip(&found.records).for_each(|(number, placed)| assert_right(&*media, number, placed));
    }
}

#[test]
fn a_segment_whose_write_failed_is_sealed_without_it() {
    let media = Arc::new(Fake::default());
    let (mut appender, mut appended, mut end) = fill(media.clone(), 0..2);
    media.fail(0, Fault::Io);
    for (number, expected) in [(2, Err(WriteFault::Io)), (3, Ok(()))] {
        let (record, bytes) = record(number);
        let at = Location { segment: SEGMENT, offset: end };
        let append = Append { at, record: &record, bytes: &in_blocks(bytes) };
        assert_eq!(outcomes(&mut appender, append), [expected]);
        if expected.is_ok() {
            appended.push((end, record.clone()));
        }
        end += record.chunk.record_bytes();
    }
    assert_eq!(recover(&*media, SEGMENT).unwrap().records.len(), 2, "a scan ends at the hole");
    let media = Arc::new(Fake::default());
    let (mut appender, ..) = fill(media.clone(), 0..2);
    appender.seal(SEGMENT, end).unwrap();
    assert_eq!(recover(&*media, SEGMENT).unwrap().records.len(), 2, "an index may lie far behind");
}

#[test]
fn damage_in_memory_never_reaches_the_disk() {
    let media = Arc::new(Fake::default());
    let (mut appender, appended, end) = fill(media.clone(), 0..1);
    let (record, bytes) = record(1);
    let mut bytes = in_blocks(bytes);
    bytes[99] ^= 1;
    let append = || Append { at: Location { segment: SEGMENT, offset: end }, record: &record, bytes: &bytes };
    assert_eq!(outcomes(&mut appender, append()), [Err(WriteFault::Damaged)]);
    assert_eq!(scan(&*media, SEGMENT).records, appended);
    // The control: with checksums off it does.
    let mut appender = Appender::new(media.clone(), Verify::Off);
    assert_eq!(outcomes(&mut appender, append()), [Err(WriteFault::Io)], "only to a segment it made");
    media.remove(SEGMENT).unwrap();
    appender.create(SEGMENT);
    assert_eq!(outcomes(&mut appender, append()), [Ok(())]);
}

#[test]
fn a_header_of_another_segment_or_place_is_none() {
    let media = Arc::new(Fake::default());
    let (mut appender, appended, end) = fill(media.clone(), 0..2);
    let bytes = media.bytes(SEGMENT).unwrap();
    media.set_bytes(4, bytes.clone());
    assert_eq!(scan(&*media, 4).records, [], "what a reused file held before");
    let second = appended[1].0 as usize;
    media.set_bytes(4, [&bytes[second..], &bytes[..second]].concat());
    assert_eq!(scan(&*media, 4).records, []);
    media.set_bytes(SEGMENT, [&bytes[second..], &bytes[..second]].concat());
    assert_eq!(scan(&*media, SEGMENT).records, [], "a record knows its place");
    media.set_bytes(SEGMENT, bytes);
    appender.seal(SEGMENT, end).unwrap();
    media.set_bytes(4, media.bytes(SEGMENT).unwrap());
    assert_eq!(read_index(&*media, 4).unwrap(), None);
}

/// An index that says more than can be is none; a segment of nonsense holds nothing.
#[test]
fn nonsense_is_read_as_nothing() {
    let media = Fake::default();
    for bytes in [vec![], vec![0; 1], vec![0xff; BLOCK], vec![7; 3 * BLOCK + 1]] {
        media.set_bytes(SEGMENT, bytes);
        assert_eq!(recover(&media, SEGMENT).unwrap().records, []);
    }
    let numbers = [SEGMENT.to_le_bytes(), 0_u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat();
    media.set_bytes(SEGMENT, block(&[&INDEX_MAGIC, &numbers, &[0; 16]]));
    assert_eq!(read_index(&media, SEGMENT).unwrap(), None);
}
