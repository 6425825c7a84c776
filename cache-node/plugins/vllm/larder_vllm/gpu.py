"""Copies of pages in a GPU, by this process: the way that needs nothing of the node but its memory.

Order, for loads and stores alike: the copies wait in a stream of their own for the engine's work up to the moment of
submitting (what it wrote into the pages, or zeroed there); the engine's own streams wait for nothing. A transfer is
told finished only when its last copy has ended; vLLM uses a load's pages, or writes over a store's, after that.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from larder_vllm.cuda import CudaFault, Device, Event
from larder_vllm.layout import PartLayout
from larder_vllm.slab import Bytes, Mapping, Offsets, address_of
from larder_vllm.transfers import Job

log = logging.getLogger("vllm.larder")

MARKS: Final = 32
"""Events for the engine's work, used in turn. One that is recorded again while a transfer is yet to wait for it makes
that wait for later work too, never for less."""
PIN_BYTES_MAX: Final = 64 << 30
"""Bytes that are pinned with one call; drivers refuse very large ones."""


class GpuMover:
    """Copies with the driver."""

    def __init__(self, device: Device, layout: PartLayout, current_stream: Callable[[], int]) -> None:
        """``current_stream``: the stream on which the engine's calling thread works; on a thread of the engine's."""
        self._device, self._layout, self._current_stream = device, layout, current_stream
        with device.current():
            self.unshared, self.marks = _marks(device)
            self._streams = {load: device.stream() for load in (True, False)}
            self._ends = {load: device.event(shared=False) for load in (True, False)}
        self._next = 0
        self._pins: "queue.SimpleQueue[tuple[bool, Mapping]]" = queue.SimpleQueue()
        self._pinned: dict[Mapping, list[int]] = {}
        threading.Thread(target=self._pin_in_turn, name="larder pin", daemon=True).start()

    def mark(self) -> int | None:
        """Records the next event behind what the engine's stream was given."""
        mark, self._next = self._next, (self._next + 1) % len(self.marks)
        with self._device.current():
            self.marks[mark].record(self._current_stream())
        return mark

    def copy(self, job: Job, memory: Bytes, bases: Offsets) -> int:
        device, stream, end = self._device, self._streams[job.load], self._ends[job.load]
        device.bind()
        try:
            self.follow(stream, job)
            move = device.copy_in if job.load else device.copy_out
            for pages, host, count in self._runs(job, memory, bases):
                to, source = (pages, host) if job.load else (host, pages)
                move(to, source, count, stream)
            end.record(stream)
            end.wait()
        except CudaFault:
            # What was begun must end before anybody is told; a driver that cannot say so has lost the engine too.
            device.drain(stream)
            raise
        return len(job.blocks) * self._layout.block_bytes

    def follow(self, stream: int, job: Job) -> None:
        """The stream goes on behind the engine's work."""
        assert job.mark is not None
        self.marks[job.mark].hold(stream)

    def _runs(self, job: Job, memory: Bytes, bases: Offsets) -> Iterator[tuple[int, int, int]]:
        """Pages, host address and bytes of each copy: neighbours on both sides are one."""
        parts, within = self._layout.parts(job.blocks, job.skip, bases)
        base, blocks = address_of(memory), job.blocks.astype(np.int64)
        if not len(blocks):
            return
        if not 0 <= blocks.min() <= blocks.max() < self._layout.blocks:
            raise ValueError(f"a block that is not below {self._layout.blocks}")
        for layer in self._layout.layers:
            width = layer.pages.page_bytes
            offsets = parts + layer.offset + within * width
            if not 0 <= offsets.min() <= offsets.max() <= len(memory) - width:
                raise ValueError(f"a chunk outside the {len(memory)} bytes of the node's memory")
            pages, host = layer.pages.address + blocks * layer.pages.stride, base + offsets
            apart = (np.diff(pages) != width) | (np.diff(host) != width)
            starts = np.flatnonzero(np.concatenate(([True], apart)))
            counts = np.diff(np.append(starts, len(blocks))) * width
            yield from zip(pages[starts].tolist(), host[starts].tolist(), counts.tolist())

    # === pinning, on a thread of its own: some seconds for each 10 GiB

    def pin(self, mapping: Mapping) -> None:
        self._pins.put((True, mapping))

    def forget(self, mapping: Mapping) -> None:
        self._pins.put((False, mapping))

    def _pin_in_turn(self) -> None:
        while True:
            pin, mapping = self._pins.get()
            try:
                self._device.bind()
                if pin:
                    self._pin(mapping)
                else:
                    for address in self._pinned.pop(mapping, []):
                        self._device.unpin(address)
            except CudaFault as fault:
                log.warning("larder: the cache node's memory is not pinned (%s): copies in the GPU are slower", fault)

    def _pin(self, mapping: Mapping) -> None:
        done = self._pinned.setdefault(mapping, [])
        if done:
            return
        extent = mapping.session.registered.extent_bytes
        # No chunk lies in two extents, so none lies in two pieces.
        piece = max(PIN_BYTES_MAX // extent, 1) * extent
        for memory, read_only in ((mapping.region, False), (mapping.slab, True)):
            for start in range(0, len(memory), piece):
                address = address_of(memory) + start
                self._device.pin(address, min(piece, len(memory) - start), read_only)
                done.append(address)


def _marks(device: Device) -> tuple[str | None, list[Event]]:
    """Events that other processes may open; or such as they may not, and why."""
    try:
        return None, [device.event(shared=True) for _ in range(MARKS)]
    except CudaFault as fault:
        return f"events cannot be shared with it: {fault}", [device.event(shared=False) for _ in range(MARKS)]
