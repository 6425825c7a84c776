"""Do conversations return to the real engine that holds them, and do two engines share the work?

Two llama-server behind a proxy. The engines' own count of cached tokens is what is believed. The same is asked of a
proxy that sends in turn, where it must not be so: a check that passes there too would say nothing."""

import argparse
import json
import pathlib
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

CONVERSATIONS = 8
TURNS = 5
# Of the prompt of the turn before, what the engine must have kept: all but the last tokens, which are read anew.
CACHED_SHARE = 0.9
WORDS_A_TURN = 80
# One slot for each conversation, if all came to one engine.
CONTEXT, SLOTS = 65_536, 8
START_MAX_S = 60

CONFIG = """
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
log = "warn"
[routing]
policy = "{policy}"
seed = 1
[[pool]]
model = "tiny"
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def call(url, body=None):
    """The answer's headers and JSON, or the last event's JSON with usage in it."""
    request = urllib.request.Request(url, body and json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
        if not answer.headers["content-type"].startswith("text/event-stream"):
            return answer.headers, json.loads(text)
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        assert text.rstrip().endswith("data: [DONE]"), text[-300:]
        said = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
        usage = [e["usage"] for e in events if e.get("usage")][-1]
        return answer.headers, {"choices": [{"message": {"content": said}}], "usage": usage}


def await_ok(url, process):
    for _ in range(START_MAX_S * 10):
        if process.poll() is not None:
            sys.exit(f"{process.args[0]} ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    sys.exit(f"{url} does not answer")


def start_engine(server, model):
    port = free_port()
    command = [server, "-m", model, "--host", "127.0.0.1", "--port", str(port), "-c", str(CONTEXT), "-np", str(SLOTS),
               "--no-kv-unified", "-t", "1", "--device", "none", "-ngl", "0", "--jinja", "--metrics", "--slots",
               "--alias", "tiny", "--offline", "--no-webui", "--cache-ram", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    await_ok(f"http://127.0.0.1:{port}/health", process)
    return process, port


def start_proxy(proxy, folder, policy, ports):
    config = pathlib.Path(folder) / f"{policy}.toml"
    endpoints = "".join(f'[[pool.endpoint]]\nurl = "http://127.0.0.1:{port}"\nkv_tokens = {CONTEXT}\n' for port in ports)
    config.write_text(CONFIG.format(policy=policy) + endpoints)
    process = subprocess.Popen([proxy, "--config", str(config)], stdout=subprocess.PIPE, text=True)
    address, admin = (re.search(r"http://(\S+)", process.stdout.readline())[1] for _ in range(2))
    await_ok(f"http://{admin}/readyz", process)
    return process, address


def words(chance, count):
    return " ".join("".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(count))


def talk(address, salt):
    """All conversations, turn by turn, those of one turn in mixed order. Returns what went wrong, and who served."""
    chance = random.Random(salt)
    talks = [[{"role": "system", "content": f"{salt}-{n} " + words(chance, WORDS_A_TURN)}] for n in range(CONVERSATIONS)]
    served, before, wrong, hits, tokens = [None] * CONVERSATIONS, [0] * CONVERSATIONS, [], 0, 0
    for turn in range(TURNS):
        for n in chance.sample(range(CONVERSATIONS), CONVERSATIONS):
            talks[n].append({"role": "user", "content": words(chance, WORDS_A_TURN)})
            body = {"model": "tiny", "messages": talks[n], "max_tokens": 8, "temperature": 0, "seed": 1}
            if n % 2:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            headers, answer = call(f"http://{address}/v1/chat/completions", body)
            talks[n].append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
            endpoint, usage = headers["x-larder-endpoint"], answer["usage"]
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            hits, tokens = hits + cached, tokens + usage["prompt_tokens"]
            if turn and endpoint != served[n]:
                wrong.append(f"conversation {n}, turn {turn}: {endpoint} after {served[n]}")
            if turn and cached < CACHED_SHARE * before[n]:
                wrong.append(f"conversation {n}, turn {turn}: {cached} tokens cached of {before[n]} before")
            served[n], before[n] = endpoint, usage["prompt_tokens"]
    counts = {endpoint: served.count(endpoint) for endpoint in set(served)}
    return wrong, counts, hits / tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--proxy", required=True)
    args = parser.parse_args()
    processes, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        try:
            ports = []
            for _ in range(2):
                process, port = start_engine(args.server, args.model)
                processes.append(process)
                ports.append(port)
            for salt, policy in enumerate(["larder", "round_robin"]):
                process, address = start_proxy(args.proxy, folder, policy, ports)
                processes.append(process)
                wrong, counts, share = talk(address, salt)
                print(f"{policy}: conversations by engine {sorted(counts.values())}, {100 * share:.1f} % of the prompt "
                      f"tokens cached by the engines' count, {len(wrong)} turns elsewhere or cold")
                if policy == "larder":
                    for line in wrong:
                        print("wrong:", line)
                    if len(counts) < 2 or min(counts.values()) < CONVERSATIONS // 4:
                        print(f"wrong: the load does not spread: {counts}")
                        failed = True
                    failed = failed or bool(wrong)
                elif not wrong:
                    print("wrong: in turn, conversations return too, so that returning proves nothing")
                    failed = True
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
