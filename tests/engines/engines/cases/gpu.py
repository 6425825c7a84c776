"""(v): an engine whose KV cache lies in an emulated GPU, among engines that have it in host memory.

The engine computes on the CPU; its pages are the emulator's "device memory" (``inside/larder_emulated.py``), which only
the driver's functions copy. What one side stored the other loads: both ways of copying give the same bytes.
"""

from engines import chat
from engines.cases.failing import Asking
from engines.engine import Vllm
from engines.program import until
from engines.world import Case, World, against_cold, loaded, whole_blocks


LOOKUP = {"larder_lookup_ms": 1000}
"""A third engine on two cores: the node may not get to answer within 50 ms."""


def by_the_node(world: World) -> Case:
    """(v) The node copies, before and after it is killed and started again, until it is killed in the middle of it."""
    case = Case("v: KV in an emulated GPU, copied by the node")
    world.restart_node(driver=world.driver)
    engine = world.engine("G", set(), driver=world.driver, extra=LOOKUP).wait()
    try:
        _pinned(world)
        _both_ways(case, world, engine, "v")
        world.restart_node(driver=world.driver, engines=3)
        _pinned(world)
        again = Case("")
        _both_ways(again, world, engine, "v again")
        case.faults += [f"after the node's restart: {fault}" for fault in again.faults]
        stats = world.node.stats()
        fetches, saves = stats["fetches_total"], stats["saves_total"]
        case.more |= {"moved_by_node": engine.counter("moved_by_node"), "gpu_fallbacks": engine.counter("gpu_fallbacks"),
                      "fetches": fetches, "saves": saves}
        case.expect(fetches > 0 and saves > 0, f"{fetches} fetches and {saves} saves of the second node")
        case.expect(case.more["moved_by_node"] > fetches + saves, "the first node has moved nothing")
        case.expect(case.more["gpu_fallbacks"] == 0, "the worker copied though the node could")
        _killed_in_mid_fetch(case, world, engine)
    finally:
        engine.kill()
        world.restart_node()
    return case


def by_the_worker(world: World) -> Case:
    """(v) The same by the engine's worker alone."""
    case = Case("v: KV in an emulated GPU, copied by the worker")
    engine = world.engine("C", set(), driver=world.driver, extra={**LOOKUP, "larder_gpu": "copy"}).wait()
    try:
        world.node.wait_for_engines(3)
        _both_ways(case, world, engine, "v copy")
        case.expect(engine.counter("moved_by_node") == 0, "the node copied")
        case.expect(engine.counter("gpu_fallbacks") == 0, "the node was to copy")
    finally:
        engine.kill()
    return case


def _killed_in_mid_fetch(case: Case, world: World, engine: Vllm) -> None:
    """The node's GPU stands still and the node dies: other requests are answered meanwhile, and this one's KV is not lost:
    nothing of a dead process writes, and what it held is still mapped."""
    messages = chat.user(chat.prompt("v killed", 1600))
    first = world.put(world.a, messages)
    world.node.hold_gpu()
    asking = Asking(engine.url, messages)
    until(lambda: world.node.stats()["gpu_moving_bytes"] > 0, 30, "fetch under way")
    other = chat.user(chat.prompt("v meanwhile", 200))
    against_cold(case, engine, other, chat.ask(engine.url, other))
    world.node.kill()
    answer = asking.answer()
    against_cold(case, engine, messages, answer)
    case.expect(answer.cached_tokens == whole_blocks(first.prompt_tokens),
                f"{answer.cached_tokens} of {first.prompt_tokens} tokens of a fetch that was cut off")
    case.expect(engine.counter("gpu_fallbacks") > 0, "nobody says that the worker copied")
    case.expect(engine.counter("load_failures") == 0, "a load failed")
    case.right()


def _pinned(world: World) -> None:
    """Until the node can copy: until then engines do so themselves."""
    world.node.wait_for_engines(3)
    # The host tier and the engine's region.
    until(lambda: world.node.stats()["gpu_pinned_bytes"] >= (512 + 64) << 20, 60, "the node's pinned memory")


def _both_ways(case: Case, world: World, engine: Vllm, seed: str) -> None:
    """A prompt that an engine with its cache in host memory computed, and one the other way round."""
    for giver, taker in ((world.a, engine), (engine, world.b)):
        messages = chat.user(chat.prompt(f"{seed} {giver.name}", 1600))
        first = world.put(giver, messages)
        part = Case("")
        loaded(part, taker, messages)
        case.external_prefix_cache_hits += part.external_prefix_cache_hits
        case.cached_tokens += part.cached_tokens
        case.max_logprob_diff = max(case.max_logprob_diff, part.max_logprob_diff)
        case.cold_vs_cold_diff = max(case.cold_vs_cold_diff, part.cold_vs_cold_diff)
        case.expect(part.external_prefix_cache_hits == whole_blocks(first.prompt_tokens) == part.cached_tokens,
                    f"from {giver.name} to {taker.name}: {part.external_prefix_cache_hits} hits, {part.cached_tokens} of "
                    f"{first.prompt_tokens} tokens cached")
    case.right()
