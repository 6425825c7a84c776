"""(a), (b), (f): what one engine computed, another continues."""

from engines import chat
from engines.chat import Messages
from engines.engine import Vllm
from engines.world import Case, World, loaded, whole_blocks


def keys_only(world: World) -> Case:
    """(f) Without the proxy's hint the plugin still hits by block keys."""
    case = Case("f: loaded by block keys, without the proxy")
    messages = chat.user(chat.prompt("f", 2400))
    first = world.put(world.a, messages)
    loaded(case, world.b, messages)
    _covered(case, first.prompt_tokens)
    return case


def conversation(world: World) -> Case:
    """(a) A conversation on A; A drained; the next turn goes to B."""
    case = Case("a: conversation moved from A to B by the proxy")
    messages, tokens = _first_turn(world, world.a, "a")
    _next_turn(case, world, world.b, messages, tokens)
    return case


def restarted(world: World) -> Case:
    """(b) The same after kill -9 and restart of A."""
    case = Case("b: conversation continued after kill -9 and restart of A")
    messages, tokens = _first_turn(world, world.a, "b")
    world.a.kill()
    world.a.start()
    world.a.wait()
    world.node.wait_for_engines(2)
    case.expect(world.a.external_hits() == 0, "a restarted engine has hits already")
    _next_turn(case, world, world.a, messages, tokens)
    return case


def _first_turn(world: World, engine: Vllm, seed: str) -> tuple[Messages, int]:
    messages = chat.user(chat.prompt(seed, 2400))
    with world.only(engine):
        answer = chat.ask(world.proxy.url, messages)
    assert answer.headers["x-larder-endpoint"] == engine.name, answer.headers
    world.node.settle()
    turn = [*messages, {"role": "assistant", "content": answer.text}, *chat.user(chat.prompt(f"{seed} next", 40))]
    return turn, answer.prompt_tokens


def _next_turn(case: Case, world: World, engine: Vllm, messages: Messages, tokens: int) -> None:
    grants, unused = engine.counter("grants"), engine.counter("grants_unused")
    with world.only(engine):
        answer = loaded(case, engine, messages, url=world.proxy.url)
    case.expect(answer.headers.get("x-larder-endpoint") == engine.name, f"went to {answer.headers}")
    staged = int(answer.headers.get("x-larder-staged-tokens", "0"))
    case.more["staged_tokens"] = staged
    case.expect(staged > 0, "nothing was staged")
    case.expect(engine.counter("grants") == grants + 1, "no lease was pushed")
    case.expect(engine.counter("grants_unused") == unused, "the pushed lease went unused")
    _covered(case, tokens)


def _covered(case: Case, tokens: int) -> None:
    """The whole blocks of the first turn came from outside the engine, all of them."""
    case.expect(case.cached_tokens >= whole_blocks(tokens), f"{case.cached_tokens} of {tokens} tokens cached")
    case.expect(case.external_prefix_cache_hits == case.cached_tokens,
                f"{case.external_prefix_cache_hits} external hits, {case.cached_tokens} cached tokens")
    case.right()
