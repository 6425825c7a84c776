//! The newtypes that both sides pass around.

use std::fmt;
use std::sync::Arc;

/// The longest block key, in bytes. vLLM's are a 32-byte digest and a 4-byte group; 64 leaves room for a 512-bit one.
pub const KEY_BYTES_MAX: usize = 64;

macro_rules! id128 {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl $name {
            /// The id as it travels: 16 bytes, big-endian.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }

            /// The id of 16 bytes, big-endian.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(u128::from_be_bytes(bytes))
            }

            /// Reads 32 hex digits; `None` for anything else.
            pub fn from_hex(text: &str) -> Option<Self> {
                let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                digits.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

id128! {
    /// Names one lease. Drawn at random, so that no client can name another's.
    LeaseId
}
id128! {
    /// Names one pin: chunks that somebody asked to keep for a while.
    PinId
}
id128! {
    /// Names one request on its way through the proxy, the node and the engine's plugin.
    Tag
}
id128! {
    /// One run of a cache node; a new one is drawn at each start.
    NodeId
}
id128! {
    /// One session of an engine with a node. No two sessions share one, of the same node or of others; it is a name and
    /// no secret.
    WireSession
}
id128! {
    /// What keeps equal block keys of different models apart; see [`crate::namespace`].
    StoreNamespace
}

id128! {
    /// A GPU's identity, the same in every process: the 16 bytes of its UUID.
    DeviceId
}

/// The driver's name of device memory or of an event for another process: 64 bytes, opaque here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GpuHandle(pub [u8; 64]);

impl fmt::Debug for GpuHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpuHandle(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, ")")
    }
}

/// An engine's name for one chunk: its own block hash, 1..=64 bytes, opaque to the node. vLLM's is the digest of the
/// chunk's last block and the cache group as u32 big-endian. Means nothing without its [`StoreNamespace`].
#[derive(Clone)]
pub struct BlockKey(Bytes);

/// Keys up to so many bytes, vLLM's among them, lie in the value itself: a lookup names thousands, and an allocation for
/// each would cost more than finding it.
const INLINE_BYTES: usize = 38;

#[derive(Clone)]
enum Bytes {
    Inline { length: u8, bytes: [u8; INLINE_BYTES] },
    Shared(Arc<[u8]>),
}

impl BlockKey {
    /// The key of these bytes; `None` if there are none or more than [`KEY_BYTES_MAX`].
    pub fn new(bytes: &[u8]) -> Option<Self> {
        match bytes.len() {
            length @ 1..=INLINE_BYTES => {
                let mut inline = [0; INLINE_BYTES];
                inline[..length].copy_from_slice(bytes);
                Some(Self(Bytes::Inline { length: length as u8, bytes: inline }))
            }
            length if (1..=KEY_BYTES_MAX).contains(&length) => Some(Self(Bytes::Shared(bytes.into()))),
            _ => None,
        }
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Inline { length, bytes } => &bytes[..usize::from(*length)],
            Bytes::Shared(bytes) => bytes,
        }
    }
}

impl PartialEq for BlockKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for BlockKey {}

impl PartialOrd for BlockKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for BlockKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl std::hash::Hash for BlockKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockKey({self})")
    }
}
