//! What routing needs besides the prompt.

use std::borrow::Cow;
use std::ops::Range;

/// The top-level members that a proxy acts on, borrowed from the body.
///
/// A member that is absent, null, of another type than named here, or behind the point where the body stops being
/// JSON keeps its default. Of members that are given twice the last one counts, as in the engines' own parsers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Envelope<'a> {
    /// `model`; names a LoRA adapter too.
    pub model: Option<Cow<'a, str>>,
    /// `stream` is true.
    pub stream: bool,
    /// `stream_options.include_usage` is true.
    pub include_usage: bool,
    /// `max_completion_tokens`, else `max_tokens`, in tokens.
    pub max_tokens: Option<u64>,
    /// `prompt_cache_key`, else `user`; an empty string counts as absent.
    pub session: Option<Cow<'a, str>>,
    /// Byte span in the body of the raw value of `kv_transfer_params` (also if it is null).
    pub kv_transfer_params: Option<Range<usize>>,
    /// Offset just behind the `{` of the top-level object: a member can be spliced in there.
    pub body_object: Option<usize>,
    /// Whether the top-level object has a member, so that one spliced in at
    /// [`body_object`](Self::body_object) needs a comma behind it.
    pub has_members: bool,
    /// Whether the walk reached the end of the body: if not, members may be missing above.
    pub complete: bool,
}
