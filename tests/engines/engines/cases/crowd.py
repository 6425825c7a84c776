"""(i): many requests at once; and the time to the first token, cold against loaded."""

import statistics
import time
from functools import partial

from engines import chat, http_json
from engines.chat import Answer, Messages
from engines.engine import Vllm
from engines.world import Case, World

CONCURRENCY = 16
LONG_WORDS = 6_950
"""About 8,000 tokens."""


def _tree() -> list[Messages]:
    """A hundred prompts that branch: 4 roots, 5 branches each, 5 leaves each, of mixed lengths."""
    prompts: list[Messages] = []
    for root in range(4):
        beginning = chat.prompt(f"i root {root}", 60 + 240 * root)
        for branch in range(5):
            middle = chat.prompt(f"i branch {root} {branch}", 20 + 90 * branch)
            for leaf in range(5):
                end = chat.prompt(f"i leaf {root} {branch} {leaf}", 5 + 37 * leaf)
                prompts.append(chat.user(f"{beginning} {middle} {end}"))
    return prompts


def hundred(world: World) -> Case:
    """(i) A hundred requests of mixed lengths and branching prompts at once, all compared with cold."""
    case = Case("i: a hundred branching requests at once")
    prompts = _tree()
    engines = [world.a, world.b]
    before = [engine.external_hits() for engine in engines]
    counters = ("missed_tokens", "granted_tokens", "grant_tokens_unused", "load_failures")
    counted = {name: sum(engine.counter(name) for engine in engines) for name in counters}
    colds = [_answers(prompts, engines, cold=True) for _ in range(2)]
    _answers(prompts, engines, cold=False)
    world.node.settle()
    for engine in engines:
        engine.forget()
    # Each prompt goes to the engine that has not seen it, then once more through the proxy.
    crossed = _answers(prompts, engines[::-1], cold=False)
    for engine in engines:
        engine.forget()
    proxied = chat.together([partial(chat.ask, world.proxy.url, messages) for messages in prompts], CONCURRENCY)
    case.cold_vs_cold_diff = max(map(chat.difference, colds[0], colds[1]))
    for answers in (crossed, proxied):
        case.max_logprob_diff = max(case.max_logprob_diff, *map(chat.difference, answers, colds[0]))
    case.external_prefix_cache_hits = sum(engine.external_hits() for engine in engines) - sum(before)
    case.cached_tokens = sum(answer.cached_tokens for answer in crossed)
    for name in counters:
        case.more[name] = sum(engine.counter(name) for engine in engines) - counted[name]
    case.expect(case.cached_tokens > 0.5 * sum(answer.prompt_tokens for answer in crossed), "less than half was cached")
    case.expect(case.more["load_failures"] == 0, "loads failed")
    case.right()
    return case


def _answers(prompts: list[Messages], engines: list[Vllm], cold: bool) -> list[Answer]:
    ask = chat.cold if cold else chat.ask
    return chat.together(
        [partial(ask, engines[place % 2].url, messages) for place, messages in enumerate(prompts)], CONCURRENCY
    )


def first_token(world: World) -> dict[str, float]:
    """Seconds to the first token of an 8,000-token prompt, cold and loaded, and their ratio."""
    cold, warm = [], []
    tokens = 0
    for turn in range(3):
        messages = chat.user(chat.prompt(f"ttft {turn}", LONG_WORDS))
        tokens = world.put(world.a, messages).prompt_tokens
        body = chat.body(messages, stream=True)
        url = f"{world.b.url}/v1/chat/completions"
        cold.append(http_json.first_byte_seconds(url, {**body, "cache_salt": f"ttft {turn} {time.time_ns()}"}))
        warm.append(http_json.first_byte_seconds(url, body))
    seconds = statistics.median(cold), statistics.median(warm)
    return {"ttft_cold_s": round(seconds[0], 4), "ttft_loaded_s": round(seconds[1], 4),
            "ttft_prompt_tokens": tokens, "ttft_ratio": round(seconds[0] / seconds[1], 2)}
