"""What vLLM sees of a worker: its jobs in, their ends out. The one module that takes torch's tensors apart."""

import logging
import threading
from collections.abc import Callable

import numpy as np
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches, GPULoadStoreSpec, LoadStoreSpec, OffloadingWorker, TransferResult,
)

from larder_vllm.jobs import LoadSpec, Outcome, StoreSpec
from larder_vllm.layout import LayoutFault, PageArray
from larder_vllm.transfers import Job, Transfers

log = logging.getLogger("vllm.larder")


def arrays_of(kv_caches: CanonicalKVCaches) -> list[PageArray]:
    """vLLM's pages, wherever they lie; raises ``LayoutFault`` where they are not one group's on one kind of device."""
    if len(kv_caches.group_data_refs) != 1:
        raise LayoutFault(f"{len(kv_caches.group_data_refs)} KV cache groups")
    arrays: list[PageArray] = []
    for ref in kv_caches.group_data_refs[0]:
        tensor = kv_caches.tensors[ref.tensor_idx].tensor
        if tensor.ndim != 2 or tensor.element_size() != 1 or tensor.stride(1) != 1:
            raise LayoutFault(f"pages of shape {tuple(tensor.shape)}, strides {tensor.stride()}: not an array of bytes")
        width = ref.page_size_bytes
        if not 0 < width <= tensor.shape[1]:
            raise LayoutFault(f"a page of {width} bytes in rows of {tensor.shape[1]}")
        host = ordinal = None
        if tensor.device.type == "cpu":
            host = tensor.numpy().view(np.uint8)[:, :width]
        elif tensor.device.type == "cuda" and tensor.device.index is not None:
            ordinal = tensor.device.index
        else:
            raise LayoutFault(f"KV pages on {tensor.device}: only the CPU and NVIDIA's GPUs are known")
        arrays.append(PageArray(tensor.data_ptr(), tensor.shape[0], tensor.stride(0), width, host, ordinal))
    return arrays


class LarderWorker(OffloadingWorker):
    """vLLM's transfers. Each one is reported a success to vLLM, which has no other answer for a store; what failed is
    told beside it: ``take_outcomes`` for the scheduler, ``take_bad_blocks`` for vLLM's recomputation."""

    def __init__(
        self, blocks_per_chunk: int, transfers: Transfers, close: Callable[[], None] = lambda: None
    ) -> None:
        """``close`` ends the connection to the node."""
        self._per_chunk, self.transfers, self._close = blocks_per_chunk, transfers, close
        self._lock = threading.Lock()
        self._outcomes: dict[int, Outcome] = {}
        self._bad_blocks: set[int] = set()

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        assert isinstance(dst_spec, StoreSpec)
        nothing = np.empty(0, np.uint64)
        self.transfers.submit(Job(
            job_id, False, dst_spec.ticket, dst_spec.session, dst_spec.slots, nothing, [], src_spec.block_ids,
            self._skip(src_spec),
        ))
        return True

    def submit_load(
        self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, expedited: bool = False
    ) -> bool:
        assert isinstance(src_spec, LoadSpec)
        self.transfers.submit(Job(
            job_id, True, src_spec.ticket, src_spec.session, src_spec.slots, src_spec.generations, src_spec.parts,
            dst_spec.block_ids, self._skip(dst_spec),
        ))
        return True

    def _skip(self, pages: GPULoadStoreSpec) -> int:
        return int(pages.block_indices[0]) % self._per_chunk if len(pages.block_ids) else 0

    def get_finished(self) -> list[TransferResult]:
        finished = self.transfers.take_finished()
        with self._lock:
            for job in finished:
                fell_back = self.transfers.wants_node and not job.by_node
                self._outcomes[job.ticket] = Outcome(1, job.failed, int(job.by_node), int(fell_back))
                if job.load:
                    self._bad_blocks.update(self._blocks_from(job))
        return [TransferResult(job.id, True, job.bytes, job.seconds) for job in finished]

    def _blocks_from(self, job: Job) -> list[int]:
        """Blocks of the first failed chunk and of all after it: no later one is of use without it."""
        if not job.failed:
            return []
        first = min(job.failed) * self._per_chunk - job.skip
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
        """vLLM is about to write these jobs' pages again."""
        self.transfers.wait(job_ids)

    def shutdown(self) -> None:
        self.transfers.shutdown()
        self._close()
