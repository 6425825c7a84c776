#!/usr/bin/env python3
"""sample.py SOURCE.jsonl[.xz] OUT.jsonl.xz [--seed 1] [--count 120]

Takes COUNT sessions of the agentic coding trace at random by SEED, keeps their lines and their order unchanged,
and prints the figures that README.md quotes. Nothing about the sample is chosen by what a replay of it gives.
"""
import argparse
import json
import lzma
import random


def requests(entries):
    for entry in entries:
        if "requests" in entry:
            yield from requests(entry["requests"])
        else:
            yield entry


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=120)
    args = parser.parse_args()

    opener = lzma.open if args.source.endswith(".xz") else open
    with opener(args.source, "rt") as source:
        lines = [line for line in source if line.strip()]
    chosen = sorted(random.Random(args.seed).sample(range(len(lines)), args.count))
    with lzma.open(args.out, "wt", preset=9 | lzma.PRESET_EXTREME) as out:
        out.writelines(lines[i] for i in chosen)

    count = tokens = unique = largest = 0
    for i in chosen:
        session = json.loads(lines[i])
        blocks = set()
        for request in requests(session["requests"]):
            count += 1
            tokens += request["in"]
            largest = max(largest, request["in"])
            for start, length in request["hash_ranges"]:
                blocks.update(range(start, start + length))
        unique += len(blocks) * session["block_size"]
    print(f"{len(chosen)} sessions of {len(lines)}, {count} requests, input tokens: mean {tokens // count}, largest {largest}")
    print(f"unique block tokens {unique}, {100 * unique / tokens:.1f} % of all input tokens")


main()
