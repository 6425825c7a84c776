"""The plugin as it works in a GPU, in an engine that computes on the CPU: its KV cache lies in the emulator's "device memory".

The emulator takes the pages over where they lie, so the attention reads and writes them as before, and the cache node's
process opens them by CUDA's handles. Everything between vLLM's jobs and the driver's functions is the product's code; only
that the pages are a GPU's, and which stream is the current one, is said here in torch's place.
"""

import ctypes
import os
from dataclasses import replace

from larder_vllm import movers
from larder_vllm.cuda import Driver
from larder_vllm.handover import NodeHandover
from larder_vllm.layout import PartLayout
from larder_vllm.spec import LarderOffloadingSpec
from larder_vllm.transfers import Transfers

ORDINAL = 1
PAGE = 4096


class EmulatedSpec(LarderOffloadingSpec):
    """The spec with its pages in the emulated GPU."""

    def make_transfers(self, layout: PartLayout) -> tuple[Transfers, NodeHandover | None]:
        emulator = ctypes.CDLL(os.environ["LARDER_LIBCUDA"])
        for start, end in _ranges(layout):
            code = emulator.larder_emulator_adopt(ctypes.c_uint64(start), ctypes.c_uint64(end - start))
            if code:
                raise RuntimeError(f"the emulator does not take {end - start} bytes at {start:#x}: {code}")
        device = Driver().device(ORDINAL)
        with device.current():
            stream = device.stream()
        layers = tuple(replace(layer, pages=replace(layer.pages, host=None, ordinal=ORDINAL)) for layer in layout.layers)
        return movers.in_gpu(
            replace(layout, layers=layers), self._settings.gpu, lambda: stream, self._identity.moves,
        )


def _ranges(layout: PartLayout) -> list[tuple[int, int]]:
    """Whole pages in which the KV cache lies, none of them in two ranges."""
    found: list[tuple[int, int]] = []
    for pages in sorted((layer.pages for layer in layout.layers), key=lambda pages: pages.address):
        start, end = pages.address, pages.address + (pages.blocks - 1) * pages.stride + pages.page_bytes
        start, end = start // PAGE * PAGE, -(-end // PAGE) * PAGE
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
