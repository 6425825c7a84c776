#!/usr/bin/env python3
"""Writes nine made-up workloads in Mooncake's trace format, half an hour each, the same bytes every time.

They are what the routing policy was judged on but not tuned on: see "Workloads that nothing was tuned on" in
bench/README.md. A block is 512 tokens. Usage: bench/traces/synthetic.py FOLDER
"""

import itertools
import json
import pathlib
import random
import sys

SECONDS = 1800
BLOCK_TOKENS = 512


class Blocks:
    """Numbers of blocks that no other prompt has."""

    def __init__(self):
        self.next = 0

    def new(self, count):
        ids = list(range(self.next, self.next + count))
        self.next += count
        return ids


def zipf(count, exponent):
    return list(itertools.accumulate(1 / (i + 1) ** exponent for i in range(count)))


def system_prompt():
    """One giant shared prompt, tails of one or two blocks."""
    draw, blocks, rows, t = random.Random(1), Blocks(), [], 0
    shared = blocks.new(40)
    while t < SECONDS:
        t += draw.expovariate(3.0)
        rows.append((t, shared + blocks.new(draw.choice([1, 1, 2])), draw.randint(1, 512), 100))
    return rows


def unique():
    """No prompt like another."""
    draw, blocks, rows, t = random.Random(2), Blocks(), [], 0
    while t < SECONDS:
        t += draw.expovariate(2.0)
        length = max(1, min(200, int(draw.lognormvariate(2, 1.2))))
        rows.append((t, blocks.new(length), draw.randint(1, 512), 100))
    return rows


def conversations(seed, rate, turns, first, more, think, burst=None, shared=0):
    """Chats that begin at `rate` a second; with `burst` (period, length) only in the first `length` seconds of each."""
    draw, blocks, rows, t = random.Random(seed), Blocks(), [], 0
    system = blocks.new(shared)
    while t < SECONDS:
        t += draw.expovariate(rate)
        if burst and (t % burst[0]) > burst[1]:
            continue
        ids, at = system + blocks.new(first(draw)), t
        for _ in range(turns(draw)):
            if at > SECONDS:
                break
            rows.append((at, list(ids), draw.randint(1, 512), 200))
            ids += blocks.new(more(draw))
            at += think(draw)
    return rows


def bursty():
    return conversations(
        3, 1.0, lambda d: 1 + int(d.expovariate(1 / 6)), lambda d: max(1, int(d.lognormvariate(2, 1))),
        lambda d: d.randint(1, 4), lambda d: 5 + d.expovariate(1 / 30), burst=(120, 20), shared=2)


def chat():
    return conversations(
        4, 0.25, lambda d: 1 + int(d.expovariate(1 / 10)), lambda d: max(1, int(d.lognormvariate(2, 1))),
        lambda d: d.randint(1, 3), lambda d: 5 + d.expovariate(1 / 40), shared=4)


def long_chat():
    return conversations(
        5, 0.06, lambda d: 5 + int(d.expovariate(1 / 20)), lambda d: d.randint(20, 120),
        lambda d: d.randint(1, 8), lambda d: 2 + d.expovariate(1 / 15))


def documents(seed, count, exponent, length, rate):
    """One question each about documents whose popularity is Zipf's."""
    draw, blocks, rows, t = random.Random(seed), Blocks(), [], 0
    system = blocks.new(2)
    texts = [blocks.new(draw.randint(length // 2, 2 * length)) for _ in range(count)]
    weights = zipf(count, exponent)
    while t < SECONDS:
        t += draw.expovariate(rate)
        text = draw.choices(texts, cum_weights=weights)[0]
        rows.append((t, system + text + blocks.new(1), draw.randint(1, 512), 100))
    return rows


def mixed():
    """Short prompts behind a shared one, and now and then a huge one of its own."""
    draw, blocks, rows, t = random.Random(8), Blocks(), [], 0
    shared = blocks.new(4)
    while t < SECONDS:
        t += draw.expovariate(3.0)
        if draw.random() < 0.08:
            rows.append((t, blocks.new(draw.randint(60, 200)), 100, 100))
        else:
            rows.append((t, shared + blocks.new(draw.choice([1, 2])), 100, 100))
    return rows


def tenants():
    """Thirty system prompts by Zipf, another one hot every 200 s."""
    draw, blocks, rows, t = random.Random(9), Blocks(), [], 0
    prompts = [blocks.new(draw.randint(5, 60)) for _ in range(30)]
    weights = zipf(30, 1)
    while t < SECONDS:
        hot = int(t / 200) % 30
        t += draw.expovariate(3.0)
        prompt = prompts[hot] if draw.random() < 0.4 else draw.choices(prompts, cum_weights=weights)[0]
        rows.append((t, prompt + blocks.new(draw.choice([1, 1, 2, 3])), draw.randint(1, 512), 100))
    return rows


WORKLOADS = {
    "sysprompt": system_prompt,
    "unique": unique,
    "bursty": bursty,
    "chat": chat,
    "longchat": long_chat,
    "rag": lambda: documents(6, 400, 0.9, 16, 2.0),
    "hotdocs": lambda: documents(7, 60, 1.3, 40, 2.0),
    "mixed": mixed,
    "tenants": tenants,
}


def write(path, rows):
    """`rows`: (seconds, blocks, tokens in the last block, tokens of the answer)."""
    with open(path, "w", encoding="ascii") as out:
        for at, ids, tail, answer in sorted(rows, key=lambda row: row[0]):
            length = (len(ids) - 1) * BLOCK_TOKENS + max(1, tail)
            row = {"timestamp": int(at * 1000), "input_length": length, "output_length": answer, "hash_ids": ids}
            out.write(json.dumps(row) + "\n")


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 64)
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in WORKLOADS.items():
        write(folder / f"{name}.jsonl", make())
        print(folder / f"{name}.jsonl")


if __name__ == "__main__":
    main()
