"""Link and worker against a fake node over a real socket with real descriptors; copies against a naive oracle."""

import os
import tempfile
import threading
import time
import unittest
from collections.abc import Callable

import numpy as np
import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor, GPULoadStoreSpec, TransferResult,
)

from larder_vllm import slab, wire
from larder_vllm.host import HostMover
from larder_vllm.jobs import LoadSpec, StoreSpec
from larder_vllm.layout import LayoutFault, PartLayout
from larder_vllm.link import Link, Session
from larder_vllm.transfers import Job, Transfers
from larder_vllm.worker import LarderWorker, arrays_of
from tests.fake_node import FakeNode

BLOCKS, PAGE, PADDED, LAYERS = 64, 96, 128, 3


def caches() -> CanonicalKVCaches:
    tensors = [torch.randint(-128, 128, (BLOCKS, PADDED), dtype=torch.int8) for _ in range(LAYERS)]
    return CanonicalKVCaches(
        [CanonicalKVCacheTensor(tensor, PADDED) for tensor in tensors],
        [[CanonicalKVCacheRef(layer, PAGE) for layer in range(LAYERS)]],
    )


class Recorder:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.messages: list[object] = []
        self.losses = 0
        self.fds: list[int] = []

    def on_registered(self, session: Session, fds: list[int]) -> None:
        self.sessions.append(session)
        self.fds = fds

    def on_message(self, message: object) -> None:
        self.messages.append(message)

    def on_lost(self) -> None:
        self.losses += 1


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not come about")
        time.sleep(0.005)


def register(part_bytes: int = PAGE * LAYERS, world: int = 1) -> wire.Register:
    return wire.Register(id=0, model="m", hash="sha256_cbor", weights=b"w" * 32, epoch=0, layout=b"l" * 32,
                         dtype="float32", tokens_per_block=32, blocks_per_chunk=1, part_bytes=part_bytes, world=world)


class WithNode(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "node.sock")
        self.node = FakeNode(self.path)
        self.addCleanup(self.node.close)

    def link(self, role: str, sink: object, registration: wire.Register) -> Link:
        hello = wire.Hello(versions=[1], role=role, rank=0, engine="e")
        link = Link(self.path, hello, lambda: registration, sink)  # type: ignore[arg-type]
        self.addCleanup(link.stop)
        link.start()
        return link


class Connection(WithNode):
    def test_registers_sends_hears_and_comes_back_after_a_loss(self) -> None:
        sink = Recorder()
        link = self.link("scheduler", sink, register())
        until(lambda: len(sink.sessions) == 1)
        self.assertTrue(link.send(wire.Lookup(id=1, keys=[b"k"], end_tokens=[32])))
        until(lambda: sink.messages == [wire.Miss(id=1, reason="not_held")])
        self.node.drop_connections()
        until(lambda: sink.losses == 1 and len(sink.sessions) == 2)
        self.assertTrue(link.send(wire.Release(id=2, lease=b"L" * 16)))
        until(lambda: wire.Ok(id=2) in sink.messages)

    def test_a_node_that_does_not_read_holds_nobody_up(self) -> None:
        sink = Recorder()
        link = self.link("scheduler", sink, register())
        until(lambda: len(sink.sessions) == 1)
        stuck = threading.Event()
        self.node.answer = lambda message: stuck.wait(30) and None
        question = wire.Lookup(id=1, keys=[b"k" * 64] * 8_192, end_tokens=list(range(8_192)))
        slowest = 0.0
        for _ in range(64):
            begun = time.monotonic()
            if not link.send(question):
                break
            slowest = max(slowest, time.monotonic() - begun)
        else:
            self.fail("64 questions of 0.5 MB were kept for a node that does not read")
        stuck.set()
        self.assertLess(slowest, 2.0)
        until(lambda: sink.losses == 1)

    def test_garbage_ends_the_connection_only(self) -> None:
        sink = Recorder()
        self.link("scheduler", sink, register())
        until(lambda: len(sink.sessions) == 1)
        assert self.node.scheduler is not None
        self.node.scheduler.sock.sendall(b"\xff\xff\xff\xff garbage")
        until(lambda: sink.losses == 1 and len(sink.sessions) == 2)

    def test_no_node_is_waited_for_in_the_background(self) -> None:
        self.node.close()
        sink = Recorder()
        link = self.link("scheduler", sink, register())
        self.assertFalse(link.send(wire.Release(id=1, lease=b"x")))
        self.node = FakeNode(self.path)
        self.addCleanup(self.node.close)
        until(lambda: len(sink.sessions) == 1)

    def test_missing_descriptors_are_seen(self) -> None:
        sink = Recorder()
        honest = self.node._register

        def without_fds(connection: object, message: wire.Register) -> None:
            connection.hello = wire.Hello(versions=[1], role="scheduler", rank=0, engine="e")  # type: ignore
            say = connection.say  # type: ignore
            connection.say = lambda said, fds: say(  # type: ignore
                wire.Registered(**{**{f: getattr(said, f) for f in said.__struct_fields__}, "fds": 3}))
            honest(connection, message)  # type: ignore

        self.node._register = without_fds  # type: ignore
        self.link("worker", sink, register())
        until(lambda: len(self.node.said(wire.Register)) >= 2)
        self.assertEqual(sink.sessions, [])


