use proptest::prelude::*;

use super::*;

#[test]
fn length_zero_and_length_above_the_cap_are_faults() {
    let mut buffer = FrameBuffer::new();
    buffer.push(&[0, 0, 0, 0]);
    assert_eq!(buffer.next_body(), Err(FrameFault::Empty));
    let mut buffer = FrameBuffer::new();
    buffer.push(&u32::MAX.to_le_bytes());
    assert_eq!(
        buffer.next_body(),
        Err(FrameFault::TooLong { bytes: u32::MAX as usize, max: FRAME_BYTES_MAX })
    );
}

proptest! {
    /// Whatever pieces a stream is read in, the same bodies come out.
    #[test]
    fn pieces_do_not_matter(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..12),
        cuts in prop::collection::vec(1_usize..64, 1..200),
    ) {
        let stream: Vec<u8> = bodies.iter().flat_map(|body| frame(body)).collect();
        let mut buffer = FrameBuffer::new();
        let mut found = Vec::new();
        let mut rest = &stream[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            buffer.push(now);
            while let Some(body) = buffer.next_body().unwrap() {
                found.push(body.to_vec());
            }
            rest = later;
        }
        prop_assert_eq!(found, bodies);
        prop_assert_eq!(buffer.pending_bytes(), 0);
    }

    #[test]
    fn garbage_never_panics(garbage in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut buffer = FrameBuffer::new();
        buffer.push(&garbage);
        while let Ok(Some(_)) = buffer.next_body() {}
    }
}
