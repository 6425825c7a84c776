"""Conversations with an engine, and what their answers say."""

import itertools
import math
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from engines import http_json

TOP_LOGPROBS: Final = 5
MAX_TOKENS: Final = 8
WORDS: Final = (
    "alpha beta def return import class self os path join 42 ( ) : None for in range print lambda yield "
    "value key items sorted while try except raise with open read write"
).split()
_salts = itertools.count()

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """What came back: one position per token, each with the logprobs of its likeliest tokens."""

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[dict[str, float], ...]
    cached_tokens: int
    prompt_tokens: int
    headers: dict[str, str] = field(default_factory=dict, compare=False)


def prompt(seed: object, words: int) -> str:
    """Text that is the same for the same seed: about 1.3 tokens a word."""
    generator = random.Random(f"larder {seed}")
    return " ".join(generator.choice(WORDS) for _ in range(words))


def user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def body(messages: Messages, model: str = "tiny", **more: Any) -> dict[str, Any]:
    """A request's body: greedy, with logprobs."""
    return {
        "model": model, "messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0, "logprobs": True,
        "top_logprobs": TOP_LOGPROBS, **more,
    }


def ask(url: str, messages: Messages, **more: Any) -> Answer:
    """One answer of an engine or of the proxy before it."""
    answer, headers = http_json.call("POST", f"{url}/v1/chat/completions", body(messages, **more))
    choice, usage = answer["choices"][0], answer["usage"]
    positions = choice["logprobs"]["content"]
    return Answer(
        text=choice["message"]["content"] or "",
        tokens=tuple(position["token"] for position in positions),
        logprobs=tuple({top["token"]: top["logprob"] for top in position["top_logprobs"]} for position in positions),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        prompt_tokens=usage["prompt_tokens"],
        headers=headers,
    )


def salted(url: str, messages: Messages, **more: Any) -> tuple[str, Answer]:
    """The same prompt computed from nothing: a salt of its own keeps every cache out. Checked, not believed."""
    salt = f"cold {next(_salts)} {random.randrange(2**64)}"
    answer = ask(url, messages, cache_salt=salt, **more)
    if answer.cached_tokens:
        raise AssertionError(f"a cold answer with {answer.cached_tokens} cached tokens")
    return salt, answer


def cold(url: str, messages: Messages, **more: Any) -> Answer:
    """The answer of ``salted``."""
    return salted(url, messages, **more)[1]


def together(jobs: Sequence[Any], concurrency: int) -> list[Any]:
    """Runs callables, so many at a time; results in their order."""
    with ThreadPoolExecutor(concurrency) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]


def difference(one: Answer, other: Answer) -> float:
    """The largest difference of a logprob between two answers.

    Positions are compared until the answers chose different tokens: after that their contexts differ. A token that is
    among one's likeliest and not the other's counts with the least that the other lists, which it cannot exceed.
    """
    worst = 0.0
    for at, (mine, theirs) in enumerate(zip(one.logprobs, other.logprobs)):
        if not mine or not theirs:
            return math.inf
        for token, value in mine.items():
            worst = max(worst, abs(value - theirs.get(token, min(theirs.values()))))
        for token, value in theirs.items():
            worst = max(worst, abs(value - mine.get(token, min(mine.values()))))
        if one.tokens[at] != other.tokens[at]:
            return worst
    return math.inf if len(one.tokens) != len(other.tokens) else worst
