"""What travels from the scheduler to the workers inside vLLM's own jobs, and what comes back."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.v1.kv_offload.base import LoadStoreSpec


@dataclass
class LoadSpec(LoadStoreSpec):
    """Chunks to copy out of the slab."""

    ticket: int
    session: bytes | None
    """None: the lease was lost before the load began; the workers report failure and touch nothing."""
    slots: npt.NDArray[np.uint32]
    generations: npt.NDArray[np.uint64]
    parts: list[tuple[bytes, int, int]] = field(default_factory=list)
    """Where the chunks come from, in order: lease, first chunk of it, how many. For a node that copies itself."""


@dataclass
class StoreSpec(LoadStoreSpec):
    """Chunks to copy into the session's writable region."""

    ticket: int
    session: bytes | None
    slots: npt.NDArray[np.uint32]


@dataclass
class Outcome:
    """What workers report of one ticket: how many of them, and which of its chunks failed on any."""

    workers: int = 1
    failed: set[int] = field(default_factory=set)
    by_node: int = 0
    """Workers for which the node copied."""
    fallbacks: int = 0
    """Workers that copied since the node, which was to, did not."""

    def add(self, other: "Outcome") -> "Outcome":
        """This one and another worker's."""
        return Outcome(
            self.workers + other.workers, self.failed | other.failed, self.by_node + other.by_node,
            self.fallbacks + other.fallbacks,
        )


@dataclass
class LarderWorkerMetadata(OffloadingWorkerMetadata):
    """vLLM's per-step report of a worker, with the outcome of each ticket beside it."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "LarderWorkerMetadata":
        """Adds another worker's report."""
        merged = super().aggregate(other)
        assert isinstance(merged, OffloadingWorkerMetadata)
        outcomes = dict(self.outcomes)
        for ticket, theirs in getattr(other, "outcomes", {}).items():
            outcomes[ticket] = outcomes.get(ticket, Outcome(0)).add(theirs)
        return LarderWorkerMetadata(merged.completed_jobs, merged.transfer_stats, outcomes)
