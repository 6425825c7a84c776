"""Names a worker's pages in a GPU for the cache node's process: its ``attach`` of the wire's version 3."""

from dataclasses import dataclass, field

from larder_vllm import wire
from larder_vllm.cuda import CudaFault, Device, Event
from larder_vllm.layout import Layer, PartLayout


class NoName(Exception):
    """These pages cannot be named for another process; the message says why."""


@dataclass(eq=False)
class Names:
    """What the node opens. The descriptors stay open: a node that comes back is told the same again."""

    device: bytes
    order: str
    blocks: int
    events: list[bytes]
    layers: list[int] = field(default_factory=list)
    part_bytes: list[int] = field(default_factory=list)
    part_offsets: list[int] = field(default_factory=list)
    part_pieces: list[int] = field(default_factory=list)
    handles: list[bytes] = field(default_factory=list)
    piece_bytes: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, device: Device, layout: PartLayout, marks: list[Event]) -> "Names":
        """Names all allocations in which the pages lie; raises ``NoName``. On a thread that works on the GPU."""
        # Where a block is one piece the node has faster kernels; the bytes of a chunk are the same.
        order = "block_first" if len(layout.layers) == 1 else "layer_first"
        try:
            names = cls(device.uuid, order, layout.blocks, [mark.name() for mark in marks])
            names._name_parts(device, layout)
        except CudaFault as fault:
            raise NoName(f"the KV cache cannot be opened by another process: {fault}") from fault
        return names

    def attach(self, number: int) -> wire.Attach:
        return wire.Attach(
            id=number, device=self.device, order=self.order, blocks=self.blocks, layers=self.layers,
            part_bytes=self.part_bytes, part_offsets=self.part_offsets, part_pieces=self.part_pieces,
            handles=self.handles, piece_bytes=self.piece_bytes, events=self.events,
        )

    def _name_parts(self, device: Device, layout: PartLayout) -> None:
        """A part is the pages that lie in one allocation; the cache is all parts, one after the other."""
        allocations: dict[int, list[Layer]] = {}
        for layer in layout.layers:
            allocations.setdefault(device.allocation(layer.pages.address)[0], []).append(layer)
        places: dict[int, int] = {}
        begin = 0
        for base, layers in allocations.items():
            start = min(layer.pages.address for layer in layers)
            end = max(_end(layer) for layer in layers)
            places |= {layer.offset: begin + layer.pages.address - start for layer in layers}
            self.part_bytes.append(end - start)
            self._name_part(device, base, start, end)
            begin += end - start
        for layer in layout.layers:
            width = layer.pages.page_bytes
            self.layers += [places[layer.offset], layer.pages.stride, 1, width, width]

    def _name_part(self, device: Device, base: int, start: int, end: int) -> None:
        try:
            self.handles.append(device.memory_name(base))
        except CudaFault:
            self._name_pieces(device, start, end)
        else:
            self.part_pieces.append(0)
            self.part_offsets.append(start - base)

    def _name_pieces(self, device: Device, start: int, end: int) -> None:
        """Memory mapped from pieces (``expandable_segments``, and what vLLM's own allocator makes)."""
        at, count = start, 0
        while at < end:
            base, size = device.piece(at)
            if not base <= at < base + size:
                raise NoName(f"the driver places {at:#x} in a piece of {size} bytes at {base:#x}")
            if not count:
                self.part_offsets.append(start - base)
            self.descriptors.append(device.piece_descriptor(at))
            self.piece_bytes.append(size)
            at, count = base + size, count + 1
        self.part_pieces.append(count)


def _end(layer: Layer) -> int:
    pages = layer.pages
    return pages.address + (pages.blocks - 1) * pages.stride + pages.page_bytes