class Copies(WithNode):
    def start(self, blocks_per_chunk: int, rank: int = 0, mover_class: type[HostMover] = HostMover) -> None:
        self.blocks_per_chunk, self.rank = blocks_per_chunk, rank
        self.part = PAGE * LAYERS * blocks_per_chunk
        self.kv = caches()
        layout = PartLayout.of(arrays_of(self.kv), blocks_per_chunk, rank, self.part)
        self.worker = LarderWorker(blocks_per_chunk, Transfers(mover_class(layout)))
        self.addCleanup(self.worker.shutdown)
        self.link("worker", self.worker.transfers, register(self.part, world=rank + 1))
        until(lambda: self.worker.transfers.mapping(b"s" * 16) is not None)

    def pages(self, block: int) -> list[bytes]:
        return [tensor.tensor.numpy().tobytes()[block * PADDED :][:PAGE] for tensor in self.kv.tensors]

    def chunk(self, blocks: list[int]) -> bytes:
        """The oracle: a rank's part, page by page."""
        return b"".join(self.pages(block)[layer] for layer in range(LAYERS) for block in blocks)

    def finish(self) -> TransferResult:
        results: list[TransferResult] = []
        until(lambda: bool(results.extend(self.worker.get_finished()) or results))
        return results[0]

    def store(self, blocks: list[int], slots: list[int], session: bytes = b"s" * 16) -> set[int]:
        self.worker.submit_store(1, GPULoadStoreSpec(blocks, [len(blocks)], [0]),
                                 StoreSpec(5, session, np.array(slots, np.uint32)))
        self.assertTrue(self.finish().success)
        return self.worker.take_outcomes()[5].failed

    def load(self, slots: list[int], blocks: list[int], index: int = 0, generations: list[int] | None = None,
             session: bytes | None = b"s" * 16) -> set[int]:
        wanted = generations or [self.node.generation(slot) for slot in slots]
        self.worker.submit_load(
            2, LoadSpec(6, session, np.array(slots, np.uint32), np.array(wanted, np.uint64)),
            GPULoadStoreSpec(blocks, [len(blocks)], [index]),
        )
        self.assertTrue(self.finish().success)
        return self.worker.take_outcomes()[6].failed

    def test_store_then_load_elsewhere_gives_the_same_pages(self) -> None:
        for blocks_per_chunk in (1, 2, 4):
            for rank in (0, 1):
                with self.subTest(blocks_per_chunk=blocks_per_chunk, rank=rank):
                    self.setUp()
                    self.start(blocks_per_chunk, rank)
                    count = 9
                    blocks = list(np.random.default_rng(1).permutation(BLOCKS // 2)[: count * blocks_per_chunk] + 1)
                    if len(blocks) < count * blocks_per_chunk:
                        count = len(blocks) // blocks_per_chunk
                        blocks = blocks[: count * blocks_per_chunk]
                    chunks = [[int(b) for b in blocks[at * blocks_per_chunk :][:blocks_per_chunk]] for at in range(count)]
                    self.assertEqual(self.store([b for chunk in chunks for b in chunk], list(range(3, 3 + count))), set())
                    region = self.node._region
                    assert region is not None
                    slots = []
                    for place, chunk in enumerate(chunks):
                        start = (3 + place) * 131_072 + rank * self.part
                        self.assertEqual(region[start : start + self.part], self.chunk(chunk))
                        slots.append(self.node.put(b"k%d" % place, region[(3 + place) * 131_072 :][: self.part * 2]))
                    target = [BLOCKS // 2 + 1 + at for at in range(min(count * blocks_per_chunk, BLOCKS // 2 - 1))]
                    whole = len(target) // blocks_per_chunk
                    target = target[: whole * blocks_per_chunk]
                    expected = [self.pages(b) for chunk in chunks[:whole] for b in chunk]
                    self.assertEqual(self.load(slots[:whole], target), set())
                    self.assertEqual([self.pages(block) for block in target], expected)

    def test_a_load_may_begin_and_end_inside_a_chunk(self) -> None:
        self.start(blocks_per_chunk=4)
        blocks = list(range(1, 13))
        self.store(blocks, [0, 1, 2])
        region = self.node._region
        assert region is not None
        slots = [self.node.put(b"k%d" % at, region[at * 131_072 :][: self.part]) for at in range(3)]
        expected = [self.pages(block) for block in blocks[3:10]]
        untouched = self.pages(60)
        self.assertEqual(self.load(slots, list(range(40, 47)), index=7), set())
        self.assertEqual([self.pages(block) for block in range(40, 47)], expected)
        self.assertEqual(self.pages(60), untouched)

    def test_a_changed_generation_before_the_copy_copies_nothing(self) -> None:
        self.start(1)
        slots = [self.node.put(b"k%d" % at, bytes([at]) * self.part) for at in range(3)]
        generations = [self.node.generation(slot) for slot in slots]
        self.node.bump(slots[1])
        before = [self.pages(block) for block in (10, 11, 12)]
        self.assertEqual(self.load(slots, [10, 11, 12], generations=generations), {1})
        self.assertEqual([self.pages(block) for block in (10, 11, 12)], before)
        self.assertEqual(self.worker.take_bad_blocks(), {11, 12})

    def test_a_generation_that_changes_during_the_copy_is_a_failed_load(self) -> None:
        node = self.node

        class Overtaken(HostMover):
            def copy(self, job: Job, memory: slab.Bytes, bases: slab.Offsets) -> int:
                if job.load:
                    node.bump(int(job.slots[0]))
                return super().copy(job, memory, bases)

        self.start(1, mover_class=Overtaken)
        slots = [self.node.put(b"k%d" % at, bytes([at]) * self.part) for at in range(2)]
        self.assertEqual(self.load(slots, [10, 11]), {0})
        self.assertEqual(self.worker.take_bad_blocks(), {10, 11})

    def test_slots_past_the_slab_fail(self) -> None:
        self.start(1)
        self.assertEqual(self.load([2**32 - 1, 1], [10, 11], generations=[1, 5]), {0, 1})

    def test_another_sessions_jobs_touch_nothing(self) -> None:
        self.start(1)
        self.assertEqual(self.store([1, 2], [0, 1], session=b"x" * 16), {0, 1})
        region = self.node._region
        assert region is not None
        self.assertEqual(region[:131_072].strip(b"\0"), b"")
        self.assertEqual(self.load([1, 2], [10, 11], session=None), {0, 1})

    def test_a_load_survives_the_nodes_death(self) -> None:
        self.start(1)
        slot = self.node.put(b"k", b"\x05" * self.part)
        self.node.close()
        self.assertEqual(self.load([slot], [10]), set())
        self.assertEqual(self.pages(10), [b"\x05" * PAGE] * LAYERS)

    def test_pages_of_another_size_than_registered(self) -> None:
        with self.assertRaises(LayoutFault):
            PartLayout.of(arrays_of(caches()), 1, 0, PAGE * LAYERS + 1)


if __name__ == "__main__":
    unittest.main()
