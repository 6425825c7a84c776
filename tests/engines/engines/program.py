"""Processes: started in groups of their own, logged to files, and all ended when this one ends."""

import atexit
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

TAIL_BYTES: Final = 3_000
_started: "list[Program]" = []


class Failed(Exception):
    """Something did not come about; the message has the end of the log it concerns."""


class Program:
    """One process with its children."""

    def __init__(
        self, name: str, command: list[str], log: Path, environment: Mapping[str, str] | None = None,
        cores: set[int] | None = None,
    ) -> None:
        self.name, self.log = name, log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                env={**os.environ, **(environment or {})},
                preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
            )
        _started.append(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        """To the whole group."""
        os.killpg(self.pid, number)

    def signal_one(self, number: int) -> None:
        """To the process itself only."""
        os.kill(self.pid, number)

    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL to the whole group, stopped or not."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        if self in _started:
            _started.remove(self)

    def tail(self) -> str:
        """The end of its log."""
        return f"--- {self.name}: end of {self.log}\n{self.log.read_bytes()[-TAIL_BYTES:].decode(errors='replace')}"

    def until(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Waits for something of this process; raises ``Failed`` with its log if it dies first or takes too long."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.running():
                raise Failed(f"{self.name} ended while it was waited for: {what}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: no {what} within {seconds:.0f} s\n{self.tail()}")
            time.sleep(0.2)


@atexit.register
def end_all() -> None:
    """Ends every process that was started."""
    for program in list(_started):
        program.kill()


def until(ready: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits for a condition; raises ``Failed`` when it does not come about."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise Failed(f"no {what} within {seconds:.0f} s")
        time.sleep(0.1)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
