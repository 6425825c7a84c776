//! What the disk tier counts, and what it tells about itself.

/// Chunks used often enough that were not written, by the reason. Each may be written at a later use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Larger than a segment.
    pub too_large: u64,
    /// The chunk it continues is not on disk.
    pub orphans: u64,
    /// What is on disk is not known yet.
    pub recovering: u64,
    /// A write had failed not long before.
    pub paused: u64,
    /// As many writes under way as are allowed.
    pub queue: u64,
    /// As much written lately as is allowed.
    pub rate: u64,
    /// No segment could be given up for it.
    pub no_room: u64,
}

/// Counts since the node started; they only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Chunks written.
    pub written_chunks: u64,
    /// Bytes of their records.
    pub written_bytes: u64,
    /// Chunks, indexes and segments that could not be written.
    pub failed_writes: u64,
    /// Times that the file system was found full.
    pub full_disks: u64,
    /// Chunks not written.
    pub dropped: Dropped,
    /// Chunks read into the host tier.
    pub loaded_chunks: u64,
    /// Chunks not read since as many loads as are allowed were under way.
    pub refused_loads: u64,
    /// Chunks that the system could not read.
    pub failed_loads: u64,
    /// Chunks whose bytes were not what was written.
    pub damaged_chunks: u64,
    /// Chunks read back to see whether they are still right.
    pub scrubbed_chunks: u64,
    /// Chunks of earlier runs found.
    pub recovered_chunks: u64,
    /// Segments given up for room.
    pub reclaimed_segments: u64,
    /// Chunks gone from the tier, for whatever reason.
    pub dropped_chunks: u64,
}

/// The disk tier at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Counts since the start.
    pub counts: Counts,
    /// Bytes it may take.
    pub capacity_bytes: u64,
    /// Bytes that its segments take, the open one as if full.
    pub used_bytes: u64,
    /// Segments.
    pub segments: u64,
    /// Segments of earlier runs that have not been read.
    pub unread_segments: u64,
    /// Chunks held or being written.
    pub chunks: u64,
    /// Writes under way.
    pub writes: u64,
    /// Loads under way.
    pub loads: u64,
}
