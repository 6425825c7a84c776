//! A node that is killed under load, again and again: whatever it hands out afterwards was committed under that key, by a
//! record that is none of the node's.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larder_protocol::ToEngine;
use larder_protocol::message::{Complete, Load, Release, Verdict};

use crate::disk;
use crate::engine::{Engine, content, register};

const PART: u64 = 100_000;

/// Chunks of a prompt.
const PROMPT: u64 = 8;

/// Prompts in use: more than the host tier holds (655 chunks), and than the disk tier does (some 600).
const PROMPTS: u64 = 110;

const KILLS: u64 = 20;

/// What engines were told is stored, and what they may have stored without hearing of it.
#[derive(Default)]
struct Record {
    committed: Mutex<BTreeSet<u64>>,
    sent: Mutex<BTreeSet<u64>>,
}

/// What one engine does until its node is gone: stores and loads prompts, and compares all it is given. Returns how many
/// chunks it compared.
fn work(mut engine: Engine, seed: u64, record: &Record, stop: &AtomicBool) -> u64 {
    let (mut state, mut compared) = (seed, 0);
    while !stop.load(Ordering::Relaxed) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let first = (state >> 33) % PROMPTS * PROMPT;
        let numbers = first..first + PROMPT;
        let done = match state >> 62 {
            0 => load(&mut engine, numbers).map(|count| compared += count),
            _ => store(&mut engine, numbers, record),
        };
        if done.is_none() {
            break;
        }
    }
    compared
}

fn store(engine: &mut Engine, numbers: std::ops::Range<u64>, record: &Record) -> Option<()> {
    (0..).zip(numbers.clone()).for_each(|(slot, number)| engine.write(slot, number));
    record.sent.lock().unwrap().extend(numbers.clone());
    let commit = engine.commit_message(numbers.clone());
    let ToEngine::Committed(committed) = engine.try_ask(commit)? else { panic!("an answer to commit") };
    let stored = numbers.zip(&committed.results.0).filter(|(_, verdict)| **verdict != Verdict::Refused);
    record.committed.lock().unwrap().extend(stored.map(|(number, _)| number));
    Some(())
}

/// Loads what is held of a prompt, waiting for the disk, and compares it. Returns how many chunks that were.
fn load(engine: &mut Engine, numbers: std::ops::Range<u64>) -> Option<u64> {
    let leased = loop {
        let lookup = engine.lookup_message(numbers.clone(), None);
        match engine.try_ask(lookup)? {
            ToEngine::Pending(_) => std::thread::sleep(Duration::from_millis(1)),
            ToEngine::Leased(leased) => break leased,
            ToEngine::Miss(_) => return Some(0),
            other => panic!("{other:?}"),
        }
    };
    let count = leased.slots.len() as u32;
    engine.try_ask(Load { id: 1, lease: leased.lease, first: 0, count })?;
    for (number, (slot, generation)) in numbers.zip(leased.slots.iter().zip(&leased.generations)) {
        let bytes = engine.read(*slot, *generation).expect("a slot under load stays");
        assert!(bytes == content(number, PART), "chunk {number} is not what was stored");
    }
    engine.try_ask(Complete { id: 2, lease: leased.lease, ok: true, failed: None })?;
    engine.try_ask(Release { id: 3, lease: leased.lease })?;
    Some(u64::from(count))
}

/// Loads everything there is and compares it with the record. Returns how many chunks were there.
fn verify(socket: &Path, record: &Record) -> u64 {
    let mut engine = Engine::connect(socket, "verify", register(PART, 1, 1));
    let sent = record.sent.lock().unwrap().clone();
    let mut found = 0;
    for prompt in 0..PROMPTS {
        let first = prompt * PROMPT;
        let count = load(&mut engine, first..first + PROMPT).expect("the node is there");
        assert!(
            (first..first + count).all(|number| sent.contains(&number)),
            "prompt {prompt} was never stored"
        );
        found += count;
    }
    found
}

#[test]
fn twenty_kills_under_load_and_never_a_wrong_byte() {
    kill_again_and_again(KILLS, "auto");
}

/// The same with plain calls, for where the system allows no io_uring.
#[test]
fn kills_with_plain_calls_and_never_a_wrong_byte() {
    kill_again_and_again(5, "threads");
}

fn kill_again_and_again(kills: u64, io: &str) {
    let record = Record::default();
    let mut directory = tempfile::tempdir().unwrap();
    let (mut found, mut compared) = (Vec::new(), 0);
    for kill in 0..=kills {
        let tier = format!("write_rate = \"1GiB\"\nio = \"{io}\"");
        let node = disk::start(directory, "verify_fresh = \"0s\"", &tier);
        found.push(verify(&node.socket(), &record));
        assert_eq!(
            node.stat("disk_damaged_chunks_total"),
            0,
            "kill {kill}: torn tails are dropped at the start"
        );
        assert_eq!(node.stat("corrupt_chunks_total"), 0);
        let stop = AtomicBool::new(false);
        let engine = |number| Engine::connect(&node.socket(), &format!("e{number}"), register(PART, 1, 1));
        let engines: Vec<Engine> = (0..3).map(engine).collect();
        let stored = node.stat("stored_chunks_total");
        directory = std::thread::scope(|scope| {
            let worker = |(engine, number): (Engine, u64)| {
                let (record, stop) = (&record, &stop);
                scope.spawn(move || work(engine, kill * 7 + number + 1, record, stop))
            };
            let workers: Vec<_> = engines.into_iter().zip(0..).map(worker).collect();
            // At another moment each time, but never before something was stored.
            node.wait_for_least("stored_chunks_total", stored + 60);
            std::thread::sleep(Duration::from_millis(kill * 37 % 200));
            let directory = node.kill();
            stop.store(true, Ordering::Relaxed);
            compared += workers.into_iter().map(|worker| worker.join().unwrap()).sum::<u64>();
            directory
        });
    }
    let committed = record.committed.lock().unwrap().len() as u64;
    eprintln!(
        "{committed} chunks committed, {compared} compared under load, found after each start: {found:?}"
    );
    assert!(found[0] == 0 && found[3..].iter().all(|found| *found > 30), "{found:?}: the disk tier survives");
    assert!(found.iter().all(|found| *found <= record.sent.lock().unwrap().len() as u64));
}
