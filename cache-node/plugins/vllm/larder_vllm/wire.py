"""The engine port's messages: msgpack maps behind a length (the node's protocol README is the contract).

Sans-IO: bytes in, messages out. Unknown fields are ignored and unknown kinds skipped, so that a newer node may say more.
"""

import struct
from typing import Any, ClassVar, Final, TypeVar

import msgspec

VERSIONS: Final = [1, 2, 3]
"""Wire versions this plugin speaks. A node of version 1 never says ``pending``, one of version 2 copies nothing."""

GPU_VERSION: Final = 3
"""Since this version a node moves KV itself into and out of an engine's pages in a GPU."""

FRAME_BYTES_MAX: Final = 8_388_608
"""The longest body either side may send; the node closes the connection above it."""

LIST_LEN_MAX: Final = 65_536
"""The most items of one list; longer prompts ask for their first chunks only."""

_LENGTH: Final = struct.Struct("<I")


class WireFault(Exception):
    """Bytes that are no frame of this protocol: the connection cannot go on."""


class Message(msgspec.Struct, tag_field="kind", omit_defaults=True):
    """One message; its tag is the wire's ``kind``."""

    kind: ClassVar[str] = ""


# === engine -> node


class Hello(Message, tag="hello"):
    versions: list[int]
    role: str
    rank: int
    engine: str
    endpoint: str | None = None
    software: str | None = None


class Register(Message, tag="register"):
    id: int
    model: str
    hash: str
    weights: bytes
    epoch: int
    layout: bytes
    dtype: str
    tokens_per_block: int
    blocks_per_chunk: int
    part_bytes: int
    world: int


class Lookup(Message, tag="lookup"):
    id: int
    keys: list[bytes]
    end_tokens: list[int]
    request: str | None = None
    tag: bytes | None = None
    prompt_tokens: int | None = None


class Load(Message, tag="load"):
    id: int
    lease: bytes
    first: int
    count: int


class Complete(Message, tag="complete"):
    id: int
    lease: bytes
    ok: bool
    failed: list[int] | None = None


class Release(Message, tag="release"):
    id: int
    lease: bytes


class Offload(Message, tag="offload"):
    id: int
    keys: list[bytes]


class Commit(Message, tag="commit"):
    id: int
    keys: list[bytes]
    end_tokens: list[int]
    region_slots: list[int]
    request: str | None = None
    tag: bytes | None = None
    prompt_tokens: int | None = None
    parent: bytes | None = None


class Epoch(Message, tag="epoch"):
    id: int
    epoch: int


class Attach(Message, tag="attach"):
    """Since version 3, a worker's: where its pages lie in a GPU. Descriptors of pieces travel beside it."""

    id: int
    device: bytes
    order: str
    blocks: int
    layers: list[int]
    part_bytes: list[int]
    part_offsets: list[int]
    part_pieces: list[int]
    handles: list[bytes]
    piece_bytes: list[int]
    events: list[bytes]


class Fetch(Message, tag="fetch"):
    """Since version 3, a worker's."""

    id: int
    lease: bytes
    first: int
    skip: int
    blocks: list[int]
    after: int | None = None


class Save(Message, tag="save"):
    """Since version 3, a worker's."""

    id: int
    region_slots: list[int]
    blocks: list[int]
    after: int | None = None


class Goodbye(Message, tag="goodbye"):
    """Either side's farewell."""

    reason: str


# === node -> engine


class Welcome(Message, tag="welcome"):
    version: int
    node: bytes
    frame_bytes_max: int
    list_len_max: int


class Reject(Message, tag="reject"):
    code: str
    message: str


class Registered(Message, tag="registered"):
    id: int
    namespace: bytes
    slab_bytes: int
    extent_bytes: int
    slots_per_extent: int
    slot_stride: int
    region_bytes: int
    region_stride: int
    region_slots: int
    lease_ttl_ms: int
    fds: int
    session: bytes | None = None


class Refused(Message, tag="refused"):
    id: int
    code: str
    message: str


