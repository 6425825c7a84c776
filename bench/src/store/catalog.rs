//! What a million chunks on disk take of a node: its memory, and the time to open them. The segments have their indexes and
//! are otherwise empty, since opening reads nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_cache_node::medium::disk::log::{self, Record};
use larder_cache_node::medium::disk::media::{Access, Files, Media};
use larder_cache_node::store::{ChunkName, HALF_LIFE, Input, Settings, Store, Verify};
use larder_cache_node::transfer::disk::tellings;
use larder_protocol::{NodeId, StoreNamespace};
use larder_tiering::disk::{Chunk, Limits};

use super::engine::{TOKENS, keys};
use super::{Bench, io};
use crate::error::Error;

const CHUNKS: u64 = 1_000_000;

/// Segments of 256 MiB have so many chunks of 1 MiB.
const CHUNKS_PER_SEGMENT: u64 = 254;

const CHUNK_BYTES: u64 = 1 << 20;

/// Chunks of one prompt: each names the one before it.
const PROMPT: u64 = 64;

impl Bench<'_> {
    /// Bytes a chunk and seconds for all.
    pub(super) fn catalog(&self) -> Result<(f64, f64), Error> {
        let folder = self.folder("catalog")?.join("kv");
        let open = || Files::open(folder.clone(), Access::Cached).map_err(io);
        write_indexes(&open()?)?;
        let media: Arc<dyn Media> = Arc::new(open()?);
        let (start, before) = (Instant::now(), resident()?);
        let length = |segment| Ok((segment, media.length(segment).map_err(io)?));
        let earlier: Vec<(u64, u64)> =
            media.segments().map_err(io)?.into_iter().map(length).collect::<Result<_, Error>>()?;
        let mut store = Store::new(settings()).with_disk(limits(), &earlier);
        for (segment, _) in &earlier {
            let contents = log::recover(&*media, *segment).map_err(io)?;
            for input in tellings(*segment, contents.records, contents.length) {
                store.step(Input::Disk(input), Duration::ZERO);
            }
        }
        let (seconds, after) = (start.elapsed().as_secs_f64(), resident()?);
        let found = store.stats().disk.chunks;
        if found != CHUNKS {
            return Err(io(format!("{found} chunks were found of {CHUNKS}")));
        }
        Ok((after.saturating_sub(before) as f64 / CHUNKS as f64, seconds))
    }
}

fn write_indexes(media: &dyn Media) -> Result<(), Error> {
    for (segment, first) in (1..).zip((0..CHUNKS).step_by(CHUNKS_PER_SEGMENT as usize)) {
        let last = (first + CHUNKS_PER_SEGMENT).min(CHUNKS);
        let mut offset = 0;
        let mut records = Vec::new();
        for (number, key) in (first..last).zip(keys(first..last)) {
            let parent = number.checked_sub(1).filter(|_| !number.is_multiple_of(PROMPT));
            let end = (number % PROMPT + 1) as u32 * TOKENS;
            let chunk = Chunk { bytes: CHUNK_BYTES, sum: u128::from(number), tokens: TOKENS, end };
            let name = ChunkName { namespace: StoreNamespace(7), key };
            let parent = parent.and_then(|parent| keys(parent..parent + 1).pop());
            records.push((offset, Record { name, parent, chunk }));
            offset += chunk.record_bytes();
        }
        media.create(segment).map_err(io)?;
        media.write(segment, offset, &[&log::index(segment, offset, &records)]).map_err(io)?;
    }
    Ok(())
}

/// Bytes of memory this process has: the second field of `/proc/self/statm` (proc_pid_statm(5)), in pages.
fn resident() -> Result<u64, Error> {
    const PAGE_BYTES: u64 = 4096;
    let text = std::fs::read_to_string("/proc/self/statm").map_err(io)?;
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.map(|pages| pages * PAGE_BYTES).ok_or_else(|| io("/proc/self/statm cannot be read"))
}

fn limits() -> Limits {
    Limits {
        capacity_bytes: 2 * CHUNKS * CHUNK_BYTES,
        segment_bytes: 256 << 20,
        write_bytes_per_s: None,
        admit_uses: 2,
        writes_max: 256,
        loads_max: 256,
        half_life: HALF_LIFE,
    }
}

/// Nothing of the host tier is used here.
fn settings() -> Settings {
    Settings {
        node: NodeId(1),
        extent_bytes: 64 << 20,
        extents: 1,
        region_bytes: 1 << 20,
        lease_ttl: Duration::from_secs(30),
        lookup_deadline: Duration::from_millis(40),
        stage_deadline: Duration::from_secs(2),
        verify: Verify::Lease,
        verify_fresh: Duration::ZERO,
        single_tenant: false,
        sessions_max: 1,
        leases_max: 1,
        verifications_max: 1,
        copies_max: 1,
        pinned_bytes_max: 1,
        pins: larder_tiering::pins::Budgets { space_bytes_max: 0, bytes_max: 0, pins_max: 0 },
        pin_ttl_max: Duration::ZERO,
        tenant_bytes_max: None,
        tenant_quotas: Vec::new(),
        recipe_bytes_max: 1,
        hello_timeout: Duration::from_secs(5),
        scrub_bytes_per_s: 0,
    }
}
