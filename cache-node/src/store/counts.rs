//! What the store counts, and what it tells about itself.

use super::sessions::EngineStats;

/// Counts since the node started; they only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lookups of serving engines.
    pub lookups: u64,
    /// Lookups that got a lease.
    pub lookup_hits: u64,
    /// Lookups that got none.
    pub lookup_misses: u64,
    /// Lookups that were told to ask again, since chunks were coming up from disk.
    pub lookups_pending: u64,
    /// Tokens of the chunks that lookups named.
    pub looked_up_tokens: u64,
    /// Tokens of the chunks that lookups were leased.
    pub hit_tokens: u64,
    /// Stage calls that got a lease.
    pub staged: u64,
    /// Stage calls that got none.
    pub staged_nothing: u64,
    /// Tokens staged.
    pub staged_tokens: u64,
    /// Tokens of staged leases that ended without a load.
    pub unused_staged_tokens: u64,
    /// Loads begun.
    pub loads: u64,
    /// Tokens of loads begun.
    pub loading_tokens: u64,
    /// Loads that the engine called failed.
    pub failed_loads: u64,
    /// Fetches begun: loads that the node itself makes, one for each rank.
    pub fetches: u64,
    /// Fetches that failed; each was recomputed, or copied by the engine.
    pub failed_fetches: u64,
    /// Saves begun: what the node itself copies out of an engine's pages.
    pub saves: u64,
    /// Saves that failed.
    pub failed_saves: u64,
    /// Fetches and saves of which nobody can say that nothing of them moves any more.
    pub stuck_jobs: u64,
    /// Leases whose time ran out, an open load or not.
    pub expired_leases: u64,
    /// Chunks copied in.
    pub stored_chunks: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Chunks committed that were held already.
    pub held_already_chunks: u64,
    /// Chunks refused for want of room or copying capacity.
    pub refused_chunks: u64,
    /// Chunks read from disk into the host tier.
    pub raised_chunks: u64,
    /// Their bytes.
    pub raised_bytes: u64,
    /// Uses not told to the disk tier, since leases pin as much as they may.
    pub unlent_chunks: u64,
    /// Recipes of earlier runs read back.
    pub recovered_recipes: u64,
    /// Chunks that explicit pins took hold of.
    pub pinned_chunks: u64,
    /// Pins whose time ran out.
    pub expired_pins: u64,
    /// Chunks evicted since their tenant was at its quota.
    pub quota_evicted_chunks: u64,
    /// Chunks refused since their tenant was at its quota and all of its chunks in use.
    pub quota_refused_chunks: u64,
    /// Chunks evicted.
    pub evicted_chunks: u64,
    /// Chunks whose checksum was wrong; each is quarantined.
    pub corrupt_chunks: u64,
    /// Frames and messages that could not be read.
    pub faults: u64,
}

/// A GPU's link at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// The GPU.
    pub gpu: String,
    /// Bytes of the chunks' parts that it moves.
    pub chunk_bytes: u64,
    /// Loads that wait, a chunk's part each.
    pub waiting_loads: u64,
    /// Their bytes.
    pub waiting_load_bytes: u64,
    /// Stores that wait.
    pub waiting_stores: u64,
    /// Their bytes.
    pub waiting_store_bytes: u64,
    /// Bytes of loads on their way.
    pub loading_bytes: u64,
    /// Bytes of stores on their way.
    pub storing_bytes: u64,
}

/// The GPUs at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Ranks whose pages are open.
    pub ranks: u64,
    /// Fetches and saves whose engine is not ready.
    pub unready: u64,
    /// Bytes of host memory that are pinned.
    pub pinned_bytes: u64,
    /// GPUs that answer nothing but errors.
    pub lost: u64,
    /// Parts of chunks brought into landing slabs since the start.
    pub landed: u64,
    /// Parts that could not be brought.
    pub failed_landings: u64,
    /// Parts that came with wrong bytes.
    pub wrong_landings: u64,
    /// Parts that were loaded from there.
    pub scattered: u64,
    /// Parts that made room for others that were needed sooner.
    pub displaced: u64,
    /// Bytes of landing slabs that are taken.
    pub landing_bytes: u64,
    /// Parts there.
    pub landing_chunks: u64,
    /// Each link.
    pub links: Vec<LinkStats>,
}

/// The store at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Counts since the start.
    pub counts: Counts,
    /// Bytes of the slab.
    pub slab_bytes: u64,
    /// Extents that no class uses.
    pub free_extents: u64,
    /// Chunks held.
    pub chunks: u64,
    /// Bytes of chunks held.
    pub held_bytes: u64,
    /// Bytes of the slots they lie in.
    pub held_slot_bytes: u64,
    /// Slots being written.
    pub writing_slots: u64,
    /// Slots out of use because their bytes were found wrong.
    pub quarantined_slots: u64,
    /// Bytes of slots that leases and verifications pin.
    pub pinned_bytes: u64,
    /// Leases granted and not ended.
    pub leases: u64,
    /// Leases of ended sessions that are kept because a load may still be copying.
    pub orphaned_leases: u64,
    /// Loads begun and not completed.
    pub open_loads: u64,
    /// Verifications given out.
    pub verifications: u64,
    /// Copies given out.
    pub copies: u64,
    /// Fetches and saves under way.
    pub jobs: u64,
    /// Sessions that live.
    pub sessions: u64,
    /// Recipes held.
    pub recipes: u64,
    /// Their bytes, roughly.
    pub recipe_bytes: u64,
    /// Explicit pins.
    pub pins: u64,
    /// Bytes of slots that they keep; a part of `pinned_bytes`.
    pub pin_bytes: u64,
    /// Tenants known.
    pub tenants: u64,
    /// The disk tier; all zero where there is none.
    pub disk: larder_tiering::disk::Stats,
    /// GPUs; put in by whoever has them.
    pub device: DeviceStats,
    /// Each engine.
    pub engines: Vec<EngineStats>,
}
