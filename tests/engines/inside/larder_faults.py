"""The plugin with faults that a test can switch on while the engine runs. Without any told it runs the product's code.

A fault is a file in the directory that LARDER_FAULTS names, looked for at every load:
``hold``  the copy stops half-way, says so with a file ``held``, and goes on when ``hold`` is removed;
``stop``  the process stops itself (SIGSTOP) half-way, having written its pid to ``stopped``.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

from larder_vllm.slab import Bytes, Offsets
from larder_vllm.spec import LarderOffloadingSpec
from larder_vllm.worker import Job, LarderWorker, PartLayout


class FaultyWorker(LarderWorker):
    """Copies a load's layers as the product does, with a pause between two of them when told to."""

    def _copy(self, memory: Bytes, bases: Offsets, job: Job, move: Any) -> int:
        faults = Path(os.environ["LARDER_FAULTS"])
        if not job.load or not ((faults / "hold").exists() or (faults / "stop").exists()):
            return super()._copy(memory, bases, job, move)
        moved = 0

        def paused(*arguments: Any) -> None:
            nonlocal moved
            move(*arguments)
            moved += 1
            if moved == 2:
                self._pause(faults)

        return super()._copy(memory, bases, job, paused)

    @staticmethod
    def _pause(faults: Path) -> None:
        if (faults / "stop").exists():
            (faults / "stop").unlink()
            (faults / "stopped.part").write_text(str(os.getpid()))
            (faults / "stopped.part").rename(faults / "stopped")
            os.kill(os.getpid(), signal.SIGSTOP)
        (faults / "held").touch()
        while (faults / "hold").exists():
            time.sleep(0.02)


class FaultySpec(LarderOffloadingSpec):
    """The spec with that worker."""

    def make_worker(self, layout: PartLayout) -> LarderWorker:
        return FaultyWorker(layout, self._close)
