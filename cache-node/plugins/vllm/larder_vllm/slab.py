"""Where a chunk lies: the node's slab (read-only), its generations, and this session's writable region."""

import mmap
import os
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from larder_vllm.link import Session

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]
Generations = npt.NDArray[np.uint64]

GENERATION_BYTES: Final = 8


class MappingFault(Exception):
    """The node's answer and its descriptors do not fit together."""


class Mapping:
    """The three mappings of one session. They stay valid as long as anything refers to them, also when the node dies."""

    def __init__(self, session: Session, fds: list[int]) -> None:
        """Maps and closes the descriptors; raises ``MappingFault`` or ``OSError`` if they do not bear it."""
        told = session.registered
        self.session = session
        try:
            slab_fd, table_fd, region_fd = fds
            self._slab = _map(slab_fd, told.slab_bytes, mmap.PROT_READ)
            slots = (told.slab_bytes // told.extent_bytes) * told.slots_per_extent
            self._table = _map(table_fd, slots * GENERATION_BYTES, mmap.PROT_READ)
            self._region = _map(region_fd, told.region_bytes, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            for fd in fds:
                os.close(fd)
        self.slab: Bytes = np.frombuffer(self._slab, dtype=np.uint8)
        self.generations: Generations = np.frombuffer(self._table, dtype=np.uint64)
        self.region: Bytes = np.frombuffer(self._region, dtype=np.uint8)

    def slab_offsets(self, slots: npt.NDArray[np.uint32]) -> Offsets:
        """Byte offset in the slab of each slot."""
        told = self.session.registered
        wide = slots.astype(np.int64)
        return (wide // told.slots_per_extent) * told.extent_bytes + (wide % told.slots_per_extent) * told.slot_stride

    def region_offsets(self, slots: npt.NDArray[np.uint32]) -> Offsets:
        """Byte offset in the region of each region slot."""
        return slots.astype(np.int64) * self.session.registered.region_stride

    def unchanged(self, slots: npt.NDArray[np.uint32], generations: Generations) -> "npt.NDArray[np.bool_]":
        """Which slots still have the generation of their lease.

        Asked before and after a copy; the node raises a slot's generation before it writes there. Loads of one thread
        keep their order on x86; elsewhere the interpreter's own locks between two calls are the fence.
        """
        known = slots < len(self.generations)
        held = np.zeros(len(slots), dtype=np.bool_)
        held[known] = self.generations[slots[known]] == generations[known]
        return held


def _map(fd: int, length: int, protection: int) -> mmap.mmap:
    size = os.fstat(fd).st_size
    if length <= 0 or size < length:
        raise MappingFault(f"a descriptor of {size} bytes for a mapping of {length}")
    return mmap.mmap(fd, length, mmap.MAP_SHARED, protection)


def address_of(memory: Bytes) -> int:
    """Where it begins in this process."""
    return int(memory.ctypes.data)


def windows(memory: Bytes, width: int) -> Bytes:
    """Every run of ``width`` bytes of a memory, by its offset: row ``i`` is ``memory[i : i + width]``.

    The rows overlap and cost nothing; picking rows by an array of offsets is one vectorised copy. What lies past the
    end cannot be named: numpy refuses the row.
    """
    rows = len(memory) - width + 1
    return as_strided(memory, shape=(max(rows, 0), width), strides=(1, 1), writeable=memory.flags.writeable)
