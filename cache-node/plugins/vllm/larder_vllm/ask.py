"""One request's question to the node, and the lease that answers it. No I/O, no clock: ``now`` is an argument."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

import numpy as np
import numpy.typing as npt

from larder_vllm.link import Session

LEASE_MARGIN_SECONDS: Final = 1.0
"""A load does not begin when less than this is left of its lease: the node may hear of it late."""


class Verdict(Enum):
    """What is known about a request's chunks."""

    UNASKED = auto()
    ASKED = auto()
    """A question is open, or the node said ``pending`` and the next question is due."""
    LEASED = auto()
    MISS = auto()


@dataclass(eq=False)
class Lease:
    """Chunks that the node pinned for this engine."""

    id: bytes
    session: bytes
    index: dict[bytes, int]
    """Which chunk of the lease a key is."""
    slots: npt.NDArray[np.uint32]
    generations: npt.NDArray[np.uint64]
    expires: float
    """When it ends if nobody loads, on the manager's clock."""
    tokens: int = 0
    """How many tokens its usable chunks cover."""
    granted: bool = False
    """Pushed by the node, not asked for."""

    @classmethod
    def of(
        cls, id: bytes, session: bytes, keys: Sequence[bytes], slots: list[int], generations: list[int], expires: float
    ) -> "Lease | None":
        """A lease of the first ``len(slots)`` of some keys; None when the node's lists do not fit together."""
        if not slots or len(slots) != len(generations) or len(slots) > len(keys):
            return None
        if max(slots) > 0xFFFF_FFFF or min(slots) < 0 or min(generations) < 0 or max(generations) > 2**64 - 1:
            return None
        index = {key: place for place, key in enumerate(keys[: len(slots)])}
        return cls(id, session, index, np.array(slots, np.uint32), np.array(generations, np.uint64), expires)

    def usable(self, now: float) -> bool:
        """Whether a load may still begin."""
        return now < self.expires - LEASE_MARGIN_SECONDS

    def cut_to(self, keys: Sequence[bytes], end_tokens: Sequence[int]) -> bool:
        """Keeps the leading part that is equal to a request's own keys; False when nothing is left.

        The node believes what a proxy said about text. The engine's own hashes decide.
        """
        same = 0
        for place, (key, held) in enumerate(zip(keys, self.index)):
            if key != held:
                break
            same = place + 1
        self.index = {key: place for place, key in enumerate(keys[:same])}
        self.tokens = end_tokens[same - 1] if same else 0
        return same > 0


@dataclass(eq=False)
class Ask:
    """A request as far as the warehouse is concerned."""

    req_id: str
    keys: list[bytes]
    """Keys of all its whole chunks, in order."""
    end_tokens: list[int]
    """How many tokens end with each chunk."""
    prompt_tokens: int
    tag: bytes | None = None
    shares: bool = True
    """False: neither loads nor stores (a LoRA request)."""
    stores: bool = True
    """False once a chunk of it was dropped: what follows a hole can never be loaded."""
    verdict: Verdict = Verdict.UNASKED
    question: int | None = None
    waiting_since: float | None = None
    """When the scheduler first met it undecided, while it is."""
    waited: float = 0.0
    """Seconds it was met undecided before, all questions together."""
    pending_since: float | None = None
    """When the node first said that chunks are coming up, while it does."""
    pause: float = 0.0
    """Seconds from the last such answer to the next question."""
    ask_again_at: float = 0.0
    """When that question is due."""
    leases: list[Lease] = field(default_factory=list)
    """What it may load from, in order: a pushed lease first, then one that goes on where that ends."""
    tail: tuple[int, bytes] | None = None
    """The last chunk that vLLM offered to store, by where it ends: chunks that were decoded are not among ``keys``."""
    tickets: set[int] = field(default_factory=set)
    finished: bool = False

    @property
    def leased_tokens(self) -> int:
        """How many tokens its leases cover."""
        return max((lease.tokens for lease in self.leases), default=0)

    def usable(self, now: float) -> bool:
        """Whether it may load from all of its leases."""
        return bool(self.leases) and all(lease.usable(now) for lease in self.leases)

    def waits(self, now: float) -> float:
        """Notes that the scheduler meets it undecided; returns the seconds spent so far."""
        if self.waiting_since is None:
            self.waiting_since = now
        return self.waited + now - self.waiting_since

    def before(self, end: int) -> bytes | None:
        """The chunk before the one that ends with so many tokens; None for the first, or where it is not known."""
        if not self.end_tokens:
            return None
        tokens = self.end_tokens[0]
        place = end // tokens - 2
        if 0 <= place < len(self.keys):
            return self.keys[place]
        return self.tail[1] if self.tail is not None and self.tail[0] == end - tokens else None

    def comes_up(self, now: float, pause: float) -> None:
        """The answer was ``pending``: no question is open, and the next is due after a pause."""
        self.answered(Verdict.ASKED, now, self.pending_since if self.pending_since is not None else now)
        self.pause, self.ask_again_at = pause, now + pause

    def answered(self, verdict: Verdict, now: float, pending_since: float | None = None) -> None:
        """Ends the waiting for an answer, if anybody waited."""
        if self.waiting_since is not None:
            self.waited += now - self.waiting_since
            self.waiting_since = None
        self.verdict, self.question, self.pending_since = verdict, None, pending_since


@dataclass(frozen=True)
class LoadPart:
    """Chunks ``first`` to ``first + count`` of a lease, loaded together."""

    lease: Lease
    first: int
    count: int


def parts_of(leases: Sequence[Lease], keys: Sequence[bytes]) -> list[LoadPart]:
    """Cuts keys into runs of the leases' chunks, the first lease that has a key taking it; empty if one has none."""
    parts: list[LoadPart] = []
    for key in keys:
        lease = next((lease for lease in leases if key in lease.index), None)
        if lease is None:
            return []
        place = lease.index[key]
        last = parts[-1] if parts else None
        if last is not None and last.lease is lease and place == last.first + last.count:
            parts[-1] = LoadPart(lease, last.first, last.count + 1)
        else:
            parts.append(LoadPart(lease, place, 1))
    return parts


@dataclass(eq=False)
class LoadTicket:
    """A load under way: workers copy, vLLM waits."""

    ask: Ask
    parts: list[LoadPart]
    """Which leases its chunks are of, in order; empty when they were lost before it began."""
    keys: list[bytes]
    workers_left: int
    tokens: int
    failed: set[int] = field(default_factory=set)


@dataclass(eq=False)
class StoreTicket:
    """A store under way: workers copy into region slots, then the chunks are committed."""

    ask: Ask
    session: Session
    keys: list[bytes]
    end_tokens: list[int]
    parent: bytes | None
    """The chunk of the request before the first of these."""
    slots: list[int]
    workers_left: int
    void: bool = False
    """The cache was reset meanwhile: the slots come back, nothing is committed."""
    failed: set[int] = field(default_factory=set)
