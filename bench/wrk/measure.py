"""Measures what a request costs in Larder's proxy, in pingora's own (the floor) and in nginx, side by side.

Targets take turns, so that what else the machine does meets all of them. CPU seconds of the proxy's whole process
tree for each 1000 requests is the figure to trust on a shared machine; requests a second and times are not."""

import argparse
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")
# The index is filled to this many elements before anything is measured.
INDEX_ELEMENTS = 1_000_000
FILL_MAX_S = 300
# Streams whose first byte is timed for each run.
STREAMS = 40
# The targets that are Larder's proxy: the one built, and one to compare it with.
LARDERS = ("larder", "before")
# The bars: CPU of Larder over CPU of the floor, by size of the prompt in KB.
BARS = {1: 0.90, 32: 0.85, 400: 0.95}

LARDER = """
listen = "127.0.0.1:{port}"
admin = "127.0.0.1:{admin}"
log = "warn"
threads = {threads}
[routing]
policy = "larder"
[[pool]]
model = "mock"
{endpoints}
"""
NGINX = """
daemon off; worker_processes {threads}; pid {dir}/pid; error_log {dir}/error warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_max_body_size 64m; client_body_buffer_size 8m; keepalive_requests 1000000000;
  client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
  scgi_temp_path {dir}/s;
  upstream engines {{ {upstreams} keepalive 512; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://engines; proxy_http_version 1.1;
    proxy_set_header Connection ""; proxy_buffering off; }} }}
}}
"""


def options():
    parser = argparse.ArgumentParser(prog="bench/wrk/run", description=__doc__)
    parser.add_argument("--json", metavar="F", help="write every run to this file")
    parser.add_argument("--seconds", type=float, default=5, help="seconds for each run (default 5)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", default="1,32,400", help="prompt sizes, KB")
    parser.add_argument("--connections", default="16,64")
    parser.add_argument("--bodies", default="plain,code", help="plain: nothing to escape; code: many escapes")
    parser.add_argument("--targets", default="floor,larder,nginx")
    parser.add_argument("--threads", type=int, default=2, help="threads of each proxy")
    for program in ("larder", "floor", "answerer"):
        parser.add_argument("--" + program, metavar="PROGRAM", help="built by bench/wrk/run")
    parser.add_argument("--before", metavar="PROGRAM", help="an earlier larder-proxy, the target `before`")
    return parser.parse_args()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def await_port(port, process):
    for _ in range(600):
        if process.poll() is not None:
            sys.exit(f"{process.args[0]} ended with {process.returncode}")
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"{process.args[0]} does not listen on port {port}")


class Target:
    """A proxy under measurement."""

    def __init__(self, name, port, command):
        self.name, self.port = name, port
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        await_port(port, self.process)

    def tree(self):
        """Its process and the children of it."""
        pid = self.process.pid
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def cpu_s(self):
        ticks = 0
        for pid in self.tree():
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS

    def rss_mb(self):
        kb = 0
        for pid in self.tree():
            kb += int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1])
        return kb / 1024


def start(args, folder, engines, targets):
    """Starts the targets; returns the ports of Larder's admin listeners."""
    upstreams = [f"127.0.0.1:{port}" for port in engines]
    admins = []
    for name in args.targets.split(","):
        port = free_port()
        if name == "floor":
            command = [args.floor, str(port), str(args.threads), ",".join(upstreams)]
        elif name in LARDERS:
            admins.append(free_port())
            endpoints = "".join(f'[[pool.endpoint]]\nurl = "http://{u}"\n' for u in upstreams)
            config = folder / f"{name}.toml"
            text = LARDER.format(port=port, admin=admins[-1], threads=args.threads, endpoints=endpoints)
            config.write_text(text)
            program = args.larder if name == "larder" else args.before
            command = [program, "--config", str(config)]
        elif name == "nginx":
            config = folder / "nginx.conf"
            servers = "".join(f"server {u}; " for u in upstreams)
            text = NGINX.format(port=port, threads=args.threads, dir=folder, upstreams=servers)
            config.write_text(text)
            command = ["nginx", "-p", str(folder), "-c", str(config)]
        else:
            sys.exit(f"unknown target {name!r}")
        targets.append(Target(name, port, command))
    return dict(zip(filter(LARDERS.__contains__, args.targets.split(",")), admins))


def wrk(target, args, kb, connections, body, seed, seconds):
    """One run of wrk: requests, microseconds, p50, p99, errors."""
    env = dict(os.environ, BODY_KB=str(kb), BODY=body, SEED=str(seed))
    command = ["wrk", "-t2", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "-s",
               str(HERE / "bodies.lua"), f"http://127.0.0.1:{target.port}"]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    result = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", out)
    if not result:
        sys.exit(f"wrk said:\n{out}")
    return map(int, result.groups())


