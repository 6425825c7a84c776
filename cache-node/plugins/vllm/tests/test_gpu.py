"""The worker's code with pages in an emulated GPU and a real node: every byte, touched or not, however it is moved.

Needs ``LARDER_TEST_NODE`` and ``LARDER_TEST_EMULATOR`` (``gpu_world.py``), msgspec and numpy; no vLLM, torch or GPU.
What no emulator shows: a real driver's own rules, and speed. ``LARDER_REAL_CUDA=1`` runs what it can on a GPU.
"""

import logging
import random
import subprocess
import sys
import unittest
from collections.abc import Callable
from pathlib import Path

from larder_vllm import wire
from larder_vllm.cuda import CudaFault
from larder_vllm.gpu import GpuMover
from larder_vllm.handover import NodeHandover
from larder_vllm.layout import LayoutFault
from larder_vllm.slab import address_of
from larder_vllm.transfers import Job
from tests.fake_node import FakeNode
from tests.gpu_world import BLOCKS, READY, REAL, SETUPS, Cache, Emulator, Engine, Gate, Node, Setup, until

FROM = [5, 2, 9, 0, 7, 8, 1, 15]
TO = [3, 4, 6, 10, 12, 11, 13]
KEYS = [b"k1", b"k2"]


emulated = unittest.skipIf(REAL, "needs the emulator's knobs, or its second GPU")


class Careless(GpuMover):
    """Waits for nothing that the engine does: the copies' stream goes on at once."""

    def follow(self, stream: int, job: Job) -> None:
        return

    def mark(self) -> int | None:
        return len(self.marks) - 1  # never recorded, and so reached


class Hasty(NodeHandover):
    """Takes what the node has begun for done."""

    def on_message(self, message: object) -> None:
        super().on_message(message)
        if isinstance(message, wire.Moving) and self._parts[message.id].given.job.load:
            self._ended(message.id, None, True)


