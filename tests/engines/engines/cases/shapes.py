"""(s): engines of other shapes: two ranks with chunks of two blocks; and one that may not share."""

from engines import chat
from engines.world import BLOCK, Case, World, loaded, whole_blocks

CHUNK_BLOCKS = 2


def two_ranks(world: World) -> Case:
    """(s) Tensor parallelism 2 and chunks of two blocks, loaded whole and from the middle of a chunk."""
    case = Case("s: two ranks, chunks of two blocks")
    # Its ranks spin for each other on the cores that its scheduler and the node need: no machine for 50 ms.
    extra = {"blocks_per_chunk": CHUNK_BLOCKS, "larder_lookup_ms": 1000}
    engine = world.engine("T", set(), arguments=("--tensor-parallel-size", "2"), extra=extra).wait()
    try:
        world.node.wait_for_engines(3)
        text = chat.prompt("s", 1600)
        messages = chat.user(text)
        first = world.put(engine, messages)
        engine.forget()
        loaded(case, engine, messages)
        chunk = CHUNK_BLOCKS * BLOCK
        case.expect(case.external_prefix_cache_hits == first.prompt_tokens // chunk * chunk, "not all chunks were loaded")
        case.right()
        # A beginning that ends inside a chunk is in the engine's own cache already: the load starts in its middle.
        engine.forget()
        beginning = _odd_beginning(engine.url, text)
        inside = Case("")
        loaded(inside, engine, messages)
        own = inside.cached_tokens - inside.external_prefix_cache_hits
        case.more["own_tokens_before_the_middle"] = own
        case.expect(own >= beginning and own // BLOCK % CHUNK_BLOCKS == 1, f"the load started at {own} tokens")
        case.expect(inside.external_prefix_cache_hits > 0,
                    f"nothing was loaded from the middle ({engine.counter('lookup_timeouts')} lookups timed out)")
        case.expect(inside.max_logprob_diff <= inside.allowed, f"wrong from the middle: {inside.max_logprob_diff:.3g}")
    finally:
        engine.kill()
    return case


def _odd_beginning(url: str, text: str) -> int:
    """Computes a beginning of the text with an odd number of whole blocks; returns their tokens."""
    words = text.split(" ")
    for count in range(500, 560, 4):
        answer = chat.ask(url, chat.user(" ".join(words[:count])), max_tokens=1)
        # Of the prompt's end the template's closing tokens are not the longer prompt's: a margin of one block's part.
        common = whole_blocks(answer.prompt_tokens - 12)
        if common == whole_blocks(answer.prompt_tokens) and common // BLOCK % CHUNK_BLOCKS == 1:
            return common
    raise AssertionError("no beginning of an odd number of blocks")


def refused(world: World) -> Case:
    """(s) A configuration that the plugin refuses: the engine serves as if alone."""
    case = Case("s: refused configuration runs plain")
    engine = world.engine("R", set(), policy="fail").wait()
    try:
        messages = chat.user(chat.prompt("s refused", 800))
        world.put(world.a, messages)
        loaded(case, engine, messages)
        case.expect(case.cached_tokens == 0, "a refused engine was given KV")
        case.right()
        again = chat.ask(engine.url, messages)
        case.expect(again.cached_tokens > 0, "its own prefix cache does not work")
        lines = engine.log.read_text(errors="replace").count("larder: not sharing KV")
        case.expect(lines >= 1, "its log does not say why")
    finally:
        engine.kill()
    return case
