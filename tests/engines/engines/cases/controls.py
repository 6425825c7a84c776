"""(e): the negative controls. A proof that cannot fail proves nothing: each fault here must be seen."""

from engines import chat
from engines.world import Case, World, against_cold

FLIPS_PER_CHUNK = 8
FLIPPED_CHUNKS = 24


def checksums_off(world: World) -> Case:
    """(e) Checksums off and KV changed: the logprobs change."""
    case = Case("e: control: checksums off and KV flipped")
    world.restart_node(verify='"off"')
    messages = chat.user(chat.prompt("e off", 1600))
    world.put(world.a, messages)
    chunks = min(world.node.stats()["held_chunks"], FLIPPED_CHUNKS)
    for nth in range(chunks):
        for place in range(FLIPS_PER_CHUNK):
            # The sign of one float32; a flipped exponent would make infinities.
            world.node.flip(nth=nth, byte=3 + 4 * (127 + 1021 * place), bit=7)
    _control(case, world, messages)
    world.restart_node()
    return case


def wrong_block(world: World) -> Case:
    """(e) One key mapped to the wrong block: the logprobs change, whatever the checksums say.

    The block must be another prompt's. Two blocks of one prompt in each other's place change nothing: every key
    carries its own position, and attention is a sum over its keys in any order.
    """
    case = Case("e: control: one key mapped to the wrong block")
    world.restart_node()
    messages = chat.user(chat.prompt("e swap", 1600))
    world.put(world.a, messages)
    mine = world.node.stats()["held_chunks"]
    world.put(world.a, chat.user(chat.prompt("e other", 1600)))
    both = world.node.stats()["held_chunks"]
    world.node.swap(mine // 2, mine + (both - mine) // 4)
    _control(case, world, messages)
    world.restart_node()
    return case


def _control(case: Case, world: World, messages: chat.Messages) -> None:
    before = world.b.external_hits()
    faulty = chat.ask(world.b.url, messages)
    case.cached_tokens = faulty.cached_tokens
    case.external_prefix_cache_hits = world.b.external_hits() - before
    case.expect(case.external_prefix_cache_hits > 0, "the faulty KV was not loaded")
    cold = against_cold(Case(""), world.b, messages, faulty)
    again = chat.cold(world.b.url, messages)
    case.cold_vs_cold_diff = chat.difference(cold, again)
    case.control_difference = case.max_logprob_diff = chat.difference(faulty, cold)
    case.seen()
    world.b.forget()  # it computed with the faulty KV
