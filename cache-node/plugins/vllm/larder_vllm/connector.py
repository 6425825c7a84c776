"""What vLLM loads: its own offloading connector with this plugin's spec, or one that does nothing.

Three things vLLM's connector lacks are added: a request is seen when it is added (to ask the node early, and to see
its adapter), failed loads are recomputed instead of ending the engine, and workers report failures to the scheduler.
"""

import logging
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorBase_V1, KVConnectorRole, SupportsHMA
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
    OffloadingConnectorMetadata, OffloadingWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.kv_offload.base import make_offload_key
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from larder_vllm import identity
from larder_vllm.ask import Ask
from larder_vllm.jobs import LarderWorkerMetadata
from larder_vllm.manager import LarderManager
from larder_vllm.settings import Settings, SettingsFault
from larder_vllm.spec import identified
from larder_vllm.worker import LarderWorker

if TYPE_CHECKING:
    from vllm.config import VllmConfig

log = logging.getLogger("vllm.larder")

TAG_HEX_LEN = 32


def _name_spec(vllm_config: "VllmConfig") -> None:
    """Lets vLLM's factory find the spec, so that users need not name it."""
    transfer = vllm_config.kv_transfer_config
    assert transfer is not None
    transfer.kv_connector_extra_config.setdefault("spec_name", "LarderOffloadingSpec")
    transfer.kv_connector_extra_config.setdefault("spec_module_path", "larder_vllm.spec")


def _tag_of(params: dict[str, Any] | None) -> bytes | None:
    """``kv_transfer_params.larder.tag``, 32 hex digits. Anything else is no tag: it came from a client."""
    larder = params.get("larder") if params else None
    tag = larder.get("tag") if isinstance(larder, dict) else None
    if not isinstance(tag, str) or len(tag) != TAG_HEX_LEN:
        return None
    try:
        return bytes.fromhex(tag)
    except ValueError:
        return None


class PlainConnector(KVConnectorBase_V1, SupportsHMA):
    """Shares nothing: the engine runs as if alone. Takes the place of ``LarderConnector`` where that is refused."""

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        return

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        return

    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        return

    def wait_for_save(self) -> None:
        return

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        return 0, False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        return

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        # Of the kind that a LarderConnector in a worker expects: the two sides decide for themselves.
        return OffloadingConnectorMetadata(load_jobs={}, store_jobs={}, jobs_to_flush=set())

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return False, None

    def reset_cache(self) -> bool | None:
        return True


class LarderConnector(OffloadingConnector):
    """vLLM's ``kv_connector``. Constructing one gives a ``PlainConnector`` where sharing is refused."""

    def __new__(
        cls, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> Any:
        """Decides, and says why in one line if the engine stays alone."""
        reason = identity.refusal(vllm_config, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        if reason is None and transfer is not None:
            try:
                Settings.read(transfer.kv_connector_extra_config)
            except SettingsFault as fault:
                reason = str(fault)
        if reason is not None:
            log.warning("larder: not sharing KV: %s", reason)
            return PlainConnector(vllm_config, role, kv_cache_config)
        return super().__new__(cls)

    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        _name_spec(vllm_config)
        with identified(identity.EngineIdentity.of(vllm_config, kv_cache_config)):
            super().__init__(vllm_config, role, kv_cache_config)

    @classmethod
    def build_prom_metrics(cls, vllm_config: "VllmConfig", *args: Any, **kwargs: Any) -> Any:
        _name_spec(vllm_config)
        return super().build_prom_metrics(vllm_config, *args, **kwargs)

    # === scheduler

    @property
    def _manager(self) -> LarderManager:
        manager = self.scheduler.manager
        assert isinstance(manager, LarderManager)
        return manager

    def _keys_of(self, request: Request) -> tuple[list[bytes], list[int]]:
        group = self.scheduler.config.kv_group_configs[0]
        stride = group.hashes_per_chunk
        keys: list[bytes] = [
            make_offload_key(block_hash, group.group_idx) for block_hash in request.block_hashes[stride - 1 :: stride]
        ]
        return keys, [(place + 1) * group.tokens_per_chunk for place in range(len(keys))]

    def on_new_request(self, request: Request) -> None:
        keys, end_tokens = self._keys_of(request)
        self._manager.begin(Ask(
            req_id=request.request_id, keys=keys, end_tokens=end_tokens, prompt_tokens=request.num_prompt_tokens,
            tag=_tag_of(request.kv_transfer_params),
            # A block hash names an adapter by name and path, and another may lie there by now.
            shares=request.lora_request is None,
        ))
        super().on_new_request(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        if request.num_preemptions:
            self._manager.extend(request.request_id, *self._keys_of(request))
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        meta = connector_output.kv_connector_worker_meta
        if isinstance(meta, LarderWorkerMetadata):
            self._manager.settle(meta.outcomes)
        super().update_connector_output(connector_output)

    # === worker

    @property
    def _worker(self) -> LarderWorker | None:
        worker = self.connector_worker.worker if self.connector_worker is not None else None
        return worker if isinstance(worker, LarderWorker) else None

    def build_connector_worker_meta(self) -> OffloadingWorkerMetadata | None:
        meta = super().build_connector_worker_meta()
        worker = self._worker
        if meta is None or worker is None:
            return meta
        return LarderWorkerMetadata(meta.completed_jobs, meta.transfer_stats, worker.take_outcomes())

    def get_block_ids_with_load_errors(self) -> set[int]:
        worker = self._worker
        return worker.take_bad_blocks() if worker is not None else set()
