"""Copies of pages in host memory (vLLM's CPU backend)."""

from typing import Final

from larder_vllm import slab
from larder_vllm.layout import Blocks, PartLayout
from larder_vllm.slab import Bytes, Mapping, Offsets
from larder_vllm.transfers import Job

COPY_BYTES: Final = 1_048_576
"""Bytes gathered at once: numpy copies through a buffer, and this one stays in the processor's cache."""


class HostMover:
    """Copies with numpy. What the engine writes is written when it submits, so there is nothing to wait for."""

    def __init__(self, layout: PartLayout) -> None:
        self._layout = layout

    def mark(self) -> int | None:
        return None

    def copy(self, job: Job, memory: Bytes, bases: Offsets) -> int:
        """Moves each block's page of each layer."""
        parts, within = self._layout.parts(job.blocks, job.skip, bases)
        for layer in self._layout.layers:
            pages, width = layer.pages.host, layer.pages.page_bytes
            assert pages is not None
            rows = slab.windows(memory, width)
            offsets = parts + layer.offset + within * width
            step = max(COPY_BYTES // width, 1)
            for start in range(0, len(offsets), step):
                self.move(job, rows, offsets[start : start + step], pages, job.blocks[start : start + step])
        return len(job.blocks) * self._layout.block_bytes

    def move(self, job: Job, rows: Bytes, offsets: Offsets, pages: Bytes, blocks: Blocks) -> None:
        """One vectorised copy between some rows of the node's memory and as many pages."""
        if job.load:
            pages[blocks] = rows[offsets]
        else:
            rows[offsets] = pages[blocks]

    def pin(self, mapping: Mapping) -> None:
        """Nothing to do."""

    def forget(self, mapping: Mapping) -> None:
        """Nothing to do."""
