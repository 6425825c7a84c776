//! Every medium does the same.

use super::fake::Fake;
use super::*;

/// Bytes that begin at a whole block in memory.
fn aligned(bytes: usize) -> (Vec<u8>, usize) {
    let buffer = vec![0; bytes + 4096];
    let start = buffer.as_ptr().align_offset(4096);
    (buffer, start)
}

fn with_each(test: impl Fn(&dyn Media)) {
    test(&Fake::default());
    for access in [Access::Cached, Access::Direct] {
        let directory = tempfile::tempdir().unwrap();
        // Some file systems have no direct access; plain access is tested all the same.
        if access == Access::Direct && Files::access_of(directory.path()).unwrap() == Access::Cached {
            continue;
        }
        test(&Files::open(directory.path().join("kv"), access).unwrap());
        let files = Files::open(directory.path().join("ring"), access).unwrap();
        match Uring::over(files) {
            Ok(ring) => test(&ring),
            Err(error) => eprintln!("io_uring is not shown on this machine: {error}"),
        }
    }
}

#[test]
fn segments_are_made_written_read_cut_and_removed() {
    with_each(|media| {
        assert!(media.segments().unwrap().is_empty());
        media.create(3).unwrap();
        assert!(media.create(3).is_err(), "a segment is never begun twice");
        media.create(0x11).unwrap();
        media.write(3, 5, &[b"abc", b"", b"defg"]).unwrap();
        media.sync(3).unwrap();
        let mut found = [0; 9];
        media.read(3, 3, &mut found).unwrap();
        assert_eq!(&found, b"\0\0abcdefg");
        assert_eq!(media.length(3).unwrap(), 12);
        assert_eq!(media.read(3, 4, &mut found).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        media.truncate(3, 7).unwrap();
        assert_eq!(media.length(3).unwrap(), 7);
        assert_eq!(media.segments().unwrap(), [3, 0x11]);
        media.remove(3).unwrap();
        assert_eq!(media.segments().unwrap(), [0x11]);
        assert!(media.read(3, 0, &mut found).is_err() && media.write(3, 0, &[b"x"]).is_err());
    });
}

#[test]
fn whole_blocks_and_pieces_lie_side_by_side() {
    with_each(|media| {
        media.create(1).unwrap();
        let (mut buffer, start) = aligned(3 * 4096);
        buffer[start..].iter_mut().zip(0_u32..).for_each(|(byte, index)| *byte = (index / 7) as u8);
        let blocks = &buffer[start..start + 3 * 4096];
        media.write(1, 0, &[&blocks[..4096], &blocks[4096..]]).unwrap();
        media.write(1, 3 * 4096, &[b"tail"]).unwrap();
        let writes = [
            Write { segment: 1, offset: 4 * 4096, parts: [&blocks[..4096], &blocks[4096..]] },
            Write { segment: 9, offset: 0, parts: [b"", b"nowhere"] },
            Write { segment: 1, offset: 8 * 4096, parts: [&blocks[..4096], &blocks[4096..]] },
        ];
        let mut written = [None; 3];
        media.write_many(&writes, 2, &mut |_| true, &mut |index, result| {
            written[index] = Some(result.is_ok())
        });
        assert_eq!(written, [Some(true), Some(false), Some(true)]);
        let ((mut one, at), mut odd, mut none) = (aligned(2 * 4096), [0; 9], [0; 4096]);
        let mut reads = [
            Read { segment: 1, offset: 5 * 4096, bytes: &mut one[at..at + 2 * 4096] },
            Read { segment: 1, offset: 3 * 4096 - 5, bytes: &mut odd },
            Read { segment: 1, offset: 11 * 4096, bytes: &mut none },
        ];
        let mut read = [None; 3];
        media.read_many(&mut reads, &mut |index, _, result| read[index] = Some(result.is_ok()));
        assert_eq!(read, [Some(true), Some(true), Some(false)], "nothing lies behind the end");
        assert_eq!(one[at..at + 2 * 4096], blocks[4096..]);
        assert_eq!(&odd[5..], b"tail");
        assert_eq!(odd[..5], blocks[3 * 4096 - 5..]);
    });
}

/// Each write is begun while no more than `span` before it are open, what is not wanted is not written, and each of the others
/// is told of once, with its bytes in place; likewise each read.
#[test]
fn many_at_once_are_bounded_and_each_ends_once() {
    const COUNT: usize = 100;
    with_each(|media| {
        media.create(1).unwrap();
        let (mut buffer, start) = aligned(COUNT * 4096);
        buffer[start..].chunks_mut(4096).zip(1_u8..).for_each(|(block, number)| block.fill(number));
        let blocks: Vec<&[u8]> = buffer[start..start + COUNT * 4096].chunks(4096).collect();
        let writes: Vec<Write<'_>> = (0_u64..)
            .zip(&blocks)
            .map(|(index, block)| Write { segment: 1, offset: index * 4096, parts: [block, &[]] })
            .collect();
        let ended = std::cell::RefCell::new([0_u32; COUNT]);
        let is_wanted = |index: usize| index % 7 != 3;
        media.write_many(
            &writes,
            4,
            &mut |index| {
                let open = (0..index).find(|before| is_wanted(*before) && ended.borrow()[*before] == 0);
                assert!(open.is_none_or(|open| index < open + 4), "{index} is begun while {open:?} is open");
                is_wanted(index)
            },
            &mut |index, result| {
                result.unwrap();
                ended.borrow_mut()[index] += 1;
            },
        );
        let expected: Vec<u32> = (0..COUNT).map(|index| u32::from(is_wanted(index))).collect();
        assert_eq!(ended.into_inner().as_slice(), expected);
        let (mut found, from) = aligned(COUNT * 4096);
        let parts = found[from..from + COUNT * 4096].chunks_mut(4096);
        let mut reads: Vec<Read<'_>> = (0_u64..)
            .zip(parts)
            .map(|(index, bytes)| Read { segment: 1, offset: index * 4096, bytes })
            .collect();
        let mut read = [0; COUNT];
        media.read_many(&mut reads, &mut |index, bytes, result| {
            result.unwrap();
            read[index] += 1;
            let right = if is_wanted(index) { index as u8 + 1 } else { 0 };
            assert!(bytes.iter().all(|byte| *byte == right), "block {index}");
        });
        assert_eq!(read, [1; COUNT]);
    });
}

/// Whoever is told of an end may panic; nothing is under way any more when that is caught.
#[test]
fn a_panic_leaves_nothing_under_way() {
    with_each(|media| {
        media.create(1).unwrap();
        let (buffer, start) = aligned(32 * 4096);
        media.write(1, 0, &[&buffer[start..start + 32 * 4096]]).unwrap();
        let (mut found, from) = aligned(32 * 4096);
        let parts = found[from..from + 32 * 4096].chunks_mut(4096);
        let mut reads: Vec<Read<'_>> = (0_u64..)
            .zip(parts)
            .map(|(index, bytes)| Read { segment: 1, offset: index * 4096, bytes })
            .collect();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            media.read_many(&mut reads, &mut |_, _, _| panic!("as wanted here"));
        }));
        assert!(caught.is_err());
        let mut again = [1; 4096];
        media.read(1, 0, &mut again).unwrap();
        assert_eq!(again, [0; 4096]);
    });
}

/// A segment with room made beforehand reads as it was written, and can be cut to what was written.
#[test]
fn room_made_beforehand_changes_nothing_that_is_written() {
    with_each(|media| {
        media.create(1).unwrap();
        // Not every file system can, and then it grows.
        let reserved = media.reserve(1, 1 << 20).is_ok() && media.length(1).unwrap() > 0;
        media.write(1, 4096, &[b"abc"]).unwrap();
        media.write(1, 0, &[&[7; 4096]]).unwrap();
        let mut found = [1; 5];
        if reserved {
            media.read(1, 4095, &mut found).unwrap();
            assert_eq!(&found, b"\x07abc\0");
        }
        media.truncate(1, 4099).unwrap();
        assert_eq!(media.length(1).unwrap(), 4099);
        media.read(1, 4096, &mut found[..3]).unwrap();
        assert_eq!(&found[..3], b"abc");
    });
}
