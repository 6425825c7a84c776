"""(c), (d), (h): what goes wrong costs time and never an answer."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from engines import chat
from engines.chat import Answer, Messages
from engines.program import until
from engines.world import Case, World, against_cold, loaded, whole_blocks

ANSWER_SECONDS_MAX = 60.0


class Asking:
    """A request under way on a thread."""

    def __init__(self, url: str, messages: Messages) -> None:
        self._answer: Answer | None = None
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._ask, args=(url, messages), daemon=True)
        self._thread.start()

    def _ask(self, url: str, messages: Messages) -> None:
        try:
            self._answer = chat.ask(url, messages)
        except BaseException as fault:
            self._fault = fault

    def answer(self) -> Answer:
        self._thread.join(ANSWER_SECONDS_MAX)
        if self._fault is not None:
            raise self._fault
        assert self._answer is not None, f"no answer within {ANSWER_SECONDS_MAX} s"
        return self._answer


def _during_a_load(case: Case, world: World, messages: Messages, happens: Callable[[], None]) -> None:
    """B loads what A stored; half-way through its copy, something happens."""
    world.put(world.a, messages)
    before = world.b.external_hits()
    hold, held = world.faults / "hold", world.faults / "held"
    hold.touch()
    try:
        asking = Asking(world.b.url, messages)
        until(held.exists, 30, "load of B half-way")
        happens()
    finally:
        hold.unlink()
    answer = asking.answer()
    held.unlink()
    case.cached_tokens = answer.cached_tokens
    case.external_prefix_cache_hits = world.b.external_hits() - before
    against_cold(case, world.b, messages, answer)
    case.right()


def node_killed(world: World) -> Case:
    """(c) The node is killed during a load."""
    case = Case("c: node killed during a load")
    _during_a_load(case, world, chat.user(chat.prompt("c killed", 2000)), world.node.kill)
    alone = chat.user(chat.prompt("c without a node", 600))
    answer = chat.ask(world.b.url, alone)
    case.expect(answer.cached_tokens == 0, "cached tokens without a node")
    against_cold(case, world.b, alone, answer)
    case.right()
    world.node.start()
    world.node.wait_for_engines(2)
    return case


def node_stopped(world: World) -> Case:
    """(c) The node is SIGSTOPped during a load; requests meanwhile are answered, and soon."""
    case = Case("c: node stopped during a load")
    node = world.node.program
    assert node is not None
    timeouts = world.b.counter("lookup_timeouts")
    _during_a_load(case, world, chat.user(chat.prompt("c stopped", 2000)), lambda: node.signal(signal.SIGSTOP))
    slowest = 0.0
    for place in range(5):
        messages = chat.user(chat.prompt(f"c meanwhile {place}", 60))
        begun = time.monotonic()
        answer = chat.ask(world.b.url, messages)
        slowest = max(slowest, time.monotonic() - begun)
        case.expect(answer.cached_tokens == 0, "cached tokens from a stopped node")
    case.more["slowest_meanwhile_s"] = round(slowest, 3)
    case.expect(slowest < 10.0, f"a request took {slowest:.1f} s while the node was stopped")
    case.expect(world.b.counter("lookup_timeouts") > timeouts, "no lookup timed out")
    node.signal(signal.SIGCONT)
    messages = chat.user(chat.prompt("c after", 1000))
    again = Case("")
    world.put(world.a, messages)
    loaded(again, world.b, messages)
    case.expect(again.external_prefix_cache_hits > 0, "no load after the node went on")
    return case


def flipped(world: World) -> Case:
    """(d) A bit flipped in the slab: quarantined, recomputed, counted, and healed."""
    case = Case("d: a bit flipped in the slab")
    world.restart_node()
    messages = chat.user(chat.prompt("d", 2000))
    first = world.put(world.a, messages)
    held = world.node.stats()["held_chunks"]
    world.node.flip(nth=held // 2)
    loaded(case, world.b, messages)
    case.right()
    stats = world.node.stats()
    case.more["corrupt_chunks"] = stats["corrupt_chunks_total"]
    case.expect(stats["corrupt_chunks_total"] == 1, f"{stats['corrupt_chunks_total']} corrupt chunks counted")
    case.expect(case.cached_tokens < whole_blocks(first.prompt_tokens), "the flipped chunk was loaded")
    world.node.settle()
    world.b.forget()
    healed = Case("")
    loaded(healed, world.b, messages)
    case.expect(healed.cached_tokens >= whole_blocks(first.prompt_tokens) - 32,
                f"not healed: {healed.cached_tokens} cached")
    case.expect(healed.max_logprob_diff <= case.allowed, "wrong after healing")
    return case


def stopped_client(world: World) -> Case:
    """(h) A client SIGSTOPped in mid-copy past its lease's expiry never reads another key's bytes."""
    case = Case("h: client stopped in mid-copy past its lease")
    world.restart_node(host="128MiB", lease_ttl='"3s"')
    messages = chat.user(chat.prompt("h", 5200))
    world.put(world.a, messages)
    before = world.b.external_hits()
    (world.faults / "stop").touch()
    asking = Asking(world.b.url, messages)
    stopped: Path = world.faults / "stopped"
    until(stopped.exists, 30, "worker of B stopped half-way through a load")
    try:
        time.sleep(4.0)
        for place in range(14):
            chat.ask(world.a.url, chat.user(chat.prompt(f"h other {place}", 5200)))
        world.node.settle()
        stats = world.node.stats()
    finally:
        os.kill(int(stopped.read_text()), signal.SIGCONT)
    case.more |= {"evicted_chunks": stats["evicted_chunks_total"], "open_loads": stats["open_loads"]}
    case.expect(stats["evicted_chunks_total"] > 0, "nothing was evicted meanwhile: the slab was never short")
    case.expect(stats["open_loads"] == 1, f"{stats['open_loads']} open loads while B was stopped")
    answer = asking.answer()
    stopped.unlink()
    case.cached_tokens = answer.cached_tokens
    case.external_prefix_cache_hits = world.b.external_hits() - before
    case.expect(case.external_prefix_cache_hits > 0, "nothing was loaded")
    against_cold(case, world.b, messages, answer)
    case.right()
    return case
