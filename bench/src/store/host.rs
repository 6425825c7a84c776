//! Through the slab: an engine's copy into its region and the node's copy and checksum; and back.

use std::collections::VecDeque;

use larder_cache_node::medium::memory::{Others, SharedMemory};
use larder_protocol::chunk_checksum;

use super::engine::Engine;
use super::{Bench, Pass, Row, io, noise, own_cpu, row};
use crate::error::Error;

/// Bytes under way at one time: half a region is written while the node takes the other half in.
const BATCH_BYTES: u64 = 16 << 20;

impl Bench<'_> {
    pub(super) fn host(&self, chunk_bytes: u64) -> Result<Vec<Row>, Error> {
        let folder = self.folder("host")?;
        // Room for a pass: nothing is evicted, and what is stored anew goes where the pass before was.
        let size = self.args.pass_mib * 3 / 2 + 64;
        let lines = format!(
            "verify_fresh = \"0s\"\nhost = {{ size = \"{size}MiB\" }}\nregion = {{ size = \"{}MiB\" }}",
            BATCH_BYTES >> 19
        );
        let node = self.start(&folder, &lines)?;
        let mut engine = Engine::connect(&node.socket, chunk_bytes).map_err(io)?;
        let batch = (BATCH_BYTES / chunk_bytes).clamp(1, engine.region_slots() / 2);
        let batches = self.pass_bytes() / (batch * chunk_bytes);
        let bytes = batches * batch * chunk_bytes;
        let chunks = noise((batch * chunk_bytes) as usize);
        let mut back = vec![0; chunks.len()];
        let plain = Plain::new(bytes, chunk_bytes)?;
        let cpu = || own_cpu() + node.cpu();
        let (mut limits, mut puts, mut gets) = (Vec::new(), Vec::new(), Vec::new());
        // The first pass takes the pages; it is not counted, of either.
        for pass in 0..=self.args.passes {
            let first = pass * batches * batch;
            let limit = Pass::of(bytes, own_cpu, || plain.put(&chunks))?;
            let put = Pass::of(bytes, cpu, || put(&mut engine, first, batches, batch, &chunks).map_err(io))?;
            let get =
                Pass::of(bytes, cpu, || get(&mut engine, first, batches, batch, &mut back).map_err(io))?;
            node.clear()?;
            if pass > 0 {
                limits.push(limit);
                puts.push(put);
                gets.push(get);
            }
        }
        if back != chunks {
            return Err(io("the node gave other bytes back"));
        }
        Ok(vec![
            row("host", "put", chunk_bytes, &puts, &limits),
            row("host", "get", chunk_bytes, &gets, &limits),
        ])
    }
}

/// The limit: a plain copy into shared memory, and the checksum of it, by one thread.
struct Plain {
    memory: SharedMemory,
    chunk_bytes: u64,
    bytes: u64,
}

impl Plain {
    fn new(bytes: u64, chunk_bytes: u64) -> Result<Self, Error> {
        let memory = SharedMemory::create("larder-bench", bytes, Others::Read).map_err(io)?;
        Ok(Self { memory, chunk_bytes, bytes })
    }

    fn put(&self, chunks: &[u8]) -> Result<(), Error> {
        let mut sources = chunks.chunks_exact(self.chunk_bytes as usize).cycle();
        for offset in (0..self.bytes).step_by(self.chunk_bytes as usize) {
            let source = sources.next().ok_or_else(|| io("no chunk to copy"))?;
            self.memory.fill(&[(offset, self.chunk_bytes)], |mut targets| {
                targets[0].copy_from_slice(source);
                std::hint::black_box(chunk_checksum(targets[0]));
            });
        }
        Ok(())
    }
}

/// Stores batches, two of them under way.
pub(super) fn put(
    engine: &mut Engine,
    first: u64,
    batches: u64,
    batch: u64,
    chunks: &[u8],
) -> std::io::Result<()> {
    let mut under_way = VecDeque::new();
    for index in 0..batches {
        let from = first + index * batch;
        if under_way.len() == 2
            && let Some(oldest) = under_way.pop_front()
        {
            engine.committed(oldest)?;
        }
        under_way.push_back(engine.commit(from..from + batch, index % 2 * batch, chunks)?);
    }
    under_way.into_iter().try_for_each(|id| engine.committed(id))
}

/// Loads batches; the next one is looked up while this one is copied.
fn get(engine: &mut Engine, first: u64, batches: u64, batch: u64, back: &mut [u8]) -> std::io::Result<()> {
    let numbers = |index: u64| first + index * batch..first + (index + 1) * batch;
    let none = || std::io::Error::other("nothing is on disk here");
    engine.ask_for(numbers(0), None)?;
    let mut leased = engine.leased()?.ok_or_else(none)?;
    for index in 0..batches {
        if leased.slots.len() as u64 != batch {
            return Err(std::io::Error::other("a lease shorter than what was stored"));
        }
        let more = index + 1 < batches;
        if more {
            engine.ask_for(numbers(index + 1), None)?;
        }
        engine.copy_out(&leased, back)?;
        if more {
            leased = engine.leased()?.ok_or_else(none)?;
        }
        engine.given_back()?;
    }
    Ok(())
}
