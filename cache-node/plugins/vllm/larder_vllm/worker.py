"""A worker's side: copies chunks between the node's memory and this process's KV pages, on threads of its own."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches, GPULoadStoreSpec, LoadStoreSpec, OffloadingWorker, TransferResult,
)

from larder_vllm import slab
from larder_vllm.jobs import LoadSpec, Outcome, StoreSpec
from larder_vllm.link import Session
from larder_vllm.slab import Bytes, Mapping, Offsets

log = logging.getLogger("vllm.larder")

WAIT_SECONDS_MAX: Final = 5.0
"""How long vLLM may be held up by a store whose pages it wants back; the store is then void."""
SESSION_SECONDS_MAX: Final = 0.2
"""How long a job waits for this process to hear of a session that the scheduler has already."""
COPY_BYTES: Final = 1_048_576
"""Bytes gathered at once: numpy copies through a buffer, and this one stays in the processor's cache."""
MAPPINGS_KEPT: Final = 2
"""The current mapping, and the last for loads begun before the node was lost."""


class LayoutFault(ValueError):
    """The KV pages do not have the form that was registered."""


@dataclass(frozen=True)
class Layer:
    """One layer's pages and where they lie in a part."""

    pages: Bytes
    """Shape (blocks, bytes of a page)."""
    offset: int
    """Of the layer's first page in a rank's part of a chunk."""

    @property
    def page_bytes(self) -> int:
        return int(self.pages.shape[1])


@dataclass(frozen=True)
class PartLayout:
    """A rank's part of a chunk: layer after layer, each layer's pages in the order of the chunk's blocks."""

    layers: tuple[Layer, ...]
    blocks_per_chunk: int
    rank: int
    part_bytes: int

    @classmethod
    def of(cls, kv_caches: CanonicalKVCaches, blocks_per_chunk: int, rank: int, part_bytes: int) -> "PartLayout":
        """Reads vLLM's pages; raises ``LayoutFault`` when they are not what was registered."""
        if len(kv_caches.group_data_refs) != 1:
            raise LayoutFault(f"{len(kv_caches.group_data_refs)} KV cache groups")
        layers: list[Layer] = []
        offset = 0
        for ref in kv_caches.group_data_refs[0]:
            tensor = kv_caches.tensors[ref.tensor_idx].tensor
            if tensor.device.type != "cpu":
                raise LayoutFault(f"KV pages on {tensor.device}: only pages in host memory are copied")
            pages = tensor.numpy().view(np.uint8)[:, : ref.page_size_bytes]
            layers.append(Layer(pages, offset))
            offset += ref.page_size_bytes * blocks_per_chunk
        if offset != part_bytes:
            raise LayoutFault(f"the pages of a chunk are {offset} bytes and not the registered {part_bytes}")
        return cls(tuple(layers), blocks_per_chunk, rank, part_bytes)


@dataclass
class Job:
    """One transfer and what is known of it."""

    id: int
    spec: LoadSpec | StoreSpec
    blocks: npt.NDArray[np.int32]
    skip: int
    """Blocks of the first chunk that are not part of the transfer."""
    load: bool
    done: threading.Event = field(default_factory=threading.Event)
    void: bool = False
    failed: set[int] = field(default_factory=set)
    result: TransferResult | None = None