def first_event_us(target, kb):
    """Median time from sending a streamed request to the first byte of its first event."""
    prompt = ("word " * (kb * 1024 // 5 + 1))[: kb * 1024]
    times = []
    with socket.create_connection(("127.0.0.1", target.port)) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for n in range(STREAMS):
            body = json.dumps({"model": "mock", "stream": True, "messages":
                               [{"role": "user", "content": f"{time.time_ns()}-{n} {prompt}"}]},
                              separators=(",", ":")).encode()
            request = (f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                       f"content-length: {len(body)}\r\n\r\n").encode() + body
            sent = time.perf_counter()
            s.sendall(request)
            answer = b""
            first = None
            while not answer.endswith(b"0\r\n\r\n"):
                piece = s.recv(65536)
                if not piece:
                    sys.exit(f"{target.name} closed a stream: {answer[-200:]!r}")
                answer += piece
                if first is None and b"data: " in answer:
                    first = time.perf_counter() - sent
            times.append(first * 1e6)
    return statistics.median(times)


def elements(admin):
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics") as answer:
        return sum(float(line.rsplit(" ", 1)[1]) for line in answer.read().decode().splitlines()
                   if line.startswith("larder_index_elements"))


def fill(args, targets, admins):
    for target in (t for t in targets if t.name in LARDERS):
        begin, admin, seed = time.monotonic(), admins[target.name], 10_000
        while elements(admin) < INDEX_ELEMENTS:
            if time.monotonic() - begin > FILL_MAX_S:
                sys.exit(f"the index holds {elements(admin):.0f} elements and should hold {INDEX_ELEMENTS}")
            wrk(target, args, 400, 16, "plain", seed, 2)
            seed += 1
        print(f"{target.name}'s index holds {elements(admin):.0f} elements", flush=True)


def measure(args, targets, admins):
    runs, seed = [], 0
    for kb in map(int, args.sizes.split(",")):
        for connections in map(int, args.connections.split(",")):
            for body in args.bodies.split(","):
                for repeat in range(args.repeats):
                    for target in targets:
                        seed += 1
                        before = target.cpu_s()
                        requests, us, p50, p99, errors = wrk(
                            target, args, kb, connections, body, seed, args.seconds)
                        cpu = target.cpu_s() - before
                        if errors or not requests:
                            sys.exit(f"{target.name}, {kb} KB: {requests} requests, {errors} errors")
                        run = {"target": target.name, "body_kb": kb, "connections": connections,
                               "rps": round(requests / us * 1e6, 1), "p50_us": p50, "p99_us": p99,
                               "cpu_s_per_1000": round(cpu / requests * 1000, 5),
                               "rss_mb": round(target.rss_mb(), 1),
                               "ttfb_us": round(first_event_us(target, kb)), "body": body, "repeat": repeat}
                        if target.name in LARDERS:
                            run["index_elements"] = int(elements(admins[target.name]))
                        runs.append(run)
                report(runs, kb, connections, body)
    return runs


def report(runs, kb, connections, body):
    """One line for each target: medians, and CPU in terms of the others'."""
    def median(target, key):
        values = [r[key] for r in runs if (r["target"], r["body_kb"], r["connections"], r["body"])
                  == (target, kb, connections, body)]
        return statistics.median(values) if values else None

    cpu = {name: median(name, "cpu_s_per_1000") for name in ("floor", "before", "larder", "nginx")}
    for name in (n for n in cpu if cpu[n] is not None):
        line = f"{kb:4} KB {connections:3} conn {body:5} {name:6} cpu/1000 {cpu[name]:.4f} s"
        line += f"  rps {median(name, 'rps'):8.0f}  p50 {median(name, 'p50_us'):6.0f}  p99 {median(name, 'p99_us'):6.0f} us"
        line += f"  first event {median(name, 'ttfb_us'):5.0f} us  rss {median(name, 'rss_mb'):4.0f} MB"
        if name in LARDERS:
            for other in ("floor", "nginx", "before"):
                if cpu[other] and other != name:
                    line += f"  {cpu[name] / cpu[other]:.2f}x {other}"
            if cpu["floor"] and kb in BARS:
                line += f" (bar {BARS[kb]:.2f})"
        print(line, flush=True)


def main():
    args = options()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        processes, targets = [], []
        try:
            engines = [free_port(), free_port()]
            for port in engines:
                processes.append(subprocess.Popen([args.answerer, str(port)]))
                await_port(port, processes[-1])
            admins = start(args, folder, engines, targets)
            time.sleep(3)  # the proxy has learnt how large the engines' caches are
            fill(args, targets, admins)
            runs = measure(args, targets, admins)
        finally:
            for process in [t.process for t in targets] + processes:
                process.terminate()
            for process in [t.process for t in targets] + processes:
                try:
                    process.wait(3)
                except subprocess.TimeoutExpired:
                    process.kill()
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
