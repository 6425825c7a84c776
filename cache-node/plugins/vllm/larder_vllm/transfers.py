"""A worker's transfers: who carries each one out, when it counts, and what became of it. Knows neither torch nor vLLM.

Each direction has a thread, so that neither the engine nor the connection to the node ever waits for a copy. A mover
copies between the node's memory and this process's pages; where there is a handover, the node is asked first.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from larder_vllm import slab
from larder_vllm.layout import Blocks
from larder_vllm.link import Session
from larder_vllm.slab import Bytes, Mapping, Offsets

log = logging.getLogger("vllm.larder")

WAIT_SECONDS_MAX: Final = 5.0
"""How long vLLM may be held up by a store whose pages it wants back; the store is then void."""
SESSION_SECONDS_MAX: Final = 0.2
"""How long a job waits for this process to hear of a session that the scheduler has already."""
MAPPINGS_KEPT: Final = 2
"""The current mapping, and the last for loads begun before the node was lost."""

Parts = Sequence[tuple[bytes, int, int]]
"""Lease, first chunk of it, and how many: the chunks of a load in order."""


@dataclass(eq=False)
class Job:
    """One transfer and what is known of it."""

    id: int
    load: bool
    ticket: int
    """What the scheduler knows it by."""
    session: bytes | None
    """None: the lease was lost before the load began; it fails and touches nothing."""
    slots: npt.NDArray[np.uint32]
    """Of the slab for a load, of the session's region for a store."""
    generations: npt.NDArray[np.uint64]
    """Of a load's slots; empty for a store."""
    parts: Parts
    """A load's leases; empty for a store."""
    blocks: Blocks
    skip: int
    """Blocks of the first chunk that are not part of the transfer."""
    mark: int | None = None
    """The point of the engine's own work behind which the pages may be touched."""
    done: threading.Event = field(default_factory=threading.Event)
    void: bool = False
    failed: set[int] = field(default_factory=set)
    """Chunks of it."""
    by_node: bool = False
    by_hand: bool = False
    """The node was asked and has not done it."""
    begun: float = 0.0
    seconds: float = 0.0
    bytes: int = 0

    def fail(self) -> None:
        """All its chunks failed."""
        self.failed = set(range(len(self.slots)))


class Mover(Protocol):
    """Copies between the node's memory and this process's pages."""

    def mark(self) -> int | None:
        """Marks the engine's work up to now, on a thread of the engine's; None where work is done when it returns."""

    def copy(self, job: Job, memory: Bytes, bases: Offsets) -> int:
        """Copies and waits for the end; ``bases`` are the chunks' offsets in ``memory``. Returns the bytes it copied."""

    def pin(self, mapping: Mapping) -> None:
        """This process will copy out of and into that memory for good: makes that fast, in the background."""

    def forget(self, mapping: Mapping) -> None:
        """Nothing is copied there any more."""


class Handover(Protocol):
    """Has the node carry jobs out. ``Transfers.settled`` is told of each one that was given."""

    def give(self, job: Job) -> bool:
        """Asks the node; False: it cannot be asked now."""

    def on_registered(self, session: Session) -> None: ...

    def on_message(self, message: object) -> None: ...

    def on_lost(self) -> None: ...


