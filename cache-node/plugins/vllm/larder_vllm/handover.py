"""Has the cache node carry transfers out in the GPU itself (the wire's version 3).

The node is told once a session where the pages lie (``attach``); then a load is a ``fetch`` and a store a ``save``.
Whatever the node does not do, the worker copies: no job is lost by having been given away. What the node may still be
writing is not touched: a fetch without an end, of a connection that is gone, holds its pages until the node's event is
reached behind it or the node's process has ended, since nothing of a process that has ended moves.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from larder_vllm import wire
from larder_vllm.cuda import CudaFault, Device, Event
from larder_vllm.layout import PartLayout
from larder_vllm.link import Session
from larder_vllm.pages import Names
from larder_vllm.transfers import Job

log = logging.getLogger("vllm.larder")

LOOK_SECONDS_MIN: Final = 0.001
LOOK_SECONDS_MAX: Final = 0.1
"""Between two looks at what a lost node may still be writing; doubled from one to the other."""
REASONS_MAX: Final = 64
"""Different reasons for falling back that are logged, each once."""


class Line(Protocol):
    """The connection to the node."""

    def send(self, message: wire.Message) -> bool: ...

    def send_with(self, message: wire.Message, fds: list[int]) -> bool: ...

    def watch_peer(self) -> int | None: ...


@dataclass(eq=False)
class Peer:
    """A node's process, as one session knows it."""

    session: Session
    process: int
    """Readable when the process has ended."""
    events: list[Event] = field(default_factory=list)
    """The node's, which it records behind its copies."""
    closed: bool = False


@dataclass(eq=False)
class Given:
    """A job that the node was given."""

    job: Job
    peer: Peer
    open: int
    reason: str | None = None


@dataclass(eq=False)
class Part:
    """One message of it."""

    given: Given
    event: int | None = None
    """Since ``moving``."""


def tell_fallback(reason: str, what: str) -> None:
    """Logs why the node does not copy and what the worker does."""
    log.warning("larder: the cache node does not copy in this GPU (%s): the engine's worker %s", reason, what)