class Lease(Message, tag="lease"):
    id: int
    lease: bytes
    slots: list[int]
    generations: list[int]
    expires_ms: int


class Pending(Message, tag="pending"):
    """Since version 2."""

    id: int
    chunks: int
    bytes: int


class Miss(Message, tag="miss"):
    id: int
    reason: str


class Grant(Message, tag="grant"):
    lease: bytes
    tag: bytes
    keys: list[bytes]
    end_tokens: list[int]
    slots: list[int]
    generations: list[int]
    expires_ms: int


class Offloading(Message, tag="offloading"):
    id: int
    verdicts: list[int]


class Committed(Message, tag="committed"):
    id: int
    results: list[int]


class Ok(Message, tag="ok"):
    id: int


class EpochSet(Message, tag="epoch_set"):
    id: int
    namespace: bytes


class Attached(Message, tag="attached"):
    """Since version 3."""

    id: int
    events: list[bytes]


class Moving(Message, tag="moving"):
    """Since version 3."""

    id: int
    event: int


class Moved(Message, tag="moved"):
    """Since version 3."""

    id: int
    ok: bool
    quiet: bool
    message: str | None = None


class ErrorAnswer(Message, tag="error"):
    code: str
    message: str
    id: int | None = None


ToNode = (
    Hello | Register | Lookup | Load | Complete | Release | Offload | Commit | Epoch | Attach | Fetch | Save | Goodbye
)
ToEngine = (
    Welcome | Reject | Registered | Refused | Lease | Pending | Miss | Grant | Offloading | Committed
    | Ok | EpochSet | Attached | Moving | Moved | ErrorAnswer | Goodbye
)

_to_engine = msgspec.msgpack.Decoder(ToEngine)
_to_node = msgspec.msgpack.Decoder(ToNode)
_encoder = msgspec.msgpack.Encoder()
_Decoded = TypeVar("_Decoded")


def encode(message: Message) -> bytes:
    """The whole frame of a message.

    Raises ``WireFault`` when the body is longer than a frame may be: the caller sends less instead.
    """
    body = _encoder.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        raise WireFault(f"a {type(message).__name__} of {len(body)} bytes is longer than {FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


def _decode(decoder: "msgspec.msgpack.Decoder[_Decoded]", body: bytes) -> _Decoded | None:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as fault:
        if _kind_is_unknown(decoder, body):
            return None
        raise WireFault(f"a message of the wrong form: {fault}") from fault
    except msgspec.DecodeError as fault:
        raise WireFault(f"no msgpack: {fault}") from fault


def _kind_is_unknown(decoder: Any, body: bytes) -> bool:
    try:
        raw = msgspec.msgpack.decode(body)
    except msgspec.DecodeError:
        return False
    kind = raw.get("kind") if isinstance(raw, dict) else None
    kinds = {member.__struct_config__.tag for member in decoder.type.__args__}
    return isinstance(kind, str) and kind not in kinds


def decode_to_engine(body: bytes) -> ToEngine | None:
    """What the node said, or None when it is of a kind this version does not know."""
    return _decode(_to_engine, body)


def decode_to_node(body: bytes) -> ToNode | None:
    """What an engine said: for fake nodes in tests."""
    return _decode(_to_node, body)


class FrameReader:
    """Cuts a byte stream into frame bodies."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Takes what was read; returns the bodies that are now whole.

        Raises ``WireFault`` on a length of 0 or above ``FRAME_BYTES_MAX``, before anything of that size is held.
        """
        self._pending += data
        bodies: list[bytes] = []
        while len(self._pending) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._pending)
            if not 0 < length <= FRAME_BYTES_MAX:
                raise WireFault(f"a frame of {length} bytes (1 to {FRAME_BYTES_MAX} are allowed)")
            end = _LENGTH.size + length
            if len(self._pending) < end:
                break
            bodies.append(bytes(self._pending[_LENGTH.size : end]))
            del self._pending[:end]
        return bodies
