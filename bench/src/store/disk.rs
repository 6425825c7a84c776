//! Through the disk tier: from a commit until it is on disk, and from a lookup after a restart until it is copied out.

use larder_cache_node::medium::disk::media::{Access, Files, Media, Read, Uring, Write};

use super::engine::Engine;
use super::{Bench, Pass, Row, host, io, noise, own_cpu, row};
use crate::error::Error;

/// Bytes of one prompt: what is looked up at once.
const PROMPT_BYTES: u64 = 8 << 20;

/// Prompts whose lookups are under way at one time: enough that the drive never waits.
const PROMPTS_AT_ONCE: u64 = 4;

/// Writes that the limit has under way at most.
const DEPTH: usize = 16;

/// Reads of the limit in one call, of which as many are under way as the medium likes.
const READS: usize = 32;

impl Bench<'_> {
    pub(super) fn disk(&self, chunk_bytes: u64) -> Result<Vec<Row>, Error> {
        let batch = (PROMPT_BYTES / chunk_bytes).max(1);
        let prompts = self.pass_bytes() / (batch * chunk_bytes);
        let bytes = prompts * batch * chunk_bytes;
        let chunks = noise((batch * chunk_bytes) as usize);
        let mut back = vec![0; chunks.len()];
        let (mut puts, mut gets) = (Vec::new(), Vec::new());
        let (mut put_limits, mut get_limits) = (Vec::new(), Vec::new());
        for _ in 0..self.args.passes {
            let folder = self.folder("disk")?;
            let (written, read) = raw(&folder.join("raw"), chunk_bytes, bytes)?;
            put_limits.push(written);
            get_limits.push(read);
            let lines = self.lines(&folder);
            let node = self.start(&folder, &lines)?;
            node.wait_for_pages(self.slab_bytes())?;
            let cpu = || own_cpu() + node.cpu();
            let mut engine = Engine::connect(&node.socket, chunk_bytes).map_err(io)?;
            let mut put = |first, written| {
                host::put(&mut engine, first, prompts, batch, &chunks).map_err(io)?;
                node.wait_for("disk_written_chunks_total", written)
            };
            // The first time is not counted: the engine takes the pages of its region.
            put(prompts * batch, prompts * batch)?;
            node.wait_for_none("disk_writes")?;
            node.clear()?;
            puts.push(Pass::of(bytes, cpu, || put(0, 2 * prompts * batch))?);
            drop((engine, node));
            let node = self.start(&folder, &lines)?;
            node.wait_for_none("disk_unread_segments")?;
            node.wait_for_pages(self.slab_bytes())?;
            let cpu = || own_cpu() + node.cpu();
            let mut engine = Engine::connect(&node.socket, chunk_bytes).map_err(io)?;
            gets.push(Pass::of(bytes, cpu, || get(&mut engine, prompts, batch, &mut back).map_err(io))?);
            if back != chunks {
                return Err(io("the disk tier gave other bytes back"));
            }
        }
        let put = row("disk", "put", chunk_bytes, &puts, &put_limits);
        Ok(vec![put, row("disk", "get", chunk_bytes, &gets, &get_limits)])
    }

    /// Writes to disk pin what they write, and may pin three quarters.
    fn slab_bytes(&self) -> u64 {
        2 * self.pass_bytes()
    }

    fn lines(&self, folder: &std::path::Path) -> String {
        let path = folder.join("kv");
        let size = self.slab_bytes() >> 20;
        let capacity = self.args.pass_mib * 4;
        format!(
            "host = {{ size = \"{size}MiB\" }}\nregion = {{ size = \"32MiB\" }}\n[disk]\npath = {path:?}\ncapacity = \
             \"{capacity}MiB\"\nsegment = \"64MiB\"\nwrite_rate = \"1TiB\"\nadmit_uses = 0\nwrites = 4096"
        )
    }
}

/// Loads prompts; the next few are coming up while one is copied.
fn get(engine: &mut Engine, prompts: u64, batch: u64, back: &mut [u8]) -> std::io::Result<()> {
    let numbers = |prompt: u64| prompt * batch..(prompt + 1) * batch;
    for prompt in 0..prompts {
        for ahead in prompt + 1..(prompt + PROMPTS_AT_ONCE).min(prompts) {
            engine.ask_for(numbers(ahead), None)?;
            if let Some(early) = engine.leased()? {
                engine.release(&early)?;
            }
        }
        let leased = loop {
            engine.ask_for(numbers(prompt), None)?;
            match engine.leased()? {
                Some(leased) => break leased,
                None => std::thread::sleep(std::time::Duration::from_micros(200)),
            }
        };
        if leased.slots.len() as u64 != batch {
            return Err(std::io::Error::other("a lease shorter than what was stored"));
        }
        engine.copy_out(&leased, back)?;
        engine.given_back()?;
    }
    Ok(())
}

/// The limit: chunks written one after the other and read in another order, past the page cache, many at a time;
/// through io_uring where the system allows it. Nothing is hashed.
fn raw(folder: &std::path::Path, chunk_bytes: u64, bytes: u64) -> Result<(Pass, Pass), Error> {
    const SEGMENT: u64 = 1;
    let access = Files::access_of(folder).map_err(io)?;
    let files = Files::open(folder.to_owned(), access).map_err(io)?;
    let media: Box<dyn Media> = match Uring::allowed() {
        Ok(()) if access == Access::Direct => Box::new(Uring::over(files).map_err(io)?),
        _ => Box::new(files),
    };
    media.create(SEGMENT).map_err(io)?;
    // As the node does: writes that make a file longer are carried out one by one.
    media.reserve(SEGMENT, bytes).map_err(io)?;
    let length = chunk_bytes as usize;
    // Begun at a whole block in memory.
    let mut buffer = noise(length * READS + 4096);
    let start = buffer.as_ptr().align_offset(4096);
    let offsets: Vec<u64> = (0..bytes / chunk_bytes).map(|index| index * chunk_bytes).collect();
    let put = Pass::of(bytes, own_cpu, || {
        // Each with bytes of another place in memory, as chunks of a slab are; they come round.
        let slices = buffer[start..].chunks_exact(length).cycle();
        let write = |(offset, bytes)| Write { segment: SEGMENT, offset, parts: [bytes, &[]] };
        let writes: Vec<Write<'_>> = offsets.iter().copied().zip(slices).map(write).collect();
        let mut all = Ok(());
        media.write_many(&writes, DEPTH, &mut |_| true, &mut |_, result| {
            if let Err(error) = result {
                all = Err(io(error));
            }
        });
        all.and_then(|()| media.sync(SEGMENT).map_err(io))
    })?;
    let mut shuffled = offsets;
    shuffled.sort_by_key(|offset| offset.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let get = Pass::of(bytes, own_cpu, || {
        for offsets in shuffled.chunks(READS) {
            let slices = buffer[start..].chunks_exact_mut(length);
            let read = |(offset, bytes)| Read { segment: SEGMENT, offset, bytes };
            let mut reads: Vec<Read<'_>> = offsets.iter().copied().zip(slices).map(read).collect();
            let mut all = Ok(());
            media.read_many(&mut reads, &mut |_, _, result| {
                if let Err(error) = result {
                    all = Err(io(error));
                }
            });
            all?;
        }
        Ok(())
    })?;
    media.remove(SEGMENT).map_err(io)?;
    Ok((put, get))
}
