"""What the node is asked about requests: how long an answer is waited for, and what is coming up from a slower tier.

Everything here is called under the manager's lock.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from larder_vllm import wire
from larder_vllm.ask import Ask, Lease, Verdict
from larder_vllm.counters import Counters
from larder_vllm.link import Session
from larder_vllm.loads import Loads
from larder_vllm.stores import Stores

log = logging.getLogger("vllm.larder")

QUESTIONS_MAX: Final = 4_096
"""Unanswered questions; a node that has so many is not asked more."""
TIMEOUTS_MAX: Final = 3
"""Unanswered questions in a row after which the node counts as silent: nobody waits for it until it speaks."""
GRANT_WAIT_SECONDS: Final = 0.005
"""With a pushed lease in hand, how long the answer is waited for that may go further: a node that is at leisure
answers in a millisecond, and the pushed part is worth more than what it would add."""
PROBE_SECONDS: Final = 1.0
"""A silent node is still asked this often; the answer ends its silence."""
ASK_AGAIN_SECONDS_MIN: Final = 0.004
"""From ``pending`` to the next question: what an NVMe drive needs for a few chunks."""
ASK_AGAIN_SECONDS_MAX: Final = 0.064
"""The pauses double from one to the other: a question is tens of kilobytes, and costs the node a millisecond."""


@dataclass(frozen=True)
class Patience:
    """How long one request may be deferred before it is computed, all its scheduler steps together."""

    answer_seconds: float
    """While a question is unanswered."""
    pending_seconds: float
    """While the node says that chunks are coming up from a slower tier; 0: not at all."""


class Questions:
    """The scheduler's side of looking up."""

    def __init__(
        self, send: Callable[[wire.Message], bool], number: Callable[[], int], counters: Counters, stores: Stores,
        loads: Loads, patience: Patience,
    ) -> None:
        self._send, self._number, self._counters = send, number, counters
        self._stores, self._loads, self._patience = stores, loads, patience
        self._open: dict[int, Ask] = {}
        self._timeouts = 0
        self._probed = float("-inf")

    @property
    def silent(self) -> bool:
        """Whether the node has left so many questions unanswered that nobody waits for it."""
        return self._timeouts >= TIMEOUTS_MAX

    def heard(self) -> None:
        """The node said something, whatever it was."""
        self._timeouts = 0

    def forget(self) -> None:
        """Nothing that was asked will be answered."""
        self._open.clear()

    def ask(self, ask: Ask, session: Session | None, now: float) -> None:
        """Asks for all whole chunks: those surely missed, too, for they make the tag's recipe."""
        ask.verdict = Verdict.MISS
        if not ask.keys or session is None or len(self._open) >= QUESTIONS_MAX:
            return
        silent = self.silent
        if silent and now - self._probed < PROBE_SECONDS:
            return
        limit = wire.LIST_LEN_MAX
        number = self._number()
        sent = self._send(wire.Lookup(
            id=number, keys=ask.keys[:limit], end_tokens=ask.end_tokens[:limit], request=ask.req_id[:1024],
            tag=ask.tag, prompt_tokens=ask.prompt_tokens,
        ))
        if not sent:
            return
        self._open[number] = ask
        self._probed = now
        self._counters.add("lookups")
        if not silent:
            ask.verdict, ask.question = Verdict.ASKED, number

    def decide(self, ask: Ask, session: Session | None, now: float) -> None:
        """The scheduler met an undecided request: asks if nobody has, ends the waiting when its time is over."""
        if ask.verdict is Verdict.UNASKED:
            self.ask(ask, session, now)
        if ask.verdict is not Verdict.ASKED:
            return
        if ask.pending_since is not None and now - ask.pending_since >= self._patience.pending_seconds:
            self._decided(ask, now)
            self._counters.add("pending_timeouts")
            return
        if ask.question is None:
            self._ask_again(ask, session, now)
            return
        limit = self._patience.answer_seconds
        if ask.leases:
            limit = min(limit, GRANT_WAIT_SECONDS)
        if ask.waits(now) < limit and not self.silent:
            return
        if self._decided(ask, now) is Verdict.MISS:
            self._timeouts += 1
            self._counters.add("lookup_timeouts")
            if self._timeouts == TIMEOUTS_MAX:
                log.warning("larder: the cache node is silent: nobody waits for it until it speaks again")

    def _ask_again(self, ask: Ask, session: Session | None, now: float) -> None:
        """Chunks were coming up: asks whether they are there, if it is time to."""
        if now < ask.ask_again_at:
            return
        self.ask(ask, session, now)
        if ask.verdict is not Verdict.ASKED:
            self._decided(ask, now)

    def on_pending(self, question: int, now: float) -> None:
        """What the node holds is coming up from a slower tier: the request goes on waiting, and asks again.

        Not with a pushed lease in hand: what it covers is worth more now than the rest is later.
        """
        ask = self._open.pop(question, None)
        if ask is None or not self._awaited(ask, question):
            return
        self._counters.add("lookups_pending")
        if ask.leases or self._patience.pending_seconds == 0:
            self._decided(ask, now)
            return
        pause = min(ask.pause * 2, ASK_AGAIN_SECONDS_MAX) if ask.pending_since is not None else ASK_AGAIN_SECONDS_MIN
        ask.comes_up(now, pause)

    def on_lease(self, message: wire.Lease, session: Session | None, now: float) -> None:
        """Chunks are pinned: for the request if it still waits, else given back."""
        ask = self._open.pop(message.id, None)
        if ask is None or session is None:
            self._loads.release(message.lease)
            return
        lease = Lease.of(
            message.lease, session.id, ask.keys, message.slots, message.generations, now + message.expires_ms / 1000
        )
        held = len(message.slots)
        self._stores.note(ask.keys[:held], ask.keys[held:])
        awaited = self._awaited(ask, message.id)
        if lease is not None:
            lease.tokens = ask.end_tokens[held - 1]
        if not awaited or lease is None or lease.tokens <= ask.leased_tokens:
            self._loads.release(message.lease)
        else:
            ask.leases.append(lease)
        if awaited:
            self._decided(ask, now)

    def on_miss(self, question: int, now: float) -> None:
        """Nothing is held, or the question failed."""
        ask = self._open.pop(question, None)
        if ask is None:
            return
        self._stores.note([], ask.keys)
        if self._awaited(ask, question):
            self._decided(ask, now)

    @staticmethod
    def _awaited(ask: Ask, question: int) -> bool:
        return ask.question == question and ask.verdict is Verdict.ASKED and not ask.finished

    def _decided(self, ask: Ask, now: float) -> Verdict:
        """Nothing more is waited for: what is leased by now is what there is."""
        verdict = Verdict.LEASED if ask.leases else Verdict.MISS
        ask.answered(verdict, now)
        self._counters.add("missed_tokens", ask.end_tokens[-1] - ask.leased_tokens)
        return verdict