class LarderWorker(OffloadingWorker):
    """vLLM's transfers. Each one is reported a success to vLLM, which has no other answer for a store; what failed is
    told beside it: ``take_outcomes`` for the scheduler, ``take_bad_blocks`` for vLLM's recomputation."""

    def __init__(self, layout: PartLayout, close: Callable[[], None] = lambda: None) -> None:
        """``close`` ends the connection to the node."""
        self._layout = layout
        self._close = close
        self._mappings: list[Mapping] = []
        self._mapped = threading.Condition()
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}
        self._finished: list[Job] = []
        self._outcomes: dict[int, Outcome] = {}
        self._bad_blocks: set[int] = set()
        self._queues: dict[bool, "queue.SimpleQueue[Job | None]"] = {}
        for load in (True, False):
            self._queues[load] = queue.SimpleQueue()
            name = "larder load" if load else "larder store"
            threading.Thread(target=self._run, args=(self._queues[load],), name=name, daemon=True).start()

    # === the link's thread

    def on_registered(self, session: Session, fds: list[int]) -> None:
        """Maps the session's memory. Failing to is survived: every job then fails and vLLM recomputes."""
        try:
            mapping = Mapping(session, fds)
        except (OSError, ValueError, slab.MappingFault) as fault:
            log.warning("larder: the cache node's memory cannot be mapped: %s", fault)
            return
        with self._mapped:
            self._mappings = [*self._mappings, mapping][-MAPPINGS_KEPT:]
            self._mapped.notify_all()

    def on_message(self, message: object) -> None:
        """Workers ask nothing, so nothing is answered."""

    def on_lost(self) -> None:
        """The mappings stay: what lies in them does not change when the node dies."""

    def _mapping(self, session: bytes | None) -> Mapping | None:
        if session is None:
            return None
        with self._mapped:
            deadline = time.monotonic() + SESSION_SECONDS_MAX
            while True:
                for mapping in self._mappings:
                    if mapping.session.id == session:
                        return mapping
                left = deadline - time.monotonic()
                if left <= 0 or not self._mapped.wait(left):
                    return None

    # === vLLM's thread

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        assert isinstance(dst_spec, StoreSpec)
        return self._submit(job_id, dst_spec, src_spec, load=False)

    def submit_load(
        self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, expedited: bool = False
    ) -> bool:
        assert isinstance(src_spec, LoadSpec)
        return self._submit(job_id, src_spec, dst_spec, load=True)

    def _submit(self, job_id: int, spec: LoadSpec | StoreSpec, pages: GPULoadStoreSpec, load: bool) -> bool:
        skip = pages.block_indices[0] % self._layout.blocks_per_chunk if len(pages.block_ids) else 0
        job = Job(job_id, spec, pages.block_ids, skip, load)
        with self._lock:
            self._jobs[job_id] = job
        self._queues[load].put(job)
        return True

    def get_finished(self) -> list[TransferResult]:
        with self._lock:
            finished, self._finished = self._finished, []
            for job in finished:
                del self._jobs[job.id]
                self._outcomes[job.spec.ticket] = Outcome(1, job.failed)
                if job.load:
                    self._bad_blocks.update(self._blocks_from(job))
        return [job.result for job in finished if job.result is not None]

    def _blocks_from(self, job: Job) -> list[int]:
        """Blocks of the first failed chunk and of all after it: no later one is of use without it."""
        if not job.failed:
            return []
        first = min(job.failed) * self._layout.blocks_per_chunk - job.skip
        return [int(block) for block in job.blocks[max(first, 0) :]]

    def take_outcomes(self) -> dict[int, Outcome]:
        """Outcomes of the tickets that ``get_finished`` told since the last call."""
        with self._lock:
            outcomes, self._outcomes = self._outcomes, {}
        return outcomes

    def take_bad_blocks(self) -> set[int]:
        """Blocks whose load failed, of the jobs that ``get_finished`` told since the last call."""
        with self._lock:
            bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def wait(self, job_ids: set[int]) -> None:
        """vLLM is about to write these jobs' pages again. A job that is not done in time is void."""
        with self._lock:
            jobs = [self._jobs[job_id] for job_id in job_ids if job_id in self._jobs]
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        for job in jobs:
            if not job.done.wait(max(deadline - time.monotonic(), 0.0)):
                job.void = True
                log.warning("larder: a transfer took longer than %.0f s and is void", WAIT_SECONDS_MAX)

    def shutdown(self) -> None:
        for jobs in self._queues.values():
            jobs.put(None)
        self._close()

    # === the copying threads

    def _run(self, jobs: "queue.SimpleQueue[Job | None]") -> None:
        while (job := jobs.get()) is not None:
            begun = time.monotonic()
            copied = 0
            try:
                copied = self._copy_job(job)
            except Exception:  # a fault of one copy must not end the thread that vLLM waits for
                log.exception("larder: a copy failed")
                job.failed = set(range(len(job.spec.slots)))
            if job.void:
                job.failed = set(range(len(job.spec.slots)))
            job.result = TransferResult(job.id, True, copied, time.monotonic() - begun)
            with self._lock:
                self._finished.append(job)
            job.done.set()

    def _copy_job(self, job: Job) -> int:
        mapping = self._mapping(job.spec.session)
        chunks = len(job.spec.slots)
        if mapping is None:
            job.failed = set(range(chunks))
            return 0
        if not isinstance(job.spec, LoadSpec):
            bases = mapping.region_offsets(job.spec.slots)
            return self._copy(mapping.region, bases, job, self._write)
        before = mapping.unchanged(job.spec.slots, job.spec.generations)
        if not before.all():
            job.failed = {int(place) for place in np.flatnonzero(~before)}
            return 0
        bases = mapping.slab_offsets(job.spec.slots)
        copied = self._copy(mapping.slab, bases, job, self._read)
        after = mapping.unchanged(job.spec.slots, job.spec.generations)
        job.failed = {int(place) for place in np.flatnonzero(~after)}
        return copied

    def _copy(
        self, memory: Bytes, bases: Offsets, job: Job,
        move: Callable[[Bytes, Offsets, Bytes, npt.NDArray[np.int32]], None],
    ) -> int:
        """Moves each block's page of each layer; ``bases`` are the chunks' offsets in ``memory``."""
        layout = self._layout
        places = np.arange(job.skip, job.skip + len(job.blocks), dtype=np.int64)
        chunk, within = places // layout.blocks_per_chunk, places % layout.blocks_per_chunk
        parts = bases[chunk] + layout.rank * layout.part_bytes
        for layer in layout.layers:
            rows = slab.windows(memory, layer.page_bytes)
            offsets = parts + layer.offset + within * layer.page_bytes
            step = max(COPY_BYTES // layer.page_bytes, 1)
            for start in range(0, len(offsets), step):
                move(rows, offsets[start : start + step], layer.pages, job.blocks[start : start + step])
        return len(job.blocks) * sum(layer.page_bytes for layer in layout.layers)

    @staticmethod
    def _read(rows: Bytes, offsets: Offsets, pages: Bytes, blocks: npt.NDArray[np.int32]) -> None:
        pages[blocks] = rows[offsets]

    @staticmethod
    def _write(rows: Bytes, offsets: Offsets, pages: Bytes, blocks: npt.NDArray[np.int32]) -> None:
        rows[offsets] = pages[blocks]
