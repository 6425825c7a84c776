"""What touches torch and vLLM, with pages in an emulated GPU: tensors that say they are there, and lie there.

No GPU and no CUDA build of torch is needed: the emulator's device memory has host addresses, so a CPU tensor can lie in
it. What is not shown: that a real CUDA tensor and stream answer as these do.
"""

import ctypes
import os
import types
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor, GPULoadStoreSpec

from larder_vllm import identity
from larder_vllm.jobs import LoadSpec, StoreSpec
from larder_vllm.layout import LayoutFault, PartLayout
from larder_vllm.settings import Settings, SettingsFault
from larder_vllm.spec import LarderOffloadingSpec
from larder_vllm.worker import LarderWorker, arrays_of
from tests.gpu_world import ORDINAL, PER_CHUNK, READY, SETUPS, Cache, Emulator, Engine, Node, until

FROM, TO = [5, 2, 9, 0, 7, 8, 1, 15], [3, 4, 6, 10, 12, 11, 13]


class Pretending:
    """A tensor that says it is on a GPU; everything else of it is torch's own answer."""

    def __init__(self, tensor: torch.Tensor, device: str) -> None:
        self._tensor, self.device = tensor, torch.device(device)

    def __getattr__(self, name: str) -> Any:
        if name == "numpy":
            raise AssertionError("numpy() of a tensor on a GPU: torch refuses that")
        return getattr(self._tensor, name)


def caches(cache: Cache, device: str = f"cuda:{ORDINAL}") -> CanonicalKVCaches:
    """vLLM's view of a cache: one tensor for each array, of shape (blocks, page), as its connector makes them."""
    tensors, refs = [], []
    for place, pages in enumerate(cache.arrays):
        memory = (ctypes.c_int8 * (pages.stride * pages.blocks)).from_address(pages.address)
        tensor = torch.frombuffer(memory, dtype=torch.int8).view(pages.blocks, pages.stride)
        tensors.append(CanonicalKVCacheTensor(Pretending(tensor, device), pages.stride))  # type: ignore[arg-type]
        refs.append(CanonicalKVCacheRef(place, pages.page_bytes))
    return CanonicalKVCaches(tensors, [refs])


@contextmanager
def stream_of(cache: Cache, asked: list[int]) -> Iterator[None]:
    """torch's current stream is the cache's."""
    def current(device: int) -> types.SimpleNamespace:
        asked.append(device)
        return types.SimpleNamespace(cuda_stream=cache.stream)

    with mock.patch.object(torch.cuda, "current_stream", current):
        yield


