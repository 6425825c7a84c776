"""(v): an engine whose KV cache lies in an emulated GPU, among engines that have it in host memory.

The engine computes on the CPU; its pages are the emulator's "device memory" (``inside/larder_emulated.py``), which only
the driver's functions copy. What one side stored the other loads: both ways of copying give the same bytes.
"""

from engines import chat
from engines.engine import Vllm
from engines.program import until
from engines.world import Case, World, loaded, whole_blocks


def by_the_node(world: World) -> Case:
    """(v) The node copies, before and after it is killed and started again."""
    case = Case("v: KV in an emulated GPU, copied by the node")
    world.restart_node(driver=world.driver)
    engine = world.engine("G", set(), driver=world.driver).wait()
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
    finally:
        engine.kill()
    return case


def by_the_worker(world: World) -> Case:
    """(v) The same by the engine's worker alone."""
    case = Case("v: KV in an emulated GPU, copied by the worker")
    engine = world.engine("C", set(), driver=world.driver, extra={"larder_gpu": "copy"}).wait()
    try:
        world.node.wait_for_engines(3)
        before = world.node.stats()["fetches_total"]
        _both_ways(case, world, engine, "v copy")
        case.expect(engine.counter("moved_by_node") == 0 and world.node.stats()["fetches_total"] == before,
                    "the node copied")
    finally:
        engine.kill()
        world.restart_node()
    return case


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
