use proptest::prelude::*;

use super::*;

fn identity(n: usize) -> Identity {
    Identity {
        model: format!("model {n}"),
        authority: format!("10.0.0.{n}:80"),
        fingerprint: n as u64 * 7,
        run_bytes: 512,
    }
}

fn written(endpoints: usize, held: &[(u32, Vec<u64>)], most: u64) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), most).unwrap();
    for n in 0..endpoints {
        writer.endpoint(&identity(n)).unwrap();
    }
    for (endpoint, elements) in held {
        if !writer.held(*endpoint, elements).unwrap() {
            break;
        }
    }
    let (bytes, size) = writer.finish().unwrap();
    assert_eq!(bytes.len() as u64, size);
    bytes
}

fn held() -> impl Strategy<Value = Vec<(u32, Vec<u64>)>> {
    prop::collection::vec((0u32..3, prop::collection::vec(any::<u64>(), 1..20)), 0..20)
}

proptest! {
    #[test]
    fn what_is_written_is_read(held in held()) {
        let bytes = written(3, &held, u64::MAX);
        let read = parse(&bytes).unwrap();
        prop_assert_eq!(read.endpoints, (0..3).map(identity).collect::<Vec<_>>());
        let again: Vec<(u32, Vec<u64>)> =
            read.held.iter().map(|(n, bytes)| (*n as u32, elements(bytes).collect())).collect();
        prop_assert_eq!(again, held);
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed(held in held(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let bytes = written(3, &held, u64::MAX);
        let at = at.index(bytes.len());
        prop_assert!(parse(&bytes[..at]).is_err());
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        prop_assert!(parse(&flipped).is_err(), "byte {}", at);
        let mut longer = bytes;
        longer.push(0);
        prop_assert!(parse(&longer).is_err());
    }

    #[test]
    fn bytes_that_carry_a_right_sum_are_no_trap(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut whole = Writer::new(Vec::new(), u64::MAX).unwrap().out;
        whole.append(&mut bytes);
        let sum = xxh3_64(&whole);
        whole.extend_from_slice(&sum.to_le_bytes());
        let _ = parse(&whole);
    }

    #[test]
    fn the_size_is_kept_and_the_newest_stays(held in held(), most in 300u64..2_000) {
        let bytes = written(3, &held, most);
        prop_assert!(bytes.len() as u64 <= most);
        let read = parse(&bytes).unwrap();
        for ((n, bytes), (endpoint, all)) in read.held.iter().zip(&held) {
            prop_assert_eq!(*n as u32, *endpoint);
            prop_assert!(elements(bytes).eq(all.iter().copied()));
        }
    }
}

#[test]
fn other_files_are_told_from_damaged_ones() {
    assert_eq!(parse(b""), Err(BadSnapshot::Foreign));
    assert_eq!(parse(b"[limits]\nmax_body = 3\n"), Err(BadSnapshot::Foreign));
    let good = written(1, &[(0, vec![1, 2])], u64::MAX);
    let mut newer = good.clone();
    newer[8] = 2;
    assert_eq!(parse(&newer), Err(BadSnapshot::Version(2)));
    assert_eq!(parse(&good[..good.len() - 3]), Err(BadSnapshot::Checksum));
    assert!(parse(&good).is_ok());
}
