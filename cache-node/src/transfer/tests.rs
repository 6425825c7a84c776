use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::medium::memory::Others;

const CHUNK: u64 = 10_000;

fn pool(threads: usize) -> (Transfer, Arc<SharedMemory>, UnboundedReceiver<Input>) {
    let slab = Arc::new(SharedMemory::create("slab", 1 << 20, Others::Read).unwrap());
    let (results, received) = unbounded_channel();
    (Transfer::start(threads, Arc::clone(&slab), Clock::start(), results).unwrap(), slab, received)
}

#[test]
fn what_is_copied_verifies_until_it_is_damaged() {
    for threads in [1, 3] {
        let (transfer, slab, mut received) = pool(threads);
        let region = Arc::new(SharedMemory::create("region", 1 << 20, Others::Write).unwrap());
        let bytes: Vec<u8> = (0..1_u32 << 20).map(|index| (index * 7 % 253) as u8).collect();
        File::from(region.as_fd().try_clone_to_owned().unwrap()).write_all(&bytes).unwrap();
        let mut checks = Vec::new();
        for index in 0..20 {
            let (from, to) = (index * CHUNK, (19 - index) * CHUNK);
            let region = Arc::clone(&region);
            transfer.copy(CopyJob { copy: CopyId(index), region, from, to, bytes: CHUNK });
            let checksum = larder_protocol::chunk_checksum(&bytes[from as usize..(from + CHUNK) as usize]);
            checks.push(Check { offset: to, bytes: CHUNK, checksum });
        }
        for _ in 0..20 {
            let Some(Input::Copied { copy, checksum }) = received.blocking_recv() else { panic!("copied") };
            assert_eq!(checksum, checks[copy.0 as usize].checksum);
        }
        transfer.verify(VerifyId(1), checks.clone(), Duration::MAX);
        let Some(Input::Verified { found, .. }) = received.blocking_recv() else { panic!("verified") };
        assert_eq!(found, [Finding::Good; 20]);
        slab.flip(checks[7].offset + CHUNK - 1, 0);
        transfer.verify(VerifyId(2), checks.clone(), Duration::MAX);
        let Some(Input::Verified { found, .. }) = received.blocking_recv() else { panic!("verified") };
        let expected = (0..20).map(|index| if index == 7 { Finding::Bad } else { Finding::Good });
        assert!(found.into_iter().eq(expected));
        transfer.verify(VerifyId(3), checks, Duration::ZERO);
        let Some(Input::Verified { found, .. }) = received.blocking_recv() else { panic!("verified") };
        assert_eq!(found, [Finding::Skipped; 20], "its time was over before it began");
    }
}
