//! Every metric of the node: name, kind, meaning, and where its value comes from. One table, so that nothing is
//! exported without a word about it.

use std::fmt::Write as _;

use crate::store::Stats;

/// Whether a value only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until the node restarts.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// What it says, and when to act on it.
    pub help: &'static str,
    value: fn(&Stats) -> u64,
}

macro_rules! metrics {
    ($($kind:ident $name:literal $help:literal $value:expr;)*) => {
        &[$(Metric { name: $name, kind: Kind::$kind, help: $help, value: $value },)*]
    };
}

/// Every metric.
pub const METRICS: &[Metric] = metrics! {
    Counter "larder_node_lookups_total" "Lookups of engines." |s| s.counts.lookups;
    Counter "larder_node_lookup_hits_total" "Lookups that were given a lease." |s| s.counts.lookup_hits;
    Counter "larder_node_lookup_misses_total" "Lookups that were given none." |s| s.counts.lookup_misses;
    Counter "larder_node_lookup_tokens_total" "Tokens of the chunks that lookups named." |s| s.counts.looked_up_tokens;
    Counter "larder_node_hit_tokens_total" "Tokens of the chunks that lookups were leased." |s| s.counts.hit_tokens;
    Counter "larder_node_stages_total" "Stage calls that gave a lease." |s| s.counts.staged;
    Counter "larder_node_stages_empty_total" "Stage calls that gave none." |s| s.counts.staged_nothing;
    Counter "larder_node_staged_tokens_total" "Tokens staged." |s| s.counts.staged_tokens;
    Counter "larder_node_staged_unused_tokens_total"
        "Tokens staged whose lease ended without a load; a large share means wrong recipes or routing."
        |s| s.counts.unused_staged_tokens;
    Counter "larder_node_loads_total" "Loads begun by engines." |s| s.counts.loads;
    Counter "larder_node_load_tokens_total" "Tokens of loads begun." |s| s.counts.loading_tokens;
    Counter "larder_node_loads_failed_total" "Loads that the engine called failed; each was recomputed."
        |s| s.counts.failed_loads;
    Counter "larder_node_leases_expired_total" "Leases whose time ran out." |s| s.counts.expired_leases;
    Counter "larder_node_stored_chunks_total" "Chunks copied in." |s| s.counts.stored_chunks;
    Counter "larder_node_stored_bytes_total" "Bytes copied in." |s| s.counts.stored_bytes;
    Counter "larder_node_held_already_chunks_total" "Chunks committed that were held already."
        |s| s.counts.held_already_chunks;
    Counter "larder_node_refused_chunks_total" "Chunks not stored for want of room or copying capacity."
        |s| s.counts.refused_chunks;
    Counter "larder_node_pinned_chunks_total" "Chunks that explicit pins took hold of." |s| s.counts.pinned_chunks;
    Counter "larder_node_pins_expired_total" "Pins whose time ran out." |s| s.counts.expired_pins;
    Counter "larder_node_quota_evicted_chunks_total" "Chunks evicted since their tenant was at its quota."
        |s| s.counts.quota_evicted_chunks;
    Counter "larder_node_quota_refused_chunks_total"
        "Chunks not stored since their tenant was at its quota and all of its chunks in use."
        |s| s.counts.quota_refused_chunks;
    Gauge "larder_node_pins" "Explicit pins." |s| s.pins;
    Gauge "larder_node_pin_bytes" "Bytes that explicit pins keep; a part of the pinned bytes." |s| s.pin_bytes;
    Gauge "larder_node_tenants" "Tenants known." |s| s.tenants;
    Counter "larder_node_evicted_chunks_total" "Chunks evicted." |s| s.counts.evicted_chunks;
    Counter "larder_node_corrupt_chunks_total"
        "Chunks whose checksum was wrong, quarantined and missed. Any at all: test this host's memory."
        |s| s.counts.corrupt_chunks;
    Counter "larder_node_faulty_messages_total" "Frames and messages of engines that could not be read."
        |s| s.counts.faults;
    Gauge "larder_node_slab_bytes" "Bytes of the host tier." |s| s.slab_bytes;
    Gauge "larder_node_free_extents" "Extents of 64 MiB that nothing uses." |s| s.free_extents;
    Gauge "larder_node_held_chunks" "Chunks held." |s| s.chunks;
    Gauge "larder_node_held_bytes" "Bytes of chunks held." |s| s.held_bytes;
    Gauge "larder_node_held_slot_bytes" "Bytes of the slots that chunks lie in." |s| s.held_slot_bytes;
    Gauge "larder_node_writing_slots" "Slots being written." |s| s.writing_slots;
    Gauge "larder_node_quarantined_slots" "Slots out of use until a restart, their bytes were found wrong."
        |s| s.quarantined_slots;
    Gauge "larder_node_pinned_bytes" "Bytes that leases hold." |s| s.pinned_bytes;
    Gauge "larder_node_leases" "Leases granted and not ended." |s| s.leases;
    Gauge "larder_node_orphaned_leases"
        "Leases kept because a process of a lost engine may still be copying. Growing: its processes cannot be watched."
        |s| s.orphaned_leases;
    Gauge "larder_node_open_loads" "Loads begun and not completed." |s| s.open_loads;
    Gauge "larder_node_verifications" "Verifications under way." |s| s.verifications;
    Gauge "larder_node_copies" "Copies under way." |s| s.copies;
    Gauge "larder_node_sessions" "Engines connected." |s| s.sessions;
    Gauge "larder_node_recipes" "Recipes held." |s| s.recipes;
    Gauge "larder_node_recipe_bytes" "Bytes of recipes, roughly." |s| s.recipe_bytes;
    Counter "larder_node_recovered_recipes_total" "Recipes of earlier runs read back from disk."
        |s| s.counts.recovered_recipes;
    Counter "larder_node_lookups_pending_total"
        "Lookups told to ask again, since chunks were coming up from disk." |s| s.counts.lookups_pending;
    Counter "larder_node_raised_chunks_total" "Chunks read from disk into host memory." |s| s.counts.raised_chunks;
    Counter "larder_node_raised_bytes_total" "Their bytes." |s| s.counts.raised_bytes;
    Counter "larder_node_disk_written_chunks_total" "Chunks written to disk." |s| s.disk.counts.written_chunks;
    Counter "larder_node_disk_written_bytes_total" "Bytes written to disk." |s| s.disk.counts.written_bytes;
    Counter "larder_node_disk_failed_writes_total"
        "Chunks, indexes and segments that could not be written. Any at all: look at the log and the drive."
        |s| s.disk.counts.failed_writes;
    Counter "larder_node_disk_full_total" "Times that the file system was full below the tier's capacity."
        |s| s.disk.counts.full_disks;
    Counter "larder_node_disk_failed_loads_total" "Chunks that the system could not read back; each was missed."
        |s| s.disk.counts.failed_loads;
    Counter "larder_node_disk_damaged_chunks_total"
        "Chunks whose bytes on disk were not what was written; each was dropped and missed."
        |s| s.disk.counts.damaged_chunks;
    Counter "larder_node_disk_refused_loads_total" "Chunks not loaded since as many loads as allowed were under way."
        |s| s.disk.counts.refused_loads;
    Counter "larder_node_disk_scrubbed_chunks_total" "Chunks read back to see whether they are still right."
        |s| s.disk.counts.scrubbed_chunks;
    Counter "larder_node_disk_recovered_chunks_total" "Chunks of earlier runs found on disk."
        |s| s.disk.counts.recovered_chunks;
    Counter "larder_node_disk_reclaimed_segments_total" "Segments given up for room." |s| s.disk.counts.reclaimed_segments;
    Counter "larder_node_disk_dropped_chunks_total" "Chunks gone from disk, for whatever reason."
        |s| s.disk.counts.dropped_chunks;
    Counter "larder_node_disk_unwritten_rate_total" "Chunks not written to disk: as much written as disk.write_rate allows."
        |s| s.disk.counts.dropped.rate;
    Counter "larder_node_disk_unwritten_queue_total" "Chunks not written to disk: as many writes under way as allowed."
        |s| s.disk.counts.dropped.queue;
    Counter "larder_node_disk_unwritten_paused_total" "Chunks not written to disk: a write had failed not long before."
        |s| s.disk.counts.dropped.paused;
    Counter "larder_node_disk_unwritten_orphans_total" "Chunks not written to disk: the one before is not there."
        |s| s.disk.counts.dropped.orphans;
    Counter "larder_node_disk_unwritten_recovering_total" "Chunks not written to disk: what is there is not known yet."
        |s| s.disk.counts.dropped.recovering;
    Counter "larder_node_disk_unwritten_large_total" "Chunks not written to disk: larger than a segment."
        |s| s.disk.counts.dropped.too_large;
    Counter "larder_node_disk_unwritten_no_room_total" "Chunks not written to disk: no segment could be given up."
        |s| s.disk.counts.dropped.no_room;
    Counter "larder_node_disk_unwritten_pinned_total" "Chunks not written to disk: leases pin as much as they may."
        |s| s.counts.unlent_chunks;
    Gauge "larder_node_disk_capacity_bytes" "Bytes that the disk tier may take; 0 without one." |s| s.disk.capacity_bytes;
    Gauge "larder_node_disk_used_bytes" "Bytes that its segments take." |s| s.disk.used_bytes;
    Gauge "larder_node_disk_segments" "Its segments." |s| s.disk.segments;
    Gauge "larder_node_disk_unread_segments" "Segments of earlier runs that have not been read yet."
        |s| s.disk.unread_segments;
    Gauge "larder_node_disk_chunks" "Chunks on disk or being written." |s| s.disk.chunks;
    Gauge "larder_node_disk_writes" "Writes under way." |s| s.disk.writes;
    Gauge "larder_node_disk_loads" "Loads under way." |s| s.disk.loads;
    Counter "larder_node_fetches_total"
        "Loads that the node itself made into pages of a GPU, one for each rank."
        |s| s.counts.fetches;
    Counter "larder_node_fetches_failed_total"
        "Of these, failed; the engine copied for itself or computed."
        |s| s.counts.failed_fetches;
    Counter "larder_node_saves_total"
        "Stores that the node itself made out of pages of a GPU, one for each rank."
        |s| s.counts.saves;
    Counter "larder_node_saves_failed_total"
        "Of these, failed; what was to be stored was not."
        |s| s.counts.failed_saves;
    Counter "larder_node_gpu_stuck_total"
        "Fetches and saves of which nobody can say that nothing of them moves any more; what they use stays in use."
        |s| s.counts.stuck_jobs;
    Gauge "larder_node_gpu_jobs"
        "Fetches and saves under way."
        |s| s.jobs;
    Gauge "larder_node_gpu_ranks"
        "Ranks of engines whose pages in a GPU are open."
        |s| s.device.ranks;
    Gauge "larder_node_gpu_unready_jobs"
        "Fetches and saves whose engine is not ready."
        |s| s.device.unready;
    Gauge "larder_node_gpu_pinned_bytes"
        "Bytes of host memory that are pinned for GPUs."
        |s| s.device.pinned_bytes;
    Gauge "larder_node_gpu_lost"
        "GPUs that answer nothing but errors."
        |s| s.device.lost;
    Gauge "larder_node_gpu_waiting_load_bytes"
        "Bytes of loads that wait for a link to a GPU; /v1/stats has each link."
        |s| s.device.links.iter().map(|link| link.waiting_load_bytes).sum();
    Gauge "larder_node_gpu_waiting_store_bytes"
        "Bytes of stores that wait for a link to a GPU."
        |s| s.device.links.iter().map(|link| link.waiting_store_bytes).sum();
    Gauge "larder_node_gpu_moving_bytes"
        "Bytes on their way to or from GPUs."
        |s| s.device.links.iter().map(|link| link.loading_bytes + link.storing_bytes).sum();
    Counter "larder_node_gpu_landed_chunks_total"
        "Parts of chunks brought into the landing slabs of GPUs."
        |s| s.device.landed;
    Counter "larder_node_gpu_landings_failed_total"
        "Parts that could not be brought there; they were loaded from host memory."
        |s| s.device.failed_landings;
    Counter "larder_node_gpu_landings_wrong_total"
        "Parts that came there with wrong bytes, which device.verify has seen; they were loaded from host memory."
        |s| s.device.wrong_landings;
    Counter "larder_node_gpu_scattered_chunks_total"
        "Parts that were loaded from there."
        |s| s.device.scattered;
    Counter "larder_node_gpu_displaced_chunks_total"
        "Parts there that made room for others that were needed sooner."
        |s| s.device.displaced;
    Gauge "larder_node_gpu_landing_bytes"
        "Bytes of the landing slabs that are taken."
        |s| s.device.landing_bytes;
    Gauge "larder_node_gpu_landing_chunks"
        "Parts there."
        |s| s.device.landing_chunks;
};

