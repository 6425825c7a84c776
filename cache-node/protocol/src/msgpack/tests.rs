use proptest::prelude::*;

use super::*;

fn uint_bytes(value: u64) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.uint(value);
    writer.into_bytes()
}

#[test]
fn the_shortest_form_is_written() {
    assert_eq!(uint_bytes(127), [0x7f]);
    assert_eq!(uint_bytes(128), [0xcc, 0x80]);
    assert_eq!(uint_bytes(256), [0xcd, 1, 0]);
    assert_eq!(uint_bytes(65_536), [0xce, 0, 1, 0, 0]);
    assert_eq!(uint_bytes(1 << 32), [0xcf, 0, 0, 0, 1, 0, 0, 0, 0]);
    let mut writer = Writer::default();
    writer.bin(&[]);
    writer.str("a");
    writer.array(16);
    writer.map(16);
    assert_eq!(writer.into_bytes(), [0xc4, 0, 0xa1, b'a', 0xdc, 0, 16, 0xde, 0, 16]);
}

#[test]
fn any_width_is_read_and_negative_is_refused() {
    for bytes in
        [&[5_u8][..], &[0xcc, 5], &[0xcd, 0, 5], &[0xd0, 5], &[0xd1, 0, 5], &[0xd3, 0, 0, 0, 0, 0, 0, 0, 5]]
    {
        assert_eq!(Reader::new(bytes).uint(), Ok(5), "{bytes:x?}");
    }
    for bytes in [&[0xff_u8][..], &[0xd0, 0x80], &[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(Reader::new(bytes).uint(), Err(Malformed::Range("negative number")), "{bytes:x?}");
    }
    assert!(matches!(Reader::new(&[0xca, 0, 0, 0, 0]).uint(), Err(Malformed::Form { .. })));
}

#[test]
fn a_length_alone_allocates_nothing() {
    assert_eq!(Reader::new(&[0xdd, 0xff, 0xff, 0xff, 0xff, 1]).array(), Err(Malformed::Truncated));
    assert_eq!(Reader::new(&[0xc6, 0xff, 0xff, 0xff, 0xff, 1]).bin(), Err(Malformed::Truncated));
}

#[test]
fn skip_knows_every_form() {
    let forms: [&[u8]; 14] = [
        &[0xc0],
        &[0xe0],
        &[0xca, 0, 0, 0, 0],
        &[0xcb, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0xd4, 1, 2],
        &[0xd8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0xc7, 2, 9, 1, 2],
        &[0xd9, 1, 0xff],
        &[0xc4, 1, 2],
        &[0x92, 1, 2],
        &[0x81, 0xa1, b'k', 0x90],
        &[0xdc, 0, 1, 0xc2],
        &[0xde, 0, 0],
        &[0xd2, 1, 2, 3, 4],
    ];
    for form in forms {
        let mut reader = Reader::new(form);
        assert_eq!(reader.skip(DEPTH_MAX), Ok(()), "{form:x?}");
        assert_eq!(reader.remaining(), 0, "{form:x?}");
        for cut in 0..form.len() {
            assert!(Reader::new(&form[..cut]).skip(DEPTH_MAX).is_err(), "{form:x?} cut to {cut}");
        }
    }
    assert_eq!(Reader::new(&[0x91; 64]).skip(DEPTH_MAX), Err(Malformed::Depth));
    assert!(matches!(Reader::new(&[0xc1]).skip(DEPTH_MAX), Err(Malformed::Form { .. })));
}

proptest! {
    #[test]
    fn numbers_come_back(value: u64) {
        prop_assert_eq!(Reader::new(&uint_bytes(value)).uint(), Ok(value));
    }

    #[test]
    fn strings_and_bins_come_back(text in ".{0,300}", bytes in prop::collection::vec(any::<u8>(), 0..70_000)) {
        let mut writer = Writer::default();
        writer.str(&text);
        writer.bin(&bytes);
        writer.bool(true);
        let encoded = writer.into_bytes();
        let mut reader = Reader::new(&encoded);
        prop_assert_eq!(reader.str(), Ok(&text[..]));
        prop_assert_eq!(reader.bin(), Ok(&bytes[..]));
        prop_assert_eq!(reader.bool(), Ok(true));
        prop_assert_eq!(reader.remaining(), 0);
    }

    #[test]
    fn skipping_garbage_never_panics(garbage in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Reader::new(&garbage).skip(DEPTH_MAX);
    }
}
