"""One running constellation: engines A and B on one core each, a cache node, the proxy."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from engines import chat, http_json, install
from engines.chat import Answer, Messages
from engines.node import Node
from engines.program import Failed, until
from engines.proxy import Proxy
from engines.engine import Vllm

NOISE: Final = 1e-5
"""What float32 logprobs of one prompt differ by when only the batch around it does (9.5e-6 measured): the least that
a cold-against-cold difference counts as. Two cold runs in the same circumstances may agree to the last bit."""
FACTOR: Final = 10.0
"""How many times the cold-against-cold difference an answer from loaded KV may differ from a cold one."""
BLOCK: Final = 32


@dataclass
class Case:
    """One proof's figures and what did not hold."""

    name: str
    external_prefix_cache_hits: int = 0
    cached_tokens: int = 0
    max_logprob_diff: float = 0.0
    cold_vs_cold_diff: float = 0.0
    control_difference: float | None = None
    more: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def expect(self, held: bool, what: str) -> None:
        """Notes what did not hold; the other checks go on."""
        if not held:
            self.faults.append(what)

    @property
    def allowed(self) -> float:
        return FACTOR * max(self.cold_vs_cold_diff, NOISE)

    def right(self) -> None:
        """The answers were those of a cold engine."""
        self.expect(self.max_logprob_diff <= self.allowed,
                    f"logprobs differ from cold by {self.max_logprob_diff:.3g}, allowed {self.allowed:.3g}")

    def seen(self) -> None:
        """The fault of a negative control changed the answer beyond doubt."""
        difference = self.control_difference or 0.0
        self.expect(difference > 10 * self.allowed, f"the control's fault was not seen: {difference:.3g}")

    def json(self) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "name": self.name, "external_prefix_cache_hits": self.external_prefix_cache_hits,
            "cached_tokens": self.cached_tokens, "max_logprob_diff": self.max_logprob_diff,
            "cold_vs_cold_diff": self.cold_vs_cold_diff,
        }
        if self.control_difference is not None:
            figures["control_difference"] = self.control_difference
        return {**figures, **self.more}


class World:
    """What the cases work on."""

    def __init__(self, folder: Path, node_binary: Path, proxy_binary: Path, driver: Path) -> None:
        """``driver``: the emulator's library."""
        self.folder, self.driver = folder, driver
        self.bin_dir = install.environment()
        self.model = install.model(self.bin_dir, seed=0)
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.node = Node(node_binary, folder).start()
        cores = sorted(os.sched_getaffinity(0))
        self.a = self.engine("A", {cores[0]})
        self.b = self.engine("B", {cores[-1]}, faults=self.faults)
        self.a.wait()
        self.b.wait()
        self.node.wait_for_engines(2)
        self.proxy = Proxy(proxy_binary, folder, self.node, [self.a, self.b])

    def engine(self, name: str, cores: set[int], **more: Any) -> Vllm:
        """Starts an engine on the node's socket."""
        model = more.pop("model", self.model)
        return Vllm(name, self.bin_dir, model, self.node.socket, self.folder, cores, **more)

    def restart_node(self, disk: Path | None = None, driver: Path | None = None, engines: int = 2, **keys: str) -> None:
        """kill -9, and a node with an empty host tier; the engines find it by themselves."""
        self.node.kill()
        self.node.start(disk=disk, driver=driver, **keys)
        self.node.wait_for_engines(engines)

    @contextmanager
    def only(self, engine: Vllm) -> Iterator[None]:
        """Drains the other engine: its server stops answering, so the proxy's health checks take it out."""
        other = self.b if engine is self.a else self.a
        until(lambda: self._up() == {"A", "B"}, 60, "proxy with both engines")
        other.program.signal_one(signal.SIGSTOP)
        try:
            until(lambda: self._up() == {engine.name}, 30, f"proxy without {other.name}")
            yield
        finally:
            other.program.signal_one(signal.SIGCONT)
            until(lambda: self._up() == {"A", "B"}, 60, f"proxy with {other.name}")

    def _up(self) -> set[str]:
        """The endpoints that the proxy would choose."""
        text, _ = http_json.call("GET", f"{self.proxy.admin}/metrics")
        lines = [line for line in text.splitlines() if line.startswith("larder_endpoint_up{")]
        return {name for name in ("A", "B") for line in lines if f'endpoint="{name}"' in line and line.endswith(" 1")}

    def put(self, engine: Vllm, messages: Messages, **more: Any) -> Answer:
        """Computes a prompt on an engine and waits until the node holds it."""
        answer = chat.ask(engine.url, messages, **more)
        self.node.settle()
        return answer

    def must_run(self) -> None:
        """Every program is alive."""
        self.a.must_run()
        self.b.must_run()
        for program in (self.proxy.program, self.node.program):
            if program is None or not program.running():
                raise Failed(f"a program died\n{program.tail() if program else ''}")


def loaded(case: Case, engine: Vllm, messages: Messages, url: str | None = None, **more: Any) -> Answer:
    """Asks an engine, notes in the case what came from outside it, and judges the answer against cold ones."""
    before = engine.external_hits()
    answer = chat.ask(url or engine.url, messages, **more)
    # The counter follows the engine's step: the answer may be here first.
    for _ in range(20):
        case.external_prefix_cache_hits = engine.external_hits() - before
        if case.external_prefix_cache_hits >= answer.cached_tokens:
            break
        time.sleep(0.1)
    case.cached_tokens = answer.cached_tokens
    against_cold(case, engine, messages, answer, **more)
    return answer


def against_cold(case: Case, engine: Vllm, messages: Messages, answer: Answer, **more: Any) -> Answer:
    """Notes an answer's distance from a cold one of the same engine, and cold ones' distance from each other.

    Three are compared: two computed from nothing, and one whose prompt the engine computed in two steps, its own prefix
    cache between them. Float addition is not associative, so the last one differs in the last bits as an answer from
    loaded KV does, though nothing in it came from anywhere else.
    """
    more.pop("cache_salt", None)
    salt, first = chat.salted(engine.url, messages, **more)
    second = chat.cold(engine.url, messages, **more)
    in_two_steps = chat.ask(engine.url, messages, cache_salt=salt, **more)
    for other in (second, in_two_steps):
        case.cold_vs_cold_diff = max(case.cold_vs_cold_diff, chat.difference(first, other))
    case.max_logprob_diff = max(case.max_logprob_diff, chat.difference(answer, first))
    return first


def whole_blocks(tokens: int) -> int:
    """Tokens of the whole blocks among so many."""
    return tokens // BLOCK * BLOCK