@unittest.skipUnless(READY, "LARDER_TEST_NODE and LARDER_TEST_EMULATOR are not set")
class World(unittest.TestCase):
    def setUp(self) -> None:
        self.emulator = Emulator.of_process()
        self.emulator.device.bind()

    def node(self, folder: Path | None = None, **variables: str) -> Node:
        node = Node(folder, **variables)
        self.addCleanup(node.close)
        return node

    def engine(self, node: Node | Path, cache: Cache, mode: str = "auto", **more: object) -> Engine:
        socket = node.socket if isinstance(node, Node) else node
        engine = Engine(socket, cache, mode, **more)  # type: ignore[arg-type]
        self.addCleanup(engine.close)
        return engine.attached(node) if isinstance(node, Node) and mode != "copy" and not more.get("moves") else engine

    def cache(self, setup: Setup = SETUPS[0]) -> Cache:
        cache = Cache(self.emulator, setup)
        cache.fill(1)
        return cache

    def right(self, engine: Engine) -> None:
        """Stores, overwrites, loads back elsewhere, and compares every byte."""
        cache = engine.cache
        seed = engine.number()
        keys = [b"key %d of %d" % (place, seed) for place in range(2)]
        cache.fill(2 * seed)
        stored = cache.chunks(FROM)
        engine.store(keys, FROM)
        self.assertEqual(engine.held(keys), stored)
        cache.fill(2 * seed + 1)
        job = engine.finish(engine.submit_load(engine.lookup(keys), TO, skip=1))
        self.assertEqual(job.failed, set())
        self.assertEqual(job.bytes, len(TO) * cache.part_bytes // 4)
        cache.expect(stored, TO, skip=1)
        self.assertEqual(cache.wrong_bytes(), 0)


class EveryByte(World):
    def test_stored_and_loaded_by_the_node(self) -> None:
        for setup in SETUPS:
            with self.subTest(setup.name):
                node = self.node()
                engine = self.engine(node, self.cache(setup))
                self.right(engine)
                # Two chunks, as of two leases, are two fetches.
                self.assertEqual((node.stat("saves_total"), node.stat("fetches_total")), (1, 2))
                self.assertEqual((node.stat("saves_failed_total"), node.stat("fetches_failed_total")), (0, 0))

    def test_stored_and_loaded_by_the_worker(self) -> None:
        for setup in SETUPS:
            with self.subTest(setup.name):
                node = self.node()
                engine = self.engine(node, self.cache(setup), "copy")
                self.right(engine)
                self.assertEqual((node.stat("saves_total"), node.stat("fetches_total")), (0, 0))

    def test_loads_and_stores_at_once(self) -> None:
        """Rounds of four transfers that are under way together, drawn from a seed, into an image of what must be there."""
        for mode, setup in (("auto", SETUPS[0]), ("auto", SETUPS[5]), ("copy", SETUPS[1]), ("copy", SETUPS[2])):
            with self.subTest(mode=mode, setup=setup.name):
                engine = self.engine(self.node(), self.cache(setup), mode)
                cache, draw, held = engine.cache, random.Random(7), dict[bytes, bytes]()
                for round in range(12):
                    if round % 4 == 0:
                        cache.fill(100 + round)
                    blocks = draw.sample(range(BLOCKS), BLOCKS)
                    stores, loads = [], []
                    for place in range(2):
                        own = [blocks.pop() for _ in range(4)]
                        key = b"round %d store %d" % (round, place)
                        stores.append((engine.submit_store([place], own), key, place, cache.chunks(own)))
                        skip = draw.randrange(4)
                        if held:
                            wanted = draw.choice(sorted(held))
                            own = [blocks.pop() for _ in range(4 - skip)]
                            job = engine.submit_load(engine.lookup([wanted]), own, skip)
                            loads.append((job, wanted, own, skip))
                    for job, wanted, own, skip in loads:
                        self.assertEqual((engine.finish(job).failed, job.by_node), (set(), mode == "auto"))
                        cache.expect([held[wanted]], own, skip)
                    for job, key, slot, (chunk,) in stores:
                        self.assertEqual((engine.finish(job).failed, job.by_node), (set(), mode == "auto"))
                        engine.commit([key], [slot])
                        held[key] = chunk
                    self.assertEqual(cache.wrong_bytes(), 0, f"round {round}")
                for key, chunk in held.items():
                    self.assertEqual(engine.held([key]), [chunk])

    def test_two_ranks_have_a_part_of_each_chunk(self) -> None:
        for mode in ("auto", "copy"):
            with self.subTest(mode):
                node, caches = self.node(), [self.cache(), self.cache()]
                caches[1].fill(5)
                first = Engine(node.socket, caches[0], mode, world=2)
                self.addCleanup(first.close)
                ranks = [first, Engine(node.socket, caches[1], mode, world=2, first=first)]
                self.addCleanup(ranks[1].close)
                stored = [cache.chunks(FROM) for cache in caches]
                for rank in ranks:
                    if mode == "auto":
                        rank.attached(node)
                    self.assertEqual(rank.finish(rank.submit_store([0, 1], FROM)).failed, set())
                first.commit(KEYS, [0, 1])
                self.assertEqual(first.held(KEYS), [one + other for one, other in zip(*stored)])
                lease = first.lookup(KEYS)
                for rank, chunks in zip(ranks, stored):
                    rank.cache.fill(7)
                    job = rank.finish(rank.submit_load(lease, TO, skip=1))
                    self.assertEqual((job.failed, job.by_node), (set(), mode == "auto"))
                    rank.cache.expect(chunks, TO, skip=1)
                    self.assertEqual(rank.cache.wrong_bytes(), 0)

    def test_a_control_a_changed_byte_is_found(self) -> None:
        engine = self.engine(self.node(), self.cache())
        self.right(engine)
        start, count = engine.cache.memory[0]
        engine.cache.image[start][count - 1] ^= 1
        self.assertEqual(engine.cache.wrong_bytes(), 1)

    def test_slots_and_blocks_that_there_are_not_are_a_failure_and_touch_nothing(self) -> None:
        for mode in ("auto", "copy"):
            with self.subTest(mode):
                engine = self.engine(self.node(), self.cache(), mode)
                job = engine.finish(engine.submit_store([0], [0, 1, 2, BLOCKS]))
                self.assertEqual(job.failed, {0})
                job = engine.finish(engine.submit_store([1 << 20], [0, 1, 2, 3]))
                self.assertEqual(job.failed, {0})
                self.right(engine)


@emulated
class Order(World):
    """Behind a gate in the engine's own stream: what comes after it has not happened while the transfer is submitted."""

    def behind_gate(self, engine: Engine, seed: int, submit: Callable[[], Job], waits: bool) -> None:
        """A transfer while the engine has begun to write its pages; ``waits``: for that, before it ends."""
        cache = engine.cache
        gate = Gate(cache.device)
        self.addCleanup(gate.open)
        gate.event.hold(cache.stream)
        cache.begin_to_fill(seed)
        job = submit()
        if waits:
            self.assertFalse(job.done.wait(0.2))
            gate.open()
            engine.finish(job)
        else:
            engine.finish(job)
            gate.open()
        self.assertEqual(job.failed, set())

    def stored_while_written(self, mode: str, mover_class: type[GpuMover]) -> tuple[bytes, bytes, bytes]:
        """What was stored, what the pages held before, and what the engine was writing."""
        cache = self.cache()
        engine = self.engine(self.node(), cache, mode, mover_class=mover_class)
        (before,) = cache.chunks(FROM[:4])
        self.behind_gate(engine, 2, lambda: engine.submit_store([0], FROM[:4]), mover_class is not Careless)
        engine.commit(KEYS[:1], [0])
        (held,) = engine.held(KEYS[:1])
        return held, before, cache.chunks(FROM[:4])[0]

    def loaded_while_zeroed(self, mode: str, mover_class: type[GpuMover]) -> tuple[int, int]:
        """Wrong bytes after a load into pages that the engine was about to clear, and the bytes of the load."""
        cache = self.cache()
        engine = self.engine(self.node(), cache, mode, mover_class=mover_class)
        stored = cache.chunks(FROM[:4])
        engine.store(KEYS[:1], FROM[:4])
        waits = mover_class is not Careless
        self.behind_gate(engine, 3, lambda: engine.submit_load(engine.lookup(KEYS[:1]), TO[:4]), waits)
        cache.device.drain(cache.stream)
        cache.expect(stored, TO[:4])
        return cache.wrong_bytes(), cache.part_bytes

    def test_a_store_takes_what_the_engine_had_begun_to_write(self) -> None:
        for mode in ("auto", "copy"):
            with self.subTest(mode):
                held, _, written = self.stored_while_written(mode, GpuMover)
                self.assertEqual(held, written)

    def test_control_without_the_wait_a_store_takes_what_was_there_before(self) -> None:
        for mode in ("auto", "copy"):
            with self.subTest(mode):
                held, before, written = self.stored_while_written(mode, Careless)
                self.assertEqual(held, before)
                self.assertNotEqual(before, written)

    def test_a_load_comes_after_what_the_engine_had_begun_to_write_there(self) -> None:
        for mode in ("auto", "copy"):
            with self.subTest(mode):
                self.assertEqual(self.loaded_while_zeroed(mode, GpuMover)[0], 0)

    def test_control_without_the_wait_a_load_is_written_over(self) -> None:
        for mode in ("auto", "copy"):
            with self.subTest(mode):
                wrong, loaded = self.loaded_while_zeroed(mode, Careless)
                self.assertGreater(wrong, loaded * 9 // 10)

    def test_a_load_is_told_when_its_last_copy_has_ended(self) -> None:
        node = self.node()
        engine = self.engine(node, self.cache())
        cache, stored = engine.cache, engine.cache.chunks(FROM)
        engine.store(KEYS, FROM)
        lease = engine.lookup(KEYS)
        node.knobs("hold")
        job = engine.submit_load(lease, FROM)
        until(lambda: node.stat("gpu_moving_bytes"), "a copy under way")
        self.assertFalse(job.done.wait(0.2))
        node.knobs("")
        engine.finish(job)
        cache.expect(stored, FROM)
        self.assertEqual(cache.wrong_bytes(), 0)

    def test_control_a_load_that_is_told_when_it_has_begun_is_not_there(self) -> None:
        node = self.node()
        engine = self.engine(node, self.cache())
        assert engine.handover
        engine.handover.__class__ = Hasty
        cache, stored = engine.cache, engine.cache.chunks(FROM)
        engine.store(KEYS, FROM)
        cache.fill(2)
        lease = engine.lookup(KEYS)
        node.knobs("hold")
        engine.finish(engine.submit_load(lease, TO))
        cache.expect(stored, TO)
        self.assertGreater(cache.wrong_bytes(), cache.part_bytes)
        node.knobs("")


class FallingBack(World):
    """Whatever the node does not do, the worker does, and says why once."""

    def falls_back(self, says: str, socket: Path) -> None:
        with self.assertLogs("vllm.larder", logging.WARNING) as logged:
            engine = self.engine(socket, self.cache()).decided()
            self.right(engine)
            self.right(engine)
        told = [line for line in logged.output if "does not copy in this GPU" in line]
        self.assertEqual(len(told), 1, logged.output)
        self.assertIn(says, told[0])
        self.assertTrue(engine.transfers.wants_node)

    def test_a_node_without_a_gpu(self) -> None:
        node = self.node(LARDER_LIBCUDA="no/such/libcuda.so")
        self.falls_back("no_gpu", node.socket)

    @emulated
    def test_a_node_that_does_not_see_this_gpu(self) -> None:
        self.falls_back("none of 1 devices", self.node(CUDA_VISIBLE_DEVICES="0").socket)

    @emulated
    def test_a_node_that_sees_it_by_another_number(self) -> None:
        self.right(self.engine(self.node(CUDA_VISIBLE_DEVICES="1,0"), self.cache()))

    def test_memory_that_cannot_be_named(self) -> None:
        setup = Setup("mapped for this process only", ((256, 256),), mapped=True, exportable=False)
        with self.assertLogs("vllm.larder", logging.WARNING) as logged:
            engine = self.engine(self.node().socket, self.cache(setup))
        self.assertIn("cuMemExportToShareableHandle", logged.output[0])
        self.assertTrue(engine.transfers.wants_node)
        self.right(engine)

    def test_pages_that_do_not_stay(self) -> None:
        with self.assertLogs("vllm.larder", logging.WARNING) as logged:
            engine = self.engine(self.node().socket, self.cache(), moves="sleep mode")
        self.assertIn("sleep mode", logged.output[0])
        self.right(engine)

    @emulated
    def test_a_node_whose_memory_is_not_pinned(self) -> None:
        # It pins its kernels' notes first, then its slab and the region at once: which of these fails nobody knows
        # before, so nodes are started until both have. Then loads, or stores, are never done by the node.
        failed: set[str] = set()
        for _ in range(30):
            node = self.node(LARDER_EMULATOR_FAIL="cuMemHostRegister_v2:2:2")
            with self.assertLogs("vllm.larder", logging.WARNING) as logged:
                engine = self.engine(node.socket, self.cache()).decided()
                for _ in range(2):
                    self.right(engine)
            self.assertIn("not pinned yet", logged.output[0])
            failed |= {name for name in ("saves", "fetches") if node.stat(f"{name}_failed_total") > 1}
            if failed == {"saves", "fetches"}:
                return
        self.fail(f"only {failed} failed")

    def test_an_older_node(self) -> None:
        folder = self.node().folder
        fake = FakeNode(str(folder / "fake.sock"))
        self.addCleanup(fake.close)
        with self.assertLogs("vllm.larder", logging.WARNING) as logged:
            engine = self.engine(folder / "fake.sock", self.cache())
        self.assertIn("speaks version 1", logged.output[0])
        engine.store(KEYS, FROM)
        stored = engine.cache.chunks(FROM)
        engine.cache.fill(2)
        engine.finish(engine.submit_load(engine.lookup(KEYS), TO))
        engine.cache.expect(stored, TO)
        self.assertEqual(engine.cache.wrong_bytes(), 0)

    @emulated
    def test_every_call_that_naming_takes_failing_once(self) -> None:
        for function in ("cuIpcGetEventHandle", "cuEventCreate", "cuMemGetAddressRange_v2", "cuIpcOpenEventHandle"):
            with self.subTest(function):
                node = self.node()
                self.emulator.fail(function, 1)
                self.addCleanup(self.emulator.fail, function, 0)
                self.falls_back(function, node.socket)

    @emulated
    def test_the_node_alone(self) -> None:
        """``larder_gpu = node``: what the node does not do is a failure, which vLLM recomputes."""
        node = self.node()
        engine = self.engine(node, self.cache(), "node")
        self.right(engine)
        node.knobs("fail cuMemcpyDtoHAsync_v2 1 1")
        self.assertEqual(engine.finish(engine.submit_store([0], FROM[:4])).failed, {0})
        engine = self.engine(self.node(LARDER_LIBCUDA="no/such/libcuda.so").socket, self.cache(), "node")
        self.assertEqual(engine.finish(engine.submit_store([0], FROM[:4])).failed, {0})
        setup = Setup("mapped for this process only", ((256, 256),), mapped=True, exportable=False)
        with self.assertRaisesRegex(LayoutFault, "larder_gpu is node"):
            self.engine(node.socket, self.cache(setup), "node")


@emulated
class Faults(World):
    def test_a_slab_that_is_mapped_read_only_is_pinned_as_such_or_not_at_all(self) -> None:
        engine = self.engine(self.node(), self.cache())
        mapping = engine.transfers.mapping(engine.session)
        assert mapping
        device = self.emulator.device
        with self.assertRaises(CudaFault):
            device.pin(address_of(mapping.slab), len(mapping.slab), read_only=False)
        device.pin(address_of(mapping.slab), len(mapping.slab), read_only=True)
        device.unpin(address_of(mapping.slab))

    def test_every_call_of_a_copy_failing_once(self) -> None:
        engine = self.engine(self.node(), self.cache(), "copy")
        engine.store(KEYS, FROM)
        lease = engine.lookup(KEYS)
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        for function in ("cuCtxSetCurrent", "cuStreamWaitEvent", "cuMemcpyHtoDAsync_v2", "cuEventRecord",
                         "cuEventSynchronize"):
            with self.subTest(function):
                self.emulator.fail(function, 1)
                job = engine.finish(engine.submit_load(lease, TO))
                self.emulator.fail(function, 0)
                # Whoever made the call: either this transfer failed whole, or it was the test's own.
                self.assertIn(job.failed, ({0, 1}, set()))
                self.right(engine)
        self.emulator.fail("cuMemcpyDtoHAsync_v2", 2)
        self.assertEqual(engine.finish(engine.submit_store([0], FROM[:4])).failed, {0})

    def test_memory_that_cannot_be_pinned_is_copied_all_the_same(self) -> None:
        node = self.node()
        cache = self.cache()
        self.emulator.fail("cuMemHostRegister_v2", 1, 2)
        with self.assertLogs("vllm.larder", logging.WARNING) as logged:
            engine = self.engine(node.socket, cache, "copy")
            until(lambda: any("not pinned" in line for line in logged.output), "a warning")
        self.right(engine)

    def test_pinned_memory_is_let_go_when_its_session_is(self) -> None:
        node = self.node()
        engine = self.engine(node, self.cache(), "copy")
        mover = engine.transfers._mover
        assert isinstance(mover, GpuMover)
        for _ in range(4):
            session = engine.session
            until(lambda: any(it.session.id == session and len(pins) == 2 for it, pins in list(mover._pinned.items())))
            engine.links[1]._shut(engine.links[1]._socket)  # type: ignore
            until(lambda: engine.answers.session and engine.session != session, "another session")
            engine.connected()
        until(lambda: len(mover._pinned) <= 2, "two mappings")
        self.right(engine)


@emulated
class Losing(World):
    def started(self) -> tuple[Node, Engine, list[bytes]]:
        node = self.node()
        engine = self.engine(node, self.cache())
        stored = engine.cache.chunks(FROM)
        engine.store(KEYS, FROM)
        engine.cache.fill(2)
        return node, engine, stored

    def test_a_node_killed_in_mid_fetch_and_started_again(self) -> None:
        node, engine, stored = self.started()
        lease = engine.lookup(KEYS)
        node.knobs("hold")
        job = engine.submit_load(lease, TO)
        until(lambda: node.stat("gpu_moving_bytes"), "a copy under way")
        node.kill()
        # Nothing of a dead process moves: its memory is still mapped here, so not even the load is lost.
        engine.finish(job)
        self.assertEqual((job.failed, job.by_node), (set(), False))
        engine.cache.expect(stored, TO)
        self.assertEqual(engine.cache.wrong_bytes(), 0)
        node.socket.unlink(missing_ok=True)
        again = self.node(node.folder)
        until(lambda: engine.answers.session and engine.answers.session.node != job.session, "a session")
        engine.connected()
        engine.attached(again)
        self.right(engine)
        self.assertGreater(again.stat("fetches_total"), 0)

    def test_pages_are_held_when_not_even_the_node_knows_what_still_writes(self) -> None:
        """Its GPU is lost in mid copy: the load ends when the node does, and by the worker."""
        node, engine, stored = self.started()
        lease = engine.lookup(KEYS)
        node.knobs("hold")
        job = engine.submit_load(lease, TO)
        assert engine.handover
        handover = engine.handover
        until(lambda: node.stat("gpu_moving_bytes"), "a copy under way")
        node.knobs("lose 719")
        until(lambda: handover._held or job.done.is_set(), "the node's answer")
        node.kill()
        engine.finish(job)
        self.assertEqual((job.failed, job.by_node), (set(), False))
        engine.cache.expect(stored, TO)
        self.assertEqual(engine.cache.wrong_bytes(), 0)

    def test_a_store_under_way_when_the_node_is_killed_is_void(self) -> None:
        node, engine, _ = self.started()
        node.knobs("hold")
        job = engine.submit_store([3], FROM[:4])
        until(lambda: node.stat("gpu_moving_bytes"), "a copy under way")
        node.kill()
        engine.finish(job)
        self.assertEqual(job.failed, {0})

    def test_pages_of_a_fetch_are_held_while_the_node_may_write_there(self) -> None:
        """The connection is lost, the node lives, and its GPU stands still: nobody says that the load has ended."""
        node, engine, stored = self.started()
        lease = engine.lookup(KEYS)
        node.knobs("hold")
        job = engine.submit_load(lease, TO)
        assert engine.handover
        handover = engine.handover
        until(lambda: [part.event for part in handover._parts.values()].count(None) == 0 and handover._parts, "moving")
        engine.links[0].stop()
        until(lambda: handover._held, "a lost connection")
        self.assertFalse(job.done.wait(0.3))
        node.knobs("")
        engine.finish(job)
        self.assertEqual((job.failed, job.by_node), (set(), False))
        engine.cache.expect(stored, TO)
        self.assertEqual(engine.cache.wrong_bytes(), 0)
        until(lambda: not handover._held and not handover._watching)

    def test_an_engine_killed_in_mid_fetch_takes_nothing_with_it(self) -> None:
        node, engine, stored = self.started()
        other = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu_other", str(node.socket)], cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        self.addCleanup(other.wait)
        self.addCleanup(other.kill)
        assert other.stdin and other.stdout
        self.assertEqual(other.stdout.readline(), "attached\n")
        node.knobs("hold")
        other.stdin.write("go\n")
        other.stdin.flush()
        until(lambda: node.stat("gpu_moving_bytes"), "a copy under way")
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()
        until(lambda: node.stat("gpu_ranks") == 1, "the rank's end")
        node.knobs("")
        until(lambda: not node.stat("gpu_jobs"), "the fetch's end")
        self.assertEqual(node.stat("gpu_stuck_total"), 0)
        job = engine.finish(engine.submit_load(engine.lookup(KEYS), TO))
        self.assertEqual((job.failed, job.by_node), (set(), True))
        engine.cache.expect(stored, TO)
        self.assertEqual(engine.cache.wrong_bytes(), 0)


if __name__ == "__main__":
    unittest.main()