/// The Prometheus text of all metrics
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).
pub fn render(stats: &Stats) -> String {
    let mut text = String::new();
    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let (name, help, value) = (metric.name, metric.help, (metric.value)(stats));
        // Writing to a string cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    }
    text
}

/// The same as a JSON object, with each engine and each link to a GPU.
pub fn json(stats: &Stats) -> serde_json::Value {
    let name = |metric: &Metric| metric.name.trim_start_matches("larder_node_").to_owned();
    let mut object: serde_json::Map<String, serde_json::Value> =
        METRICS.iter().map(|metric| (name(metric), (metric.value)(stats).into())).collect();
    let engines = stats.engines.iter().map(|engine| {
        serde_json::json!({
            "engine": engine.engine,
            "endpoint": engine.endpoint,
            "model": engine.model,
            "namespace": engine.namespace.map(|namespace| namespace.to_string()),
            "ready": engine.ready,
            "leases": engine.leases,
        })
    });
    let links = stats.device.links.iter().map(|link| {
        serde_json::json!({
            "gpu": link.gpu,
            "chunk_bytes": link.chunk_bytes,
            "waiting_loads": link.waiting_loads,
            "waiting_load_bytes": link.waiting_load_bytes,
            "waiting_stores": link.waiting_stores,
            "waiting_store_bytes": link.waiting_store_bytes,
            "loading_bytes": link.loading_bytes,
            "storing_bytes": link.storing_bytes,
        })
    });
    object.insert("links".to_owned(), links.collect());
    object.insert("engines".to_owned(), engines.collect());
    object.into()
}

#[cfg(test)]
mod tests;
