use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use super::*;

fn file(memory: &SharedMemory) -> File {
    File::from(memory.as_fd().try_clone_to_owned().unwrap())
}

#[test]
fn engines_can_read_the_slab_but_never_write_or_resize_it() {
    let slab = SharedMemory::create("slab", 1 << 20, Others::Read).unwrap();
    let mut file = file(&slab);
    assert!(file.write(&[1]).is_err(), "write");
    assert!(file.set_len(1 << 21).is_err() && file.set_len(1).is_err(), "resize");
    let length = NonZeroUsize::new(4096).unwrap();
    let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: no address is asked for, and what is mapped is not touched.
    let mapped = unsafe { mmap(None, length, writable, MapFlags::MAP_SHARED, &slab, 0) };
    assert_eq!(mapped, Err(nix::errno::Errno::EPERM), "map writable");
    // SAFETY: as above.
    let mapped = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &slab, 0) }.unwrap();
    // SAFETY: the mapping is private to this test and unmapped once. A mapping made readable stays so.
    unsafe {
        assert!(nix::sys::mman::mprotect(mapped, 4096, writable).is_err(), "make writable later");
        munmap(mapped, 4096).unwrap();
    }
}

#[test]
fn taking_pages_changes_nothing() {
    let slab = SharedMemory::create("slab", 1 << 20, Others::Read).unwrap();
    slab.fill(&[(4096, 3)], |mut parts| parts[0].copy_from_slice(b"abc"));
    slab.populate(0, 1 << 20).unwrap();
    slab.with_bytes(&[(4095, 5)], |parts| assert_eq!(parts[0], b"\0abc\0"));
    assert!(matches!(slab.pages(), Pages::Small | Pages::Transparent));
}

/// The negative control: a region is made to be written.
#[test]
fn engines_can_write_their_region_but_not_resize_it() {
    let region = SharedMemory::create("region", 1 << 20, Others::Write).unwrap();
    let mut file = file(&region);
    assert!(file.write(&[1]).is_ok());
    assert!(file.set_len(1 << 21).is_err() && file.set_len(1).is_err());
}

#[test]
fn copies_are_whole_and_hashed_by_the_one_definition() {
    let slab = SharedMemory::create("slab", 1 << 20, Others::Read).unwrap();
    let region = SharedMemory::create("region", 1 << 20, Others::Write).unwrap();
    let chunk: Vec<u8> = (0..10_001_u32).map(|index| (index * 31 % 251) as u8).collect();
    let mut writer = file(&region);
    writer.seek(SeekFrom::Start(8192)).unwrap();
    writer.write_all(&chunk).unwrap();
    let checksum = slab.copy_in(65_536, &region, 8192, chunk.len() as u64);
    assert_eq!(checksum, larder_protocol::chunk_checksum(&chunk));
    assert_eq!(slab.checksum(65_536, chunk.len() as u64), checksum);
    let mut reader = file(&slab);
    let mut read = vec![0; chunk.len()];
    reader.seek(SeekFrom::Start(65_536)).unwrap();
    reader.read_exact(&mut read).unwrap();
    assert_eq!(read, chunk);
    slab.flip(65_536 + 9000, 3);
    assert_ne!(slab.checksum(65_536, chunk.len() as u64), checksum);
    slab.flip(65_536 + 9000, 3);
    assert_eq!(slab.checksum(65_536, chunk.len() as u64), checksum);
}

#[test]
fn generations_are_seen_through_the_descriptor() {
    let table = SharedMemory::create("generations", 4096, Others::Read).unwrap();
    table.set(3, 42);
    let mut words = [0; 32];
    let mut file = file(&table);
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_exact(&mut words).unwrap();
    assert_eq!(u64::from_ne_bytes(words[24..].try_into().unwrap()), 42);
}

#[test]
#[should_panic(expected = "1 bytes at 4096 of 4096")]
fn beyond_the_end_is_a_stop() {
    SharedMemory::create("small", 4096, Others::Read).unwrap().flip(4096, 0);
}
