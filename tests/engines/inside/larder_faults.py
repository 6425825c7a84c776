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

from larder_vllm.handover import NodeHandover
from larder_vllm.host import HostMover
from larder_vllm.layout import PartLayout
from larder_vllm.slab import Bytes, Offsets
from larder_vllm.spec import LarderOffloadingSpec
from larder_vllm.transfers import Job, Transfers


class FaultyMover(HostMover):
    """Copies a load's layers as the product does, with a pause between two of them when told to."""

    _moved = 0

    def copy(self, job: Job, memory: Bytes, bases: Offsets) -> int:
        faults = Path(os.environ["LARDER_FAULTS"])
        told = (faults / "hold").exists() or (faults / "stop").exists()
        if job.load:  # one load at a time; stores have another thread
            self._moved = 0 if told else 3
        return super().copy(job, memory, bases)

    def move(self, job: Job, *arguments: Any) -> None:
        super().move(job, *arguments)
        if job.load:
            self._moved += 1
            if self._moved == 2:
                self._pause(Path(os.environ["LARDER_FAULTS"]))

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
    """The spec with that mover."""

    def make_transfers(self, layout: PartLayout) -> tuple[Transfers, NodeHandover | None]:
        return Transfers(FaultyMover(layout)), None
