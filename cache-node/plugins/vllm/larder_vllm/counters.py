"""What the plugin counts, and how vLLM's /metrics shows it."""

from typing import Final

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import OffloadingCounterMetadata, OffloadingMetricMetadata

PREFIX: Final = "vllm:larder_"

COUNTED: Final = {
    "lookups": "Questions asked to the cache node.",
    "lookup_timeouts": "Requests computed because the cache node did not answer in time.",
    "lookups_pending": "Questions answered with: coming up from a slower tier, ask again.",
    "pending_timeouts": "Requests computed because what they waited for did not come up in time.",
    "grants": "Leases that the cache node pushed because the proxy had a prefix staged.",
    "grants_unused": "Pushed leases that ended without a load.",
    "granted_tokens": "Tokens of pushed leases.",
    "grant_tokens_unused": "Tokens of pushed leases that were not loaded.",
    "loads": "Loads begun.",
    "load_failures": "Loads of which at least one chunk failed and was recomputed.",
    "loaded_tokens": "Tokens loaded.",
    "missed_tokens": "Tokens of whole chunks that were asked for and not held.",
    "stored_chunks": "Chunks the cache node took.",
    "stores_held": "Chunks the cache node held already.",
    "stores_refused": "Chunks the cache node had no room for.",
    "stores_dropped": "Chunks not offered to the cache node: no region slot was free, or the copy failed.",
    "unshared_requests": "Requests that share nothing (LoRA).",
    "moved_by_node": "Loads and stores, counted for each worker, that the cache node carried out in the GPU itself.",
    "gpu_fallbacks": "Loads and stores, counted for each worker, that it carried out since the cache node did not.",
    "sessions": "Sessions made with the cache node.",
    "resets": "Cache resets; each one ends sharing with all that was stored before.",
}


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """The Prometheus definitions, by metric name."""
    return {PREFIX + name: OffloadingCounterMetadata(documentation=text) for name, text in COUNTED.items()}


class Counters:
    """Counts since the last ``take``. Guarded by its owner's lock."""

    def __init__(self) -> None:
        self.total: dict[str, int] = dict.fromkeys(COUNTED, 0)
        self._taken: dict[str, int] = dict(self.total)

    def add(self, name: str, amount: int = 1) -> None:
        self.total[name] += amount

    def take(self) -> OffloadingConnectorStats | None:
        """What was added since the last call, or None."""
        stats: OffloadingConnectorStats | None = None
        for name, total in self.total.items():
            if total != self._taken[name]:
                stats = stats or OffloadingConnectorStats()
                stats.increase_counter(PREFIX + name, total - self._taken[name])
                self._taken[name] = total
        return stats
