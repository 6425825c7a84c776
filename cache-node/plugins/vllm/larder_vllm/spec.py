"""vLLM's plug point: one of these in the scheduler's process, one in each worker's."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import vllm
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches, OffloadingManager, OffloadingMetricMetadata, OffloadingSpec, OffloadingWorker,
)
from vllm.v1.kv_offload.config import OffloadingConfig

from larder_vllm import __version__, counters, movers, wire
from larder_vllm.handover import NodeHandover
from larder_vllm.identity import EngineIdentity
from larder_vllm.layout import LayoutFault, PartLayout
from larder_vllm.link import Link, Sink
from larder_vllm.manager import LarderManager
from larder_vllm.questions import Patience
from larder_vllm.settings import Settings
from larder_vllm.transfers import Transfers
from larder_vllm.worker import LarderWorker, arrays_of

log = logging.getLogger("vllm.larder")

_identity: ContextVar[EngineIdentity | None] = ContextVar("larder_identity", default=None)


@contextmanager
def identified(identity: EngineIdentity) -> Iterator[None]:
    """Makes a spec that is built inside know its engine: vLLM hands specs less than the digests need."""
    token = _identity.set(identity)
    try:
        yield
    finally:
        _identity.reset(token)


@dataclass(frozen=True)
class _Shape:
    tokens_per_block: int
    blocks_per_chunk: int
    part_bytes: int
    world: int
    rank: int


class LarderOffloadingSpec(OffloadingSpec):
    """Connects vLLM's offloading to a cache node."""

    def __init__(self, config: OffloadingConfig) -> None:
        super().__init__(config)
        identity = _identity.get()
        if identity is None:
            raise ValueError("LarderOffloadingSpec is made by LarderConnector: set kv_connector to LarderConnector")
        self._identity = identity
        self._settings = Settings.read(self.extra_config)
        # Conversations come back with the answer in their prompt, so its blocks are stored too.
        self.offload_prompt_only = bool(self.extra_config.get("offload_prompt_only", False))
        self._shape = _Shape(
            tokens_per_block=self.tokens_per_block[0], blocks_per_chunk=self.blocks_per_chunk,
            part_bytes=config.worker_kv_bytes_per_block * self.blocks_per_chunk,
            world=config.parallel.world_size, rank=config.parallel.rank,
        )
        self._links: list[Link] = []

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        """Counters for vLLM's /metrics."""
        return counters.definitions()

    def get_manager(self) -> OffloadingManager:
        """The scheduler's side, its connection under way."""
        manager = LarderManager(
            lambda message: bool(self._links) and self._links[0].send(message), self._shape.world,
            Patience(self._settings.lookup_ms / 1000, self._settings.pending_ms / 1000), close=self._close,
        )
        self._connect("scheduler", 0, manager)
        return manager

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """A worker's side, its connection under way. One that cannot copy stays unconnected: nothing is then leased to
        this engine, and it computes as if alone."""
        shape = self._shape
        try:
            layout = PartLayout.of(arrays_of(kv_caches), shape.blocks_per_chunk, shape.rank, shape.part_bytes)
            transfers, handover = self.make_transfers(layout)
        except LayoutFault as fault:
            log.error("larder: this worker shares no KV: %s", fault)
            return LarderWorker(shape.blocks_per_chunk, movers.none(), self._close)
        self._connect("worker", shape.rank, transfers, handover)
        return LarderWorker(shape.blocks_per_chunk, transfers, self._close)

    def make_transfers(self, layout: PartLayout) -> tuple[Transfers, NodeHandover | None]:
        """How this worker's transfers are carried out; tests put a faulty way in its place."""
        ordinal = layout.ordinal
        if ordinal is None:
            return movers.in_host(layout), None

        def current_stream() -> int:
            return int(torch.cuda.current_stream(ordinal).cuda_stream)

        return movers.in_gpu(layout, self._settings.gpu, current_stream, self._identity.moves)

    def _connect(self, role: str, rank: int, sink: Sink, handover: NodeHandover | None = None) -> None:
        hello = wire.Hello(
            versions=wire.VERSIONS, role=role, rank=rank, engine=self.config.engine_id,
            endpoint=self._settings.endpoint, software=f"larder-vllm/{__version__} vllm/{vllm.__version__}",
        )
        link = Link(self._settings.socket, hello, self._register, sink)
        if handover is not None:
            handover.line = link
        self._links.append(link)
        link.start()

    def _register(self) -> wire.Register:
        identity, shape = self._identity, self._shape
        return wire.Register(
            id=0, model=identity.model, hash=identity.block_hash, weights=identity.weights_digest(), epoch=0,
            layout=identity.layout, dtype=identity.dtype, tokens_per_block=shape.tokens_per_block,
            blocks_per_chunk=shape.blocks_per_chunk, part_bytes=shape.part_bytes, world=shape.world,
        )

    def _close(self) -> None:
        for link in self._links:
            link.stop()
