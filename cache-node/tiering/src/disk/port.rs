//! What goes into the disk tier's decisions and what comes out: all of it values.

/// Records begin and end at multiples of this: what drives take whole, and O_DIRECT asks for.
pub const BLOCK_BYTES: u64 = 4096;

/// What one chunk takes in the index of a sealed segment.
pub const INDEX_ENTRY_BYTES: u64 = 192;

/// What a chunk is, wherever it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Its length.
    pub bytes: u64,
    /// Its checksum.
    pub sum: u128,
    /// Tokens that one use of it saves.
    pub tokens: u32,
    /// Tokens of its prompt that end with it.
    pub end: u32,
}

impl Chunk {
    /// Bytes of its record: one block of header and the chunk in whole blocks.
    pub fn record_bytes(&self) -> u64 {
        BLOCK_BYTES.saturating_add(self.bytes.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(u64::MAX))
    }
}

/// Bytes that the index of a sealed segment takes for so many chunks: whole blocks of entries, and one that says where
/// they are.
pub fn index_bytes(chunks: u64) -> u64 {
    (chunks * INDEX_ENTRY_BYTES).next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES
}

/// Where a record begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The segment.
    pub segment: u64,
    /// Bytes from its beginning.
    pub offset: u64,
}

/// A write given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

/// A load given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadId(pub u64);

/// Why a chunk, an index or a segment was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteFault {
    /// The file system is full.
    Full,
    /// The system refused otherwise.
    Io,
    /// The chunk in the host tier no longer has its checksum: nothing was written.
    Damaged,
}

/// Why a chunk did not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadFault {
    /// The system refused.
    Io,
    /// There are other bytes than were written.
    Damaged,
}

/// A chunk found in a segment at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<K> {
    /// Where in the segment its record begins.
    pub offset: u64,
    /// Its name.
    pub name: K,
    /// The chunk it continues, if that was known.
    pub parent: Option<K>,
    /// What it is.
    pub chunk: Chunk,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input<K> {
    /// A chunk that the host tier holds was used.
    Used {
        /// Its name.
        name: K,
        /// The chunk before it in the prompt that used it; none for the first.
        parent: Option<K>,
        /// What it is.
        chunk: Chunk,
        /// Its uses so far, this one included.
        uses: u32,
    },
    /// The host tier lets a chunk go.
    Evicted {
        /// Its name.
        name: K,
        /// Its uses.
        uses: u32,
    },
    /// A chunk is wanted in the host tier, where there is room for it.
    Wanted {
        /// Its name; nothing happens if it is not on disk.
        name: K,
    },
    /// A write ended.
    Written {
        /// Which.
        write: WriteId,
        /// How.
        outcome: Result<(), WriteFault>,
    },
    /// A load ended.
    Loaded {
        /// Which.
        load: LoadId,
        /// How.
        outcome: Result<(), LoadFault>,
    },
    /// A scrub read a chunk back.
    Scrubbed {
        /// Its name.
        name: K,
        /// Where it was read.
        at: Location,
        /// How.
        outcome: Result<(), LoadFault>,
    },
    /// A segment's index was written, or could not be.
    Sealed {
        /// Which.
        segment: u64,
        /// How.
        outcome: Result<(), WriteFault>,
    },
    /// Some of what a segment of an earlier run holds.
    Found {
        /// Which.
        segment: u64,
        /// Chunks in it.
        chunks: Vec<Found<K>>,
        /// The segment's length if these are the last of it.
        last: Option<u64>,
    },
    /// Everything is to be forgotten.
    Clear,
}

/// What has to be done outside. All but loads in this order; loads at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op<K> {
    /// Make an empty segment.
    Create {
        /// Its number.
        segment: u64,
    },
    /// Write a chunk from the host tier; it must stay there until [`Input::Written`].
    Write {
        /// Answered by [`Input::Written`].
        write: WriteId,
        /// Where its record begins.
        at: Location,
        /// Its name.
        name: K,
        /// The chunk it continues.
        parent: Option<K>,
        /// What it is.
        chunk: Chunk,
    },
    /// Write a segment's index behind what was written of it, and let nothing be appended any more.
    Seal {
        /// Answered by [`Input::Sealed`].
        segment: u64,
        /// Where its records end.
        end: u64,
    },
    /// Forget a segment.
    Remove {
        /// Its number.
        segment: u64,
    },
    /// Read a chunk into the host tier.
    Load {
        /// Answered by [`Input::Loaded`].
        load: LoadId,
        /// Where its record begins.
        at: Location,
        /// Its name.
        name: K,
        /// What it must be.
        chunk: Chunk,
    },
}