class Transfers:
    """All transfers of one worker. A connection's sink; the engine submits, waits, and takes what is finished."""

    def __init__(self, mover: Mover, by_hand: bool = True) -> None:
        """``by_hand``: whether this process copies what the node does not."""
        self._mover, self._copies = mover, by_hand
        self.wants_node = False
        """Every job that the node does not carry out is then a fallback."""
        self._handover: Handover | None = None
        self._mappings: list[Mapping] = []
        self._users: dict[Mapping, int] = {}
        self._dropped: set[Mapping] = set()
        self._mapped = threading.Condition()
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}
        self._finished: list[Job] = []
        self._queues: dict[bool, "queue.SimpleQueue[Job | None]"] = {}
        for load in (True, False):
            self._queues[load] = queue.SimpleQueue()
            name = "larder load" if load else "larder store"
            threading.Thread(target=self._run, args=(self._queues[load],), name=name, daemon=True).start()

    def use(self, handover: Handover) -> None:
        """The node is asked first. Before the connection starts."""
        self._handover = handover

    # === the link's thread

    def on_registered(self, session: Session, fds: list[int]) -> None:
        """Maps the session's memory. Failing to is survived: every job then fails and vLLM recomputes."""
        try:
            mapping = Mapping(session, fds)
        except (OSError, ValueError, slab.MappingFault) as fault:
            log.warning("larder: the cache node's memory cannot be mapped: %s", fault)
            return
        with self._mapped:
            self._mappings.append(mapping)
            dropped, self._mappings = self._mappings[:-MAPPINGS_KEPT], self._mappings[-MAPPINGS_KEPT:]
            self._dropped.update(dropped)
            self._mapped.notify_all()
        self._forget_unused()
        if self._handover is not None:
            self._handover.on_registered(session)
        else:
            self.pin_current()

    def on_message(self, message: object) -> None:
        if self._handover is not None:
            self._handover.on_message(message)

    def on_lost(self) -> None:
        """The mappings stay: what lies in them does not change when the node dies."""
        if self._handover is not None:
            self._handover.on_lost()

    def pin_current(self) -> None:
        """The node copies nothing in this session, so this process does."""
        with self._mapped:
            current = self._mappings[-1:]
        for mapping in current if self._copies else ():
            self._mover.pin(mapping)

    # === mappings

    def mapping(self, session: bytes | None) -> Mapping | None:
        """The mapping of a session; waits a moment for one that this process is yet to hear of."""
        if session is None:
            return None
        with self._mapped:
            deadline = time.monotonic() + SESSION_SECONDS_MAX
            while True:
                for mapping in self._mappings:
                    if mapping.session.id == session:
                        return mapping
                left = deadline - time.monotonic()
                if left <= 0 or not self._mapped.wait(left):
                    return None

    def _forget_unused(self) -> None:
        with self._mapped:
            unused = [mapping for mapping in self._dropped if not self._users.get(mapping)]
            self._dropped.difference_update(unused)
        for mapping in unused:
            self._mover.forget(mapping)

    def _use(self, mapping: Mapping, more: int) -> None:
        with self._mapped:
            self._users[mapping] = self._users.get(mapping, 0) + more
            if not self._users[mapping]:
                del self._users[mapping]

    # === the engine's thread

    def submit(self, job: Job) -> None:
        """Begins it behind what the engine's own stream was given so far."""
        job.begun = time.monotonic()
        with self._lock:
            self._jobs[job.id] = job
        try:
            job.mark = self._mover.mark()
        except Exception:  # a GPU that takes no event will say so to the engine itself
            log.exception("larder: a transfer cannot be ordered behind the engine's work")
            job.fail()
            self._finish(job)
            return
        self._queues[job.load].put(job)

    def take_finished(self) -> list[Job]:
        """What has ended since the last call."""
        with self._lock:
            finished, self._finished = self._finished, []
            for job in finished:
                del self._jobs[job.id]
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """vLLM is about to write these jobs' pages again. A job that is not done in time is void."""
        with self._lock:
            jobs = [self._jobs[job_id] for job_id in job_ids if job_id in self._jobs]
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        for job in jobs:
            if not job.done.wait(max(deadline - time.monotonic(), 0.0)):
                job.void = True
                log.warning("larder: a transfer took longer than %.0f s and is void", WAIT_SECONDS_MAX)

    def shutdown(self) -> None:
        for jobs in self._queues.values():
            jobs.put(None)

    # === any thread

    def settled(self, job: Job, reason: str | None, again: bool) -> None:
        """The node has done a job that it was given, or not and nothing of it moves any more; ``again``: it may be
        copied here."""
        if reason is None:
            job.by_node = True
        elif again:
            job.by_hand = True
            self._queues[job.load].put(job)
            return
        else:
            job.fail()
        self._finish(job)

    def _finish(self, job: Job) -> None:
        if job.void:
            job.fail()
        job.seconds = time.monotonic() - job.begun
        with self._lock:
            self._finished.append(job)
        job.done.set()

    # === the copying threads

    def _run(self, jobs: "queue.SimpleQueue[Job | None]") -> None:
        while (job := jobs.get()) is not None:
            try:
                if self._carry_out(job):
                    continue
            except Exception:  # a fault of one copy must not end the thread that vLLM waits for
                log.exception("larder: a copy failed")
                job.fail()
            self._finish(job)

    def _carry_out(self, job: Job) -> bool:
        """Copies it, or True: the node does."""
        mapping = self.mapping(job.session)
        if mapping is None:
            job.fail()
            return False
        if not job.by_hand and self._handover is not None and self._handover.give(job):
            return True
        if not self._copies:
            job.fail()
            return False
        self._use(mapping, 1)
        try:
            self._copy(job, mapping)
        finally:
            self._use(mapping, -1)
            self._forget_unused()
        return False

    def _copy(self, job: Job, mapping: Mapping) -> None:
        if not job.load:
            job.bytes = self._mover.copy(job, mapping.region, mapping.region_offsets(job.slots))
            return
        before = mapping.unchanged(job.slots, job.generations)
        if not before.all():
            job.failed = {int(place) for place in np.flatnonzero(~before)}
            return
        job.bytes = self._mover.copy(job, mapping.slab, mapping.slab_offsets(job.slots))
        after = mapping.unchanged(job.slots, job.generations)
        job.failed = {int(place) for place in np.flatnonzero(~after)}