@unittest.skipUnless(READY, "LARDER_TEST_NODE and LARDER_TEST_EMULATOR are not set")
class OnVllm(unittest.TestCase):
    def setUp(self) -> None:
        self.emulator = Emulator.of_process()
        self.emulator.device.bind()

    def spec(self, mode: str, moves: str | None = None) -> LarderOffloadingSpec:
        spec = object.__new__(LarderOffloadingSpec)
        spec._settings = Settings.read({"larder_socket": "/node", "larder_gpu": mode})
        spec._identity = types.SimpleNamespace(moves=moves)  # type: ignore[assignment]
        return spec

    def test_vllms_jobs_store_and_load_the_same_pages(self) -> None:
        for mode in ("auto", "copy"):
            for setup in SETUPS[:3]:
                with self.subTest(mode=mode, setup=setup.name):
                    self.store_and_load(mode, Cache(self.emulator, setup))

    def store_and_load(self, mode: str, cache: Cache) -> None:
        cache.fill(1)
        stored, asked = cache.chunks(FROM), []  # type: ignore[var-annotated]
        layout = PartLayout.of(arrays_of(caches(cache)), PER_CHUNK, 0, cache.part_bytes)
        self.assertEqual(layout.layers, cache.layout().layers)
        with stream_of(cache, asked):
            transfers, handover = self.spec(mode).make_transfers(layout)
            node = Node()
            self.addCleanup(node.close)
            # Its wire side is the test's: this one's transfers take the place of those it would make.
            with mock.patch("larder_vllm.movers.in_gpu", lambda *_, **__: (transfers, handover)):
                engine = Engine(node.socket, cache, mode)
            self.addCleanup(engine.close)
            if mode == "auto":
                engine.attached(node)
            worker = LarderWorker(PER_CHUNK, transfers)
            slots = np.array([0, 1], np.uint32)
            worker.submit_store(1, GPULoadStoreSpec(FROM, [8], [0]), StoreSpec(5, engine.session, slots))
            until(worker.get_finished)
            outcome = worker.take_outcomes()[5]
            self.assertEqual((outcome.failed, outcome.by_node, outcome.fallbacks), (set(), int(mode == "auto"), 0))
            engine.commit([b"k1", b"k2"], [0, 1])
            cache.fill(2)
            lease = engine.lookup([b"k1", b"k2"])
            load = LoadSpec(6, engine.session, np.array(lease.slots, np.uint32), np.array(lease.generations, np.uint64),
                            [(lease.lease, 0, 2)])
            worker.submit_load(2, load, GPULoadStoreSpec(TO, [7], [PER_CHUNK + 1]))
            until(worker.get_finished)
            outcome = worker.take_outcomes()[6]
        self.assertEqual((outcome.failed, outcome.by_node, outcome.fallbacks), (set(), int(mode == "auto"), 0))
        self.assertEqual(worker.take_bad_blocks(), set())
        self.assertEqual(asked, [ORDINAL, ORDINAL], "each job is ordered behind the current stream of the pages' GPU")
        cache.expect(stored, TO, skip=1)
        self.assertEqual(cache.wrong_bytes(), 0)

    def test_a_failed_load_tells_its_blocks(self) -> None:
        cache = Cache(self.emulator, SETUPS[0])
        cache.fill(1)
        with stream_of(cache, []):
            transfers, _ = self.spec("copy").make_transfers(cache.layout())
            worker = LarderWorker(PER_CHUNK, transfers)
            load = LoadSpec(6, None, np.zeros(2, np.uint32), np.zeros(2, np.uint64))
            worker.submit_load(2, load, GPULoadStoreSpec(TO, [7], [PER_CHUNK + 1]))
            until(worker.get_finished)
        self.assertEqual(worker.take_bad_blocks(), set(TO))
        self.assertEqual(cache.wrong_bytes(), 0)

    def test_a_worker_that_cannot_copy_is_not_connected_and_harms_nobody(self) -> None:
        cache = Cache(self.emulator, SETUPS[0])
        cache.fill(1)
        shape = types.SimpleNamespace(blocks_per_chunk=PER_CHUNK, rank=0, part_bytes=cache.part_bytes)
        unknown = {"driver": (caches(cache), 0), "pages of a chunk": (caches(cache), 1), "xpu": (caches(cache, "xpu:0"), 0)}
        for says, (pages, more) in unknown.items():
            spec = self.spec("auto")
            spec._shape = types.SimpleNamespace(**{**vars(shape), "part_bytes": cache.part_bytes + more})  # type: ignore
            spec._connect = mock.Mock()  # type: ignore[method-assign]
            with self.subTest(says), stream_of(cache, []), self.assertLogs("vllm.larder") as logged:
                library = "no/such/libcuda.so" if says == "driver" else os.environ["LARDER_LIBCUDA"]
                with mock.patch.dict(os.environ, LARDER_LIBCUDA=library):
                    worker = spec.get_worker(pages)
                assert isinstance(worker, LarderWorker)
                self.assertIn(says, logged.output[0])
                spec._connect.assert_not_called()
                worker.submit_store(1, GPULoadStoreSpec(FROM, [8], [0]), StoreSpec(5, b"s", np.array([0, 1], np.uint32)))
                until(worker.get_finished)
                self.assertEqual(worker.take_outcomes()[5].failed, {0, 1})
        self.assertEqual(cache.wrong_bytes(), 0)

    def test_sleep_mode_keeps_the_node_out(self) -> None:
        cache = Cache(self.emulator, SETUPS[0])
        with stream_of(cache, []), self.assertLogs("vllm.larder"):
            _, handover = self.spec("auto", "sleep mode").make_transfers(cache.layout())
        self.assertIsNone(handover)

    def test_tensors_that_are_not_pages_in_a_known_place(self) -> None:
        cache = Cache(self.emulator, SETUPS[0])
        for device in ("xpu:0", "meta"):
            with self.assertRaisesRegex(LayoutFault, device):
                arrays_of(caches(cache, device))
        crossed = caches(cache)
        crossed.tensors[0] = CanonicalKVCacheTensor(torch.zeros(8, 16, dtype=torch.int8).t(), 16)
        with self.assertRaisesRegex(LayoutFault, "not an array of bytes"):
            arrays_of(crossed)


class Refused(unittest.TestCase):
    """Which devices may share at all."""

    def refusals(self, kind: str, is_cuda: bool, extra: dict[str, str]) -> list[str]:
        config: Any = types.SimpleNamespace(
            device_config=types.SimpleNamespace(device_type=kind),
            kv_transfer_config=types.SimpleNamespace(kv_connector_extra_config=extra),
        )
        platform = types.SimpleNamespace(is_cuda=lambda: is_cuda, device_name=kind)
        with mock.patch("vllm.platforms.current_platform", platform):
            return list(identity._device_refusals(config))

    def test_devices(self) -> None:
        self.assertEqual(self.refusals("cpu", False, {"larder_gpu": "off"}), [])
        self.assertEqual(self.refusals("cuda", True, {}), [])
        self.assertIn("NVIDIA", self.refusals("cuda", False, {})[0])  # ROCm calls itself so
        self.assertIn("NVIDIA", self.refusals("xpu", False, {})[0])
        self.assertIn("off", self.refusals("cuda", True, {"larder_gpu": "off"})[0])

    def test_the_setting(self) -> None:
        self.assertEqual(Settings.read({"larder_socket": "/s"}).gpu, "auto")
        with self.assertRaisesRegex(SettingsFault, "auto, copy, node, off"):
            Settings.read({"larder_socket": "/s", "larder_gpu": "yes"})


if __name__ == "__main__":
    unittest.main()
