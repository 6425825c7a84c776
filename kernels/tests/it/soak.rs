//! The emulator itself: threads that make, use and destroy everything at once, and wait for each other's events.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use larder_kernels::{CopyStream, Event, LandingSlab, PinnedRegion, Ticket, reference};

use crate::world::{Bytes, Emulator, Side, emulator, noise};

const THREADS: usize = 4;
/// Together more than a thousand.
const ROUNDS: usize = 260;
const BYTES: usize = 600;

/// Makes memory, a stream and an event, sends bytes to the device and back, the second copy on another stream that waits
/// for the first's event, and destroys all of it: each third time without having waited.
fn round(side: &Side, seed: u64, number: usize) {
    let device = &side.device;
    let memory = Bytes::new(2 * BYTES);
    let host = Arc::new(PinnedRegion::register(device, Arc::clone(&memory) as _).unwrap());
    let slab = Arc::new(match number % 16 {
        0 => LandingSlab::map(device, BYTES, 1).unwrap(),
        _ => LandingSlab::create(device, BYTES).unwrap(),
    });
    let (first, second) = (CopyStream::create(device, 0).unwrap(), CopyStream::create(device, -1).unwrap());
    let (first, second) = (Arc::new(first), Arc::new(second));
    let sent = noise(seed, BYTES);
    memory.write(0, &sent);
    let into = Ticket::copy_in(&side.kernels, &first, (&host, 0), (&slab, 0), BYTES).unwrap();
    let event = Event::create(device).unwrap();
    first.record(&event).unwrap();
    second.wait_for(&event).unwrap();
    drop(event);
    let out = Ticket::copy_out(&side.kernels, &second, (&slab, 0), (&host, BYTES), BYTES).unwrap();
    match number % 3 {
        0 => drop((into, out, first, second, slab, host)),
        1 => {
            drop((first, second, slab, host));
            out.wait().unwrap();
            into.wait().unwrap();
        }
        _ => {
            into.wait().unwrap();
            out.wait().unwrap();
        }
    }
    // Dropped or not, a ticket has waited.
    assert_eq!(memory.read(BYTES, BYTES), sent, "round {number} of seed {seed}");
}

/// A kernel now and then, whose threads run while other threads make and free memory.
fn sums(side: &Side, seed: u64) {
    let bytes = noise(seed, 4100);
    side.bytes.write(0, &bytes);
    Ticket::copy_in(&side.kernels, &side.stream, (&side.host, 0), (&side.slab, 0), 4100).unwrap();
    Ticket::checksum(&side.kernels, &side.stream, &side.slab, (0, 4100), 4104).unwrap();
    let (slab, host) = ((&side.slab, 4104), (&side.host, 4104));
    Ticket::copy_out(&side.kernels, &side.stream, slab, host, 16).unwrap().wait().unwrap();
    let words = side.bytes.read(4104, 16);
    let found: Vec<u64> = words.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    assert_eq!(found, reference::checksum(&bytes));
}

fn threads_of_this_process() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn soak(emulator: &Emulator) {
    let device = crate::world::device().unwrap();
    let left = emulator.controls.left();
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (device, done) = (&device, &done);
            scope.spawn(move || {
                let side = Side::new(8192).unwrap();
                assert_eq!(side.device.uuid(), device.uuid());
                for number in 0..ROUNDS {
                    round(&side, (thread * ROUNDS + number) as u64, number);
                    if number % 20 == 0 {
                        sums(&side, number as u64);
                    }
                    done.fetch_add(1, SeqCst);
                }
            });
        }
    });
    assert_eq!(done.load(SeqCst), THREADS * ROUNDS);
    assert_eq!(emulator.controls.left(), left, "all of it was given back");
}

#[test]
fn a_thousand_rounds_from_several_threads_leave_nothing() {
    let emulator = emulator();
    soak(&emulator);
    // The streams' threads end soon after their streams; if they never did there would be thousands.
    while threads_of_this_process() > 64 {
        thread::yield_now();
    }
}
