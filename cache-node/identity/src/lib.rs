//! Pure prefix identity: what a proxy needs to know of a request body, and the prompt chain in it, from one walk.
//!
//! ```
//! use larder_identity::{Api, ChainHasher, HasherSettings, Secret};
//!
//! let hasher = ChainHasher::new(HasherSettings::new(Secret::derive(b"32 random bytes of the operator")));
//! let body = br#"{"model": "llama", "messages": [{"role": "user", "content": "hello"}]}"#;
//! let walk = hasher.walk(Api::Chat, b"tenant", body);
//! assert_eq!(walk.envelope.model.as_deref(), Some("llama"));
//! assert_eq!(walk.prompt?.bytes(), 11); // shorter than a run, so the chain has no element yet
//! # Ok::<(), larder_identity::NoChain>(())
//! ```
//!
//! A **prompt chain** names every prefix of a prompt without a tokenizer. Two requests whose rendered prompts begin
//! alike should have chains that begin alike, however their JSON is spelled. A chain is a hint for routing and
//! staging: nothing may be loaded, shared or billed on the strength of it.
//!
//! # Definition
//!
//! Everything below is frozen by `tests/golden.rs` and written a second time, to be read, in `tests/oracle`.
//!
//! **Hash.** `H(x)` is XXH3-64 with the deployment's 192-byte [`Secret`]; `link(a, b)` is `H` of the two words `a` and
//! `b`, little-endian, one behind the other.
//!
//! **Text** is written in one spelling, which is how most clients send it, so that it is hashed where it lies: UTF-8
//! with `\"`, `\\`, `\b`, `\f`, `\n`, `\r`, `\t`, other characters under U+0020 as `\u00xx` in lower case, and no
//! other escape. A lone surrogate is written as WTF-8. **JSON** is written without white space, its strings in that
//! spelling between quotes; members keep their order (also when one is given twice) and numbers their spelling.
//!
//! **Markers** are bytes that UTF-8 never uses, so text cannot forge them: `FF` message, `FE` content, `FD` name,
//! `FC` call id, `FB` next part, `FA` JSON, `F9` tool call, `F8` binary, `F7` reasoning, `F6` arguments, `F5` padding.
//! **A value** is nothing if it is null or absent, bare text if it is a string, `FA` and JSON else.
//! **A member** is left out if it is null or absent, and its marker and value else.
//!
//! **Chat.** Each message is
//! `FF` role, `[FD name]`, `[FC tool_call_id]`, `[F7 reasoning_content, else reasoning]`, `FE` content, calls.
//! - Content that is no array is a value. An array is its parts, with `FB` between them. A part is
//!   - text, if it is a string, or an object whose `type` is `text`, `input_text`, `output_text`, null or absent and
//!     whose `text` is a string;
//!   - `F8`, a letter, and 8 bytes (little-endian) of `H` of the payload's text, if `type` names a medium:
//!     `image_url` or `input_image` (`I`, member `image_url`), `input_audio` (`A`), `audio_url` (`U`), `video_url`
//!     (`V`), `file` or `input_file` (`F`, member `file`), the member being named as the type where not said. The
//!     payload is that member if it is a string, else the first string among its `url`, `data`, `file_data`,
//!     `file_id`, else the part's `uuid`;
//!   - `FA` and the part as JSON in all other cases.
//! - `tool_calls` that is no array is a member with `F9`. Of an array each call is `F9`, the value `function.name`,
//!   `F6`, the value `function.arguments`, `[FC id]` if `function` is an object, else `F9 FA` and the call as JSON.
//!
//! Other members of messages, parts and calls do not count. Where a member is given twice the last one counts.
//!
//! **Tools**, unless null, absent or an empty array, are `FA` and JSON, then padded with `F5` to a whole number of
//! runs. [`ToolsOrder::BeforeSystem`] puts them in front of the first message. [`ToolsOrder::FirstUserTurn`] pads
//! what comes before the first message whose role is `user` (with and without tools), and puts the tools there;
//! without such a message they do not count.
//!
//! **Messages** (Anthropic) are as chat, and so are **responses**, whose `input` holds messages and other items: an
//! item whose `type` is neither `message` nor null or absent is `FF`, `FA` and the item as JSON, and an `input` that is
//! text is one message with the role `user`. The *front* (`system`, `instructions`), unless null or absent, is
//! `FF`, `system`, `FE` and content, then padded with `F5` to a whole number of runs. It comes before all messages;
//! with [`ToolsOrder::BeforeSystem`] the tools come before it.
//!
//! **Completions.** A text prompt is `FE` and text; a batch is its prompts in order, and a batch of one is that
//! prompt. **Embeddings** likewise, from `input`. Token ids are `F8 54` and four bytes each (little-endian); in a batch four bytes `FF` stand between prompts.
//!
//! **Chain.** The canonical bytes are cut into runs of [`RunBytes`]; what is left at the end is counted and not hashed.
//! `c[-1] = 0`, `c[i] = link(c[i-1], H(run i))`, and element `i` is `c[i] ^ namespace`.
//!
//! **Namespace.** Starts as `H(scope)`. Then for each of `model` (1), `cache_salt` (2), `chat_template` (3),
//! `chat_template_kwargs` (4), `reasoning_effort` (5), `documents` (6) that is not null or absent:
//! `n = link(n, number)`, `n = link(n, H(value))`. It is joined at the end, and the tools start and end on a run, so
//! that one pass hashes a body whatever the order of its keys.
//!
//! # Promises
//!
//! - [`ChainHasher::walk`] does not fail, panic or recurse, and takes time linear in the body ([`limits`]).
//! - It reads each byte once to find its way and once to hash it, and copies only runs that cross a border in the
//!   JSON and text with `\u` or `\/`. It allocates the elements, one run, and lists of parts and calls if there are
//!   any; nothing per message.
//! - A body that engines would refuse gets [`NoChain`] or some chain, and its envelope as far as it can be read. The
//!   walk is no validator: brackets of values that it skips are counted only, escapes such as `\x` are not refused,
//!   and UTF-8 is checked no further than that it holds no marker.
//!
//! # Non-goals
//!
//! No I/O, no async, no clock, no metrics, no configuration files, no tokenizer, no chat templates, and no names for
//! KV blocks: those come from the engine.
//!
//! # Pitfalls
//!
//! - Inside tool schemas, arguments objects and template arguments the order of keys is part of the prompt, as
//!   templates print them in order. A client that shuffles them there loses its affinity, and its engine's cache too.
//! - `100` and `1e2` are different spellings, hence different prompts here.
//! - An arguments string and an arguments object with the same content differ.
//! - Elements of one prompt under two namespaces differ by one constant: an element is meaningless without its scope.
//! - XXH3 is not cryptographic: whoever learns the secret can craft collisions. They cost speed, never an answer.
#![deny(unsafe_code)]

mod chain;
mod cpu;
mod envelope;
mod hasher;
mod json;
pub mod limits;
mod memo;
mod scan;
mod secret;
mod settings;
mod sink;
mod walk;
mod xxh3;

pub use chain::{NoChain, PromptChain};
pub use cpu::Simd;
pub use envelope::Envelope;
pub use hasher::{Api, ChainHasher, Walk};
pub use secret::{SECRET_BYTES, Secret};
pub use settings::{HasherSettings, InvalidRunBytes, RunBytes, ToolsOrder};

use cpu::Cpu;
use sink::Out;
