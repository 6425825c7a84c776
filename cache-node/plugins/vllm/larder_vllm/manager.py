"""The scheduler's side: answers vLLM's lookups from leases, hands out loads and stores.

Every call returns at once. What the node says arrives on the link's thread and is found here by the next call.
"""

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Final

import numpy as np
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import (
    LoadStoreSpec, LookupResult, OffloadingManager, OffloadKey, PrepareStoreOutput, ReqContext,
    RequestOffloadingContext,
)

from larder_vllm import wire
from larder_vllm.ask import Ask, Lease, LoadTicket, StoreTicket, Verdict
from larder_vllm.counters import Counters
from larder_vllm.jobs import Outcome, StoreSpec
from larder_vllm.link import Session
from larder_vllm.loads import Loads, spec_of
from larder_vllm.questions import Patience, Questions
from larder_vllm.stores import Stores

log = logging.getLogger("vllm.larder")

GRANTS_MAX: Final = 1_024
"""Pushed leases waiting for their request; more than requests a proxy forwards within one lease's life."""
NOTHING: Final = StoreSpec(0, None, np.empty(0, np.uint32))


class LarderManager(OffloadingManager):
    """One engine's view of the warehouse."""

    def __init__(
        self,
        send: Callable[[wire.Message], bool],
        world: int,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """``send`` never waits and says whether there was a connection; ``close`` ends it."""
        self._close = close
        self._send = send
        self._world = world
        self._clock = clock
        self._lock = threading.Lock()
        self.counters = Counters()
        self._stores = Stores(send, self._number, self.counters)
        self._loads = Loads(send, self._number, self.counters)
        self._questions = Questions(send, self._number, self.counters, self._stores, self._loads, patience)
        self._asks: dict[str, Ask] = {}
        self._deferred: dict[str, bytes] = {}
        """Requests deferred in this step, by the chunk whose lookup did it."""
        self._grants: OrderedDict[bytes, Lease] = OrderedDict()
        self._tickets: dict[int, LoadTicket | StoreTicket] = {}
        self._session: Session | None = None
        self._numbers = 1
        self._epoch = 0
        self._epoch_unset: int | None = None

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    # === what the node says (the link's thread)

    def on_registered(self, session: Session, fds: list[int]) -> None:
        """A session stands. Nothing of an earlier one is left."""
        with self._lock:
            self._session = session
            self._stores.begin_session(session)
            self._questions.heard()
            self.counters.add("sessions")
            if self._epoch:
                self._send_epoch()

    def on_lost(self) -> None:
        """The session is gone with its leases and region. Loads under way finish: their slots stay mapped."""
        with self._lock:
            self._session = None
            self._stores.end_session()
            self._forget_answers()

    def _forget_answers(self) -> None:
        self._questions.forget()
        for lease in self._grants.values():
            self._drop_grant(lease)
        self._grants.clear()
        for ask in self._asks.values():
            self._drop_leases(ask)
            if ask.verdict is not Verdict.UNASKED:
                ask.verdict, ask.question = Verdict.MISS, None

    def on_message(self, message: wire.ToEngine) -> None:
        """An answer, or a lease that nobody asked for."""
        with self._lock:
            self._questions.heard()
            if isinstance(message, wire.Lease):
                self._questions.on_lease(message, self._session, self._clock())
            elif isinstance(message, wire.Pending):
                self._questions.on_pending(message.id, self._clock())
            elif isinstance(message, wire.Miss):
                self._questions.on_miss(message.id, self._clock())
            elif isinstance(message, wire.Grant):
                self._on_grant(message)
            elif isinstance(message, wire.Committed):
                self._stores.on_committed(message.id, message.results)
            elif isinstance(message, wire.EpochSet):
                if message.id == self._epoch_unset:
                    self._epoch_unset = None
            elif isinstance(message, wire.ErrorAnswer):
                self._on_error(message)

    def _on_grant(self, message: wire.Grant) -> None:
        session = self._session
        lease = session and Lease.of(
            message.lease, session.id, message.keys, message.slots, message.generations,
            self._clock() + message.expires_ms / 1000,
        )
        if not lease or self._epoch_unset is not None or len(message.end_tokens) != len(message.keys):
            self._loads.release(message.lease)
            return
        lease.granted = True
        lease.tokens = message.end_tokens[len(message.slots) - 1]
        self.counters.add("grants")
        self.counters.add("granted_tokens", lease.tokens)
        old = self._grants.pop(message.tag, None)
        if old is not None:
            self._drop_grant(old)
        self._grants[message.tag] = lease
        while len(self._grants) > GRANTS_MAX:
            self._drop_grant(self._grants.popitem(last=False)[1])

    def _drop_grant(self, lease: Lease) -> None:
        self.counters.add("grants_unused")
        self.counters.add("grant_tokens_unused", lease.tokens)
        self._loads.release(lease.id)

    def _on_error(self, message: wire.ErrorAnswer) -> None:
        log.info("larder: the cache node answered %s: %s", message.code, message.message)
        if message.id is not None:
            self._questions.on_miss(message.id, self._clock())
            self._stores.on_committed(message.id, [])

    # === what vLLM asks (the scheduler's thread)

    def begin(self, ask: Ask) -> None:
        """A request was added: asks the node at once, so that the answer is there when it is scheduled."""
        with self._lock:
            self._asks[ask.req_id] = ask
            if not ask.shares:
                ask.verdict = Verdict.MISS
                self.counters.add("unshared_requests")
                return
            self._questions.ask(ask, self._session, self._clock())
            self._take_grant(ask)

    def extend(self, req_id: str, keys: list[bytes], end_tokens: list[int]) -> None:
        """The request has more whole chunks than before (it was preempted while decoding)."""
        with self._lock:
            ask = self._asks.get(req_id)
            if ask is not None and ask.question is None and len(keys) > len(ask.keys):
                ask.keys, ask.end_tokens = keys, end_tokens

    def _take_grant(self, ask: Ask) -> None:
        """A pushed lease is an answer already; the question went out all the same, teaches the node the prompt, and
        may bring a lease that goes further."""
        lease = self._grants.pop(ask.tag, None) if ask.tag is not None else None
        if lease is None:
            return
        staged = lease.tokens
        if lease.usable(self._clock()) and lease.cut_to(ask.keys, ask.end_tokens):
            self.counters.add("grant_tokens_unused", staged - lease.tokens)
            ask.leases.append(lease)
            if ask.verdict is not Verdict.ASKED:
                ask.verdict = Verdict.LEASED
        else:
            self._drop_grant(lease)

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """vLLM walks a prompt's chunks with this: one look into one dict, one verdict for all of them.

        While the answer is out, one RETRY defers the request and a MISS after it ends the walk: thousands of chunks are
        not walked in each step for nothing. The other threads then get the interpreter, the link's among them.
        """
        result = self._lookup(key, req_context)
        if result is LookupResult.RETRY:
            time.sleep(0)
        return result

    def _lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        with self._lock:
            ask = self._asks.get(req_context.req_id)
            if ask is None:
                return LookupResult.MISS
            if ask.verdict is not Verdict.LEASED or not ask.usable(self._clock()):
                self._decide(ask)
            if ask.verdict is Verdict.ASKED:
                first = self._deferred.setdefault(ask.req_id, key)
                return LookupResult.RETRY if first == key else LookupResult.MISS
            if ask.verdict is Verdict.LEASED and any(key in lease.index for lease in ask.leases):
                return LookupResult.MISS if self._loads.quarantined(key, self._clock()) else LookupResult.HIT
            return LookupResult.MISS

    def _decide(self, ask: Ask) -> None:
        """Brings a verdict up to date: asks if nobody has, stops waiting when the time is over."""
        if ask.verdict is Verdict.LEASED:
            self._drop_leases(ask)  # one ran out while the request was queued
            ask.verdict = Verdict.UNASKED
        self._questions.decide(ask, self._session, self._clock())

    def _drop_leases(self, ask: Ask) -> None:
        for lease in ask.leases:
            if lease.granted:
                self._drop_grant(lease)
            else:
                self._loads.release(lease.id)
        ask.leases.clear()

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        """Begins a load. ``load`` is in the socket before vLLM can tell a worker, so before a byte is copied.

        A lease lost in between makes a load that fails by itself: vLLM recomputes.
        """
        with self._lock:
            # vLLM looks up before it loads; without a lookup there is nothing to load from.
            ask = self._asks.get(req_context.req_id) or Ask(req_context.req_id, [], [], 0, finished=True)
            ticket = self._loads.begin(ask, list(keys), self._world, self._clock())
            return spec_of(self._issue(ticket), ticket)

    def _issue(self, ticket: LoadTicket | StoreTicket) -> int:
        number = self._number()
        self._tickets[number] = ticket
        ticket.ask.tickets.add(number)
        return number

    def prepare_store(self, keys: Collection[OffloadKey], req_context: ReqContext) -> PrepareStoreOutput | None:
        """Hands out region slots for the chunks that the node may not hold yet."""
        with self._lock:
            ask = self._asks.get(req_context.req_id)
            ticket = None
            if ask is not None and ask.shares and self._epoch_unset is None:
                position = req_context.get_offload_key_position
                ticket = self._stores.prepare(ask, keys, lambda key: position(OffloadKey(key)), self._world)
            if ticket is None:
                return PrepareStoreOutput([], NOTHING, [])
            spec = StoreSpec(self._issue(ticket), ticket.session.id, np.array(ticket.slots, np.uint32))
            return PrepareStoreOutput([OffloadKey(key) for key in ticket.keys], spec, [])

    def settle(self, outcomes: dict[int, Outcome]) -> None:
        """Workers are done with tickets. A ticket ends when all of them are, whatever vLLM did to its request.

        vLLM's own complete_load and complete_store are not used: after a cache reset they never come.
        """
        with self._lock:
            for number, outcome in outcomes.items():
                ticket = self._tickets.get(number)
                if ticket is None:
                    continue
                ticket.failed |= outcome.failed
                self.counters.add("moved_by_node", outcome.by_node)
                self.counters.add("gpu_fallbacks", outcome.fallbacks)
                ticket.workers_left -= outcome.workers
                if ticket.workers_left > 0:
                    continue
                del self._tickets[number]
                ticket.ask.tickets.discard(number)
                if isinstance(ticket, StoreTicket):
                    self._stores.settle(ticket)
                else:
                    session = self._session.id if self._session is not None else None
                    self._stores.note([], self._loads.settle(ticket, session, self._clock()))
                self._forget_if_over(ticket.ask)

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """Nothing here: the connector saw the request first and called ``begin``."""
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        """No new loads or stores of it; those under way may still be, and end by ``settle``."""
        with self._lock:
            ask = self._asks.get(req_context.req_id)
            if ask is not None:
                ask.finished = True
                self._drop_leases(ask)
                self._forget_if_over(ask)

    def _forget_if_over(self, ask: Ask) -> None:
        if ask.finished and not ask.tickets and self._asks.get(ask.req_id) is ask:
            del self._asks[ask.req_id]

    def on_schedule_end(self, context: object) -> None:
        """Ends grants whose request never came."""
        with self._lock:
            self._deferred.clear()
            while self._grants:
                tag, lease = next(iter(self._grants.items()))
                if lease.usable(self._clock()):
                    break
                del self._grants[tag]
                self._drop_grant(lease)

    def reset_cache(self) -> None:
        """Raises the weights epoch: nothing stored before is loaded again, nothing under way is stored.

        vLLM calls this for an explicit reset, for pause and for sleep, and says no reason; updating weights in place
        begins with exactly these. So each one must count as an update. The new epoch is drawn at random: no other
        engine, and no later run of this one, may take this engine's weights for those on disk.
        """
        with self._lock:
            self._epoch = secrets.randbits(63) | 1
            self.counters.add("resets")
            self._forget_answers()
            for ask in self._asks.values():
                ask.verdict, ask.question = Verdict.MISS, None
            self._stores.void(self._tickets.values())
            if self._session is not None:
                self._send_epoch()

    def _send_epoch(self) -> None:
        self._epoch_unset = self._number()
        self._send(wire.Epoch(id=self._epoch_unset, epoch=self._epoch))

    def shutdown(self) -> None:
        """Ends the connection."""
        self._close()

    def get_stats(self) -> OffloadingConnectorStats | None:
        """Counts since the last call."""
        with self._lock:
            return self.counters.take()
