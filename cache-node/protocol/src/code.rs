//! Words that travel as short strings. They may grow; an unknown one from a newer node is kept as `Unknown`.

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)*
            /// A word that this build does not know.
            Unknown,
        }

        impl $name {
            /// Every word this build knows.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The word as it travels.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)*
                    $name::Unknown => "unknown",
                }
            }

            /// The value of a word; [`Self::Unknown`] if this build has none.
            pub fn from_word(word: &str) -> Self {
                match word {
                    $($word => $name::$variant,)*
                    _ => $name::Unknown,
                }
            }
        }
    };
}

words! {
    /// Why a node turns a connection away.
    RejectCode {
        /// No version in common.
        Version = "version",
        /// A live session has this engine string and role (and rank) already.
        EngineInUse = "engine_in_use",
        /// The hello is wrong in itself.
        BadHello = "bad_hello",
        /// As many connections or sessions as the node's limits allow.
        Full = "full",
    }
}

words! {
    /// Why a node will not serve an engine. The engine runs as if alone.
    RefusedCode {
        /// A chunk does not fit into an extent.
        ChunkTooLarge = "chunk_too_large",
        /// The block hash algorithm is not collision-resistant and the node is not single-tenant.
        WeakHash = "weak_hash",
        /// A size that cannot be.
        BadLayout = "bad_layout",
        /// Another connection of this session registered otherwise.
        Mismatch = "mismatch",
        /// The writable region could not be made.
        Region = "region",
        /// `attach`: this node has no GPU to use, or not that one.
        NoGpu = "no_gpu",
        /// `attach`: the pages cannot be opened, or are not as described.
        BadPages = "bad_pages",
    }
}

words! {
    /// Why a lookup found nothing to lease.
    MissReason {
        /// The first chunk is not held.
        NotHeld = "not_held",
        /// Not all connections of the session have registered.
        NotReady = "not_ready",
        /// The first chunk failed its checksum and is quarantined.
        Corrupt = "corrupt",
        /// Leases, jobs or pinned bytes are at their limit.
        Busy = "busy",
        /// Nothing was verified within the lookup's deadline.
        Deadline = "deadline",
    }
}

words! {
    /// What was wrong with a message.
    ErrorCode {
        /// The stream is lost; closed.
        BadFrame = "bad_frame",
        /// A known kind with wrong fields.
        BadMessage = "bad_message",
        /// A kind that this version does not have.
        UnknownKind = "unknown_kind",
        /// Not in this state or role; closed.
        Unexpected = "unexpected",
        /// Needs a registered session.
        NotRegistered = "not_registered",
        /// The lease is unknown, ended, or another session's.
        NoLease = "no_lease",
        /// A region slot out of range, named twice, or under a running commit.
        BadRegionSlot = "bad_region_slot",
        /// Too many faults on this connection; closed.
        TooManyFaults = "too_many_faults",
    }
}

words! {
    /// How an engine's GPU memory orders the pages of its KV cache.
    PageOrder {
        /// Each layer is its own array of blocks; keys and values in two arrays are two layers.
        LayerFirst = "layer_first",
        /// A block holds all its layers: one layer, whose page is the whole block.
        BlockFirst = "block_first",
        /// Each layer is an array of blocks, whose pages are rows, one latent vector for each token.
        Latent = "latent",
    }
}
