"""What comes from the node: loads begun and ended lease by lease, and chunks whose load failed.

Everything here is called under the manager's lock.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import numpy as np

from larder_vllm import wire
from larder_vllm.ask import Ask, Lease, LoadPart, LoadTicket, Verdict, parts_of
from larder_vllm.counters import Counters
from larder_vllm.jobs import LoadSpec

log = logging.getLogger("vllm.larder")

QUARANTINE_SECONDS: Final = 30.0
"""How long a chunk whose load failed is answered MISS here, whatever the node says."""
QUARANTINED_MAX: Final = 65_536


class Loads:
    """The scheduler's side of loading."""

    def __init__(
        self, send: Callable[[wire.Message], bool], number: Callable[[], int], counters: Counters
    ) -> None:
        self._send, self._number, self._counters = send, number, counters
        self._quarantine: OrderedDict[bytes, float] = OrderedDict()

    def quarantined(self, key: bytes, now: float) -> bool:
        """Whether a chunk failed here a moment ago."""
        until = self._quarantine.get(key)
        if until is None or until > now:
            return until is not None
        del self._quarantine[key]
        return False

    def release(self, lease: bytes) -> None:
        """Gives a lease back."""
        self._send(wire.Release(id=self._number(), lease=lease))

    def begin(self, ask: Ask, keys: list[bytes], world: int, now: float) -> LoadTicket:
        """Takes the request's leases and tells the node of the load; without parts when it cannot begin."""
        leases, ask.leases, ask.verdict = ask.leases, [], Verdict.UNASKED
        parts = self._begin_parts(leases, keys, now)
        self._counters.add("loads")
        for lease in leases:
            loaded = sum(part.count for part in parts if part.lease is lease)
            if not loaded:
                self.release(lease.id)
            if lease.granted:
                self._counters.add("grant_tokens_unused", max(lease.tokens - _tokens(ask, loaded), 0))
        return LoadTicket(ask, parts, keys, world, _tokens(ask, len(keys)))

    def _begin_parts(self, leases: list[Lease], keys: list[bytes], now: float) -> list[LoadPart]:
        parts = parts_of(leases, keys)
        if not all(part.lease.usable(now) for part in parts):
            return []
        for begun, part in enumerate(parts):
            if not self._send(wire.Load(id=self._number(), lease=part.lease.id, first=part.first, count=part.count)):
                self._end_parts(parts[:begun], set())
                return []
        return parts

    def _end_parts(self, parts: list[LoadPart], failed: set[int]) -> None:
        """Matches each load by its complete; ``failed`` are places in the whole load."""
        start = 0
        for part in parts:
            mine = [part.first + place - start for place in sorted(failed) if 0 <= place - start < part.count]
            self._send(wire.Complete(id=self._number(), lease=part.lease.id, ok=not mine, failed=mine or None))
            start += part.count
        for lease in {part.lease.id: part.lease for part in parts}.values():
            self.release(lease.id)

    def settle(self, ticket: LoadTicket, session: bytes | None, now: float) -> list[bytes]:
        """All workers have copied. What failed is told to the node first; returns its keys.

        vLLM then recomputes, and asks again: it must be answered MISS, or it would load and fail for ever.
        """
        failed = [ticket.keys[place] for place in sorted(ticket.failed)] if ticket.parts else []
        if ticket.parts and ticket.parts[0].lease.session == session:
            self._end_parts(ticket.parts, ticket.failed)
        if not ticket.failed:
            self._counters.add("loaded_tokens", ticket.tokens)
            return failed
        self._counters.add("load_failures")
        ticket.ask.verdict = Verdict.MISS
        for key in failed:
            self._quarantine[key] = now + QUARANTINE_SECONDS
            self._quarantine.move_to_end(key)
        while len(self._quarantine) > QUARANTINED_MAX:
            self._quarantine.popitem(last=False)
        log.warning("larder: %d of %d chunks of %s failed to load and are recomputed", len(ticket.failed),
                    len(ticket.keys), ticket.ask.req_id)
        return failed


def _tokens(ask: Ask, chunks: int) -> int:
    return ask.end_tokens[0] * chunks if ask.end_tokens else 0  # chunks are all of one size


def spec_of(number: int, ticket: LoadTicket) -> LoadSpec:
    """What the workers are told; a load that could not begin fails there without touching anything."""
    count = len(ticket.keys)
    if not ticket.parts:
        return LoadSpec(number, None, np.zeros(count, np.uint32), np.zeros(count, np.uint64))
    spans = [(part.lease, slice(part.first, part.first + part.count)) for part in ticket.parts]
    return LoadSpec(
        number, ticket.parts[0].lease.session, np.concatenate([lease.slots[span] for lease, span in spans]),
        np.concatenate([lease.generations[span] for lease, span in spans]),
        [(part.lease.id, part.first, part.count) for part in ticket.parts],
    )
