"""The cache node."""

import time
from pathlib import Path
from typing import Any

from engines import http_json
from engines.program import Program, free_port, until


class Node:
    """One cache node on one socket; it can be started again with another configuration."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self._binary, self._folder = binary, folder
        self.socket = folder / "node.sock"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.program: Program | None = None
        self._knobs = folder / "knobs"

    def start(
        self, host: str = "512MiB", disk: Path | None = None, driver: Path | None = None, **keys: str
    ) -> "Node":
        """Starts it with an empty host tier. ``driver``: the emulator's library, which gives it a GPU. ``disk``: the directory of its disk tier, which takes every chunk at its
        first use. ``keys``: more lines of its configuration, values as TOML."""
        config = self._folder / "node.toml"
        lines = [
            f'engine_socket = "{self.socket}"', f'control = "127.0.0.1:{self.port}"', "debug_faults = true",
            *(f"{key} = {value}" for key, value in keys.items()),
            "[host]", f'size = "{host}"', "[region]", 'size = "64MiB"',
        ]
        if disk is not None:
            lines += ["[disk]", f'path = "{disk}"', 'capacity = "1GiB"', 'segment = "64MiB"', "admit_uses = 0"]
        config.write_text("\n".join(lines) + "\n")
        self._knobs.write_text("")
        environment = {"LARDER_LIBCUDA": str(driver), "LARDER_EMULATOR_KNOBS": str(self._knobs)} if driver else {}
        command = [str(self._binary), "--config", str(config)]
        self.program = Program("node", command, self._folder / "node.log", environment)
        self.program.until(lambda: http_json.answers(f"{self.url}/healthz"), 20, "healthz")
        return self

    def kill(self) -> None:
        if self.program is not None:
            self.program.kill()

    def stats(self) -> dict[str, Any]:
        """``GET /v1/stats``."""
        stats, _ = http_json.call("GET", f"{self.url}/v1/stats", seconds=10)
        return dict(stats)

    def wait_for_engines(self, count: int) -> None:
        """Until so many sessions are whole: scheduler and all workers."""
        until(lambda: sum(bool(engine["ready"]) for engine in self.stats()["engines"]) == count, 60,
              f"{count} engines at the node")

    def settle(self) -> None:
        """Until nothing is being copied in, and what was just verified must be verified anew (``verify_fresh``)."""
        last = -1
        for _ in range(100):
            stats = self.stats()
            if stats["stored_chunks_total"] == last and not stats["writing_slots"] and not stats["copies"]:
                break
            last = stats["stored_chunks_total"]
            time.sleep(0.3)
        time.sleep(1.1)

    def wait_for_disk(self) -> None:
        """Until nothing is being written to disk, or brought up from there, and all of earlier runs is found."""
        until(lambda: not any(self.stats()[f"disk_{what}"] for what in ("writes", "loads", "unread_segments")), 30,
              "the node's disk to come to rest")

    def hold_gpu(self) -> None:
        """Its GPU begins nothing more: for as long as this node runs."""
        self._knobs.write_text("hold")

    def flip(self, **what: int) -> None:
        """Flips one bit of a held chunk (``nth``, ``byte``, ``bit``)."""
        answer, _ = http_json.call("POST", f"{self.url}/debug/flip", what)
        assert answer["damaged"], answer

    def swap(self, first: int, second: int) -> None:
        """Exchanges the keys of two held chunks."""
        answer, _ = http_json.call("POST", f"{self.url}/debug/swap", {"first": first, "second": second})
        assert answer["damaged"], answer