class NodeHandover:
    """One worker's. ``settled(job, reason, again)`` is told how each job ended."""

    def __init__(
        self, device: Device, names: Names, layout: PartLayout, settled: Callable[[Job, str | None, bool], None],
        off: Callable[[], None],
    ) -> None:
        """``off``: the node copies nothing in this session."""
        self._device, self._names, self._layout = device, names, layout
        self._settled, self._off = settled, off
        self.line: Line | None = None
        self._lock = threading.Lock()
        self._number = 0
        self._attaching: tuple[int, Peer] | None = None
        self._peer: Peer | None = None
        self._parts: dict[int, Part] = {}
        self._held: list[Part] = []
        self._watching = False
        self._told: set[str] = set()

    # === the link's thread

    def on_registered(self, session: Session) -> None:
        """Tells the node where the pages lie."""
        reason = self._attach(session)
        if reason is not None:
            self._turn_off(reason)

    def _attach(self, session: Session) -> str | None:
        if session.version < wire.GPU_VERSION:
            return f"it speaks version {session.version} of the wire, and {wire.GPU_VERSION} is needed"
        assert self.line is not None
        process = self.line.watch_peer()
        if process is None:
            return "this system cannot tell when its process has ended"
        with self._lock:
            self._number += 1
            self._attaching = (self._number, Peer(session, process))
        if not self.line.send_with(self._names.attach(self._number), self._names.descriptors):
            return "its socket took no message"
        return None

    def on_message(self, message: object) -> None:
        if isinstance(message, wire.Attached):
            self._attached(message)
        elif isinstance(message, wire.Moving):
            with self._lock:
                part = self._parts.get(message.id)
                if part is not None:
                    part.event = message.event
        elif isinstance(message, wire.Moved):
            self._ended(message.id, None if message.ok else message.message or "it says no reason", message.quiet)
        elif isinstance(message, (wire.Refused, wire.ErrorAnswer)):
            reason = f"{message.code}: {message.message}"
            if self._attaching is not None and message.id in (None, self._attaching[0]):
                self._turn_off(reason)
            elif message.id is not None:
                self._ended(message.id, reason, True)

    def _attached(self, message: wire.Attached) -> None:
        if self._attaching is None or message.id != self._attaching[0]:
            return
        peer = self._attaching[1]
        try:
            self._device.bind()
            for name in message.events:
                peer.events.append(self._device.open_event(name))
        except (CudaFault, TypeError, ValueError) as fault:
            self._turn_off(f"its events cannot be opened: {fault}")
            return
        with self._lock:
            self._attaching, self._peer = None, peer
        log.info("larder: the cache node copies into and out of this GPU itself")

    def on_lost(self) -> None:
        """Nothing more is given. What was given and is not known to have ended is held."""
        with self._lock:
            gone = [peer for peer in (self._peer, self._attaching and self._attaching[1]) if peer is not None]
            self._peer = self._attaching = None
            lost, self._parts = list(self._parts.values()), {}
        for part in lost:
            self._settle(part, "the connection to it is lost", quiet=False)
        for peer in gone:
            self._close_unused(peer)

    def _turn_off(self, reason: str) -> None:
        self._tell(reason, "copies itself from now on")
        with self._lock:
            peer, self._attaching = self._attaching and self._attaching[1], None
        if peer is not None:
            self._close_unused(peer)
        self._off()

    # === any thread

    def give(self, job: Job) -> bool:
        """Asks the node. The lock is held over it: a loss in between finds either all of it under way or nothing."""
        with self._lock:
            peer, line = self._peer, self.line
            if peer is None or line is None or peer.session.id != job.session:
                return False
            messages = self._messages(job)
            if not messages or any(len(message.blocks) > wire.LIST_LEN_MAX for message in messages):
                return False
            given = Given(job, peer, len(messages))
            unsent = 0
            for message in messages:
                if unsent or not line.send(message):
                    unsent += 1
                else:
                    self._parts[message.id] = Part(given)
        for _ in range(unsent):
            self._settle(Part(given), "the connection to it is lost", quiet=True)
        return True

    def _messages(self, job: Job) -> "list[wire.Fetch] | list[wire.Save]":
        if not job.load:
            self._number += 1
            slots, blocks = job.slots.tolist(), job.blocks.tolist()
            return [wire.Save(id=self._number, region_slots=slots, blocks=blocks, after=job.mark)]
        messages, blocks, skip = [], job.blocks.tolist(), job.skip
        for lease, first, count in job.parts:
            self._number += 1
            own = count * self._layout.blocks_per_chunk - skip
            messages.append(wire.Fetch(
                id=self._number, lease=lease, first=first, skip=skip, blocks=blocks[:own], after=job.mark,
            ))
            blocks, skip = blocks[own:], 0
        return messages

    def _ended(self, number: int, reason: str | None, quiet: bool) -> None:
        with self._lock:
            part = self._parts.pop(number, None)
        if part is not None:
            self._settle(part, reason, quiet)

    def _settle(self, part: Part, reason: str | None, quiet: bool) -> None:
        """A message's end. Of a load that is not known to be quiet the pages are held; a store's are only read."""
        given = part.given
        if reason is not None:
            given.reason = reason
        if not quiet and given.job.load:
            self._hold(part)
            return
        with self._lock:
            given.open -= 1
            if given.open:
                return
            alive = self._peer is given.peer
        if given.reason is not None:
            self._tell(given.reason, "copies this time")
        else:
            given.job.bytes = len(given.job.blocks) * self._layout.block_bytes
        # What a lost session's region holds is of no use any more; what its slab holds is.
        self._settled(given.job, given.reason, given.job.load or alive)

    def _tell(self, reason: str, what: str) -> None:
        with self._lock:
            if reason in self._told or len(self._told) >= REASONS_MAX:
                return
            self._told.add(reason)
        tell_fallback(reason, what)

    # === what a lost node may still be writing

    def _hold(self, part: Part) -> None:
        with self._lock:
            self._held.append(part)
            if self._watching:
                return
            self._watching = True
        threading.Thread(target=self._watch, name="larder held", daemon=True).start()

    def _watch(self) -> None:
        pause = LOOK_SECONDS_MIN
        try:
            self._device.bind()
        except CudaFault as fault:
            # Its events then say nothing; that the process has ended is seen all the same.
            log.warning("larder: nobody can ask for a lost cache node's events: %s", fault)
        while True:
            with self._lock:
                held = list(self._held)
                if not held:
                    self._watching = False
                    return
            over = [part for part in held if _is_over(part)]
            with self._lock:
                self._held = [part for part in self._held if part not in over]
            for part in over:
                self._settle(part, part.given.reason, quiet=True)
            for peer in {part.given.peer for part in over}:
                self._close_unused(peer)
            pause = LOOK_SECONDS_MIN if over else min(pause * 2, LOOK_SECONDS_MAX)
            if not over:
                time.sleep(pause)

    def _close_unused(self, peer: Peer) -> None:
        """Closes a lost session's events and its process's descriptor, once nothing is held for it."""
        with self._lock:
            if peer.closed or peer is self._peer or any(part.given.peer is peer for part in self._held):
                return
            peer.closed = True
        os.close(peer.process)
        try:
            self._device.bind()
            for event in peer.events:
                event.close()
        except CudaFault as fault:
            log.warning("larder: a lost cache node's events cannot be closed: %s", fault)


def _is_over(part: Part) -> bool:
    """Whether nothing of a fetch moves any more."""
    peer = part.given.peer
    process = select.poll()  # not select(): an engine may have more than a thousand descriptors
    process.register(peer.process, select.POLLIN)
    if process.poll(0):
        return True
    if part.event is None or part.event >= len(peer.events):
        return False
    try:
        return peer.events[part.event].is_reached()
    except CudaFault:
        return False
