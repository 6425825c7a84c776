"""How a rank's part of a chunk is cut from its KV pages, wherever these lie. Knows neither torch nor vLLM."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from larder_vllm.slab import Bytes, Offsets

Blocks = npt.NDArray[np.int32]


class LayoutFault(ValueError):
    """The KV pages do not have the form that was registered."""


@dataclass(frozen=True)
class PageArray:
    """One array of pages of the engine's KV cache: a layer, or all layers of each block."""

    address: int
    """Of block 0's page; of device memory where ``ordinal`` is given."""
    blocks: int
    stride: int
    """Bytes from one block's page to the next."""
    page_bytes: int
    host: Bytes | None = None
    """The pages themselves, shape (blocks, page_bytes), where they lie in host memory."""
    ordinal: int | None = None
    """The GPU's number in this process, where they lie in one."""


@dataclass(frozen=True)
class Layer:
    """One array of pages and where its pages lie in a part."""

    pages: PageArray
    offset: int
    """Of the layer's first page in a rank's part of a chunk."""


@dataclass(frozen=True)
class PartLayout:
    """A rank's part of a chunk: layer after layer, each layer's pages in the order of the chunk's blocks."""

    layers: tuple[Layer, ...]
    blocks: int
    blocks_per_chunk: int
    rank: int
    part_bytes: int

    @classmethod
    def of(cls, arrays: Sequence[PageArray], blocks_per_chunk: int, rank: int, part_bytes: int) -> "PartLayout":
        """Cuts parts from pages; raises ``LayoutFault`` when they are not what was registered."""
        layers: list[Layer] = []
        offset = 0
        for pages in arrays:
            layers.append(Layer(pages, offset))
            offset += pages.page_bytes * blocks_per_chunk
        if offset != part_bytes:
            raise LayoutFault(f"the pages of a chunk are {offset} bytes and not the registered {part_bytes}")
        if len({pages.blocks for pages in arrays}) != 1 or len({pages.ordinal for pages in arrays}) != 1:
            raise LayoutFault("layers of different numbers of blocks, or on different devices")
        return cls(tuple(layers), arrays[0].blocks, blocks_per_chunk, rank, part_bytes)

    @property
    def ordinal(self) -> int | None:
        """The GPU on which the pages lie; None: in host memory."""
        return self.layers[0].pages.ordinal

    @property
    def block_bytes(self) -> int:
        """Bytes of one block's pages of all layers."""
        return sum(layer.pages.page_bytes for layer in self.layers)

    def parts(self, blocks: Blocks, skip: int, bases: Offsets) -> tuple[Offsets, Offsets]:
        """For each block, where its chunk's part begins, given where each chunk does, and its place in the chunk."""
        places = np.arange(skip, skip + len(blocks), dtype=np.int64)
        chunk, within = places // self.blocks_per_chunk, places % self.blocks_per_chunk
        return bases[chunk] + self.rank * self.part_bytes, within
