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
        let written: Vec<bool> = media.write_many(&writes).iter().map(Result::is_ok).collect();
        assert_eq!(written, [true, false, true]);
        let ((mut one, at), mut odd, mut none) = (aligned(2 * 4096), [0; 9], [0; 4096]);
        let mut reads = [
            Read { segment: 1, offset: 5 * 4096, bytes: &mut one[at..at + 2 * 4096] },
            Read { segment: 1, offset: 3 * 4096 - 5, bytes: &mut odd },
            Read { segment: 1, offset: 11 * 4096, bytes: &mut none },
        ];
        let read: Vec<bool> = media.read_many(&mut reads).iter().map(Result::is_ok).collect();
        assert_eq!(read, [true, true, false], "nothing lies behind the end");
        assert_eq!(one[at..at + 2 * 4096], blocks[4096..]);
        assert_eq!(&odd[5..], b"tail");
        assert_eq!(odd[..5], blocks[3 * 4096 - 5..]);
    });
}
