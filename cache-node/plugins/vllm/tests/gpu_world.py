"""A worker with its pages in an emulated GPU, a real cache node beside it, and a scheduler that only speaks the wire.

The plugin's own code runs here as in vLLM, below ``worker.py``; neither vLLM nor torch is there. This process allocates
the "KV cache" by the driver, as torch would. ``LARDER_TEST_NODE`` names the node's program, ``LARDER_TEST_EMULATOR`` the
emulator's library (``kernels/emulator``). With ``LARDER_REAL_CUDA=1`` the same on a GPU, as far as it needs no knobs.
"""

import ctypes
import itertools
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from larder_vllm import movers, wire
from larder_vllm.cuda import Device, Driver, Event
from larder_vllm.gpu import GpuMover
from larder_vllm.layout import PageArray, PartLayout
from larder_vllm.link import Link, Session
from larder_vllm.transfers import Job

REAL = os.environ.get("LARDER_REAL_CUDA") == "1"
"""On this machine's GPU and driver; what needs the emulator's knobs is then left out."""
NODE = os.environ.get("LARDER_TEST_NODE")
EMULATOR = "libcuda.so.1" if REAL else os.environ.get("LARDER_TEST_EMULATOR")
READY = bool(NODE and EMULATOR)

BLOCKS, PER_CHUNK = 16, 4
PIECE = 2 << 20
"""Bytes of a piece of mapped memory: what the emulator, and every device so far, gives at least."""
PATIENCE = 60.0
ORDINAL = 0 if REAL else 1
"""Of the emulator's two not the first, so that none is found by chance."""


def until(condition: Callable[[], object], what: str = "it") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about")
        time.sleep(0.002)


def noise(seed: int, count: int) -> bytes:
    """Bytes of which none is the poison of new memory."""
    found = np.random.default_rng(seed).integers(0, 0xDB, count, dtype=np.uint8)
    return found.tobytes()


class Emulator:
    """This process's emulator: the driver, and a hold on it."""

    _one: "Emulator | None" = None

    def __init__(self) -> None:
        assert EMULATOR
        if not REAL:
            os.environ["LARDER_LIBCUDA"] = EMULATOR
        self.library = ctypes.CDLL(EMULATOR)
        self.driver = Driver()
        self.device: Device = self.driver.device(ORDINAL)
        self.device.bind()

    @classmethod
    def of_process(cls) -> "Emulator":
        cls._one = cls._one or cls()
        return cls._one

    def fail(self, function: str, nth: int, code: int = 1) -> None:
        """The n-th call from now on fails; 0: none."""
        self.library.larder_emulator_fail(function.encode(), c_uint64(nth), c_uint(code))

    def call(self, name: str, *arguments: object) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            raise AssertionError(f"{name}: {code}")

    def allocate(self, count: int) -> int:
        at = c_uint64()
        self.call("cuMemAlloc_v2", byref(at), c_size_t(count))
        return at.value

    def map(self, count: int, exportable: bool = True) -> int:
        """Memory mapped from pieces, as ``expandable_segments`` makes it."""
        class Properties(ctypes.Structure):
            _fields_ = [("kind", c_uint), ("handles", c_uint), ("location", c_uint * 2), ("windows", c_void_p),
                        ("flags", ctypes.c_ubyte * 8)]

        class Access(ctypes.Structure):
            _fields_ = [("location", c_uint * 2), ("flags", c_uint)]

        wanted = Properties(1, int(exportable), (c_uint * 2)(1, ORDINAL), None, (ctypes.c_ubyte * 8)())
        pieces = -(-count // PIECE)
        at = c_uint64()
        self.call("cuMemAddressReserve", byref(at), c_size_t(pieces * PIECE), c_size_t(0), c_uint64(0), c_uint64(0))
        for place in range(pieces):
            made = c_uint64()
            self.call("cuMemCreate", byref(made), c_size_t(PIECE), byref(wanted), c_uint64(0))
            self.call("cuMemMap", c_uint64(at.value + place * PIECE), c_size_t(PIECE), c_size_t(0), made, c_uint64(0))
            self.call("cuMemRelease", made)
        access = Access((c_uint * 2)(1, ORDINAL), 3)
        self.call("cuMemSetAccess", at, c_size_t(pieces * PIECE), byref(access), c_size_t(1))
        return at.value


@dataclass(frozen=True)
class Setup:
    """How an engine's pages lie: ``(page bytes, stride)`` of each array, and what holds them."""

    name: str
    arrays: tuple[tuple[int, int], ...]
    together: bool = False
    """All arrays in one allocation, one after the other, not from its beginning."""
    mapped: bool = False
    exportable: bool = True


SETUPS = (
    # LBHNC: each layer its own allocation, one of them padded.
    Setup("layers", ((256, 256), (112, 128), (2048, 2048))),
    # LBHNC in one allocation, as torch's allocator packs tensors.
    Setup("layers together", ((256, 256), (112, 128), (48, 48)), together=True),
    # BLHNC: a block is one piece of all layers.
    Setup("blocks", ((17_000, 17_008),)),
    # MLA's latent pages as vLLM lays them: each layer one vector a token, without gaps.
    Setup("latent", ((16 * 1152, 16 * 1152), (16 * 1152, 16 * 1152))),
    Setup("layers, mapped", ((256, 256), (112, 128), (2048, 2048)), mapped=True),
    # The pages lie across two pieces.
    Setup("blocks, mapped", ((17_000, 17_008),), together=True, mapped=True),
)


class Cache:
    """The engine's KV cache in the GPU, with an image of what every byte of it must be."""

    def __init__(self, emulator: Emulator, setup: Setup) -> None:
        self.emulator, self.setup, self.device = emulator, setup, emulator.device
        self.stream = self.device.stream()
        """The engine's own."""
        make = (lambda count: emulator.map(count, setup.exportable)) if setup.mapped else emulator.allocate
        sizes = [stride * BLOCKS for _, stride in setup.arrays]
        self.memory: list[tuple[int, int]] = []
        self.arrays: list[PageArray] = []
        if setup.together:
            lead = PIECE - 3072 if setup.mapped else 512
            base = make(lead + sum(sizes))
            self.memory.append((base + lead, sum(sizes)))
            starts = [base + lead + before for before in itertools.accumulate(sizes[:-1], initial=0)]
        else:
            starts = [make(size) for size in sizes]
            self.memory += zip(starts, sizes)
        for start, (width, stride) in zip(starts, setup.arrays):
            self.arrays.append(PageArray(start, BLOCKS, stride, width, None, ORDINAL))
        self.part_bytes = PER_CHUNK * sum(width for width, _ in setup.arrays)
        self.image: dict[int, bytearray] = {}
        self._kept: list[object] = []

    def layout(self, rank: int = 0) -> PartLayout:
        return PartLayout.of(self.arrays, PER_CHUNK, rank, self.part_bytes)

    def begin_to_fill(self, seed: int) -> None:
        """The engine writes all of its pages, on its own stream."""
        for place, (start, count) in enumerate(self.memory):
            data = noise(seed * 100 + place, count)
            self.image[start] = bytearray(data)
            source = np.frombuffer(mmap.mmap(-1, count), np.uint8)  # whole pages, so that no two pinned ranges meet
            source[:] = np.frombuffer(data, np.uint8)
            self._kept.append(source)
            self.device.pin(source.ctypes.data, count, False)
            self.device.copy_in(start, source.ctypes.data, count, self.stream)

    def fill(self, seed: int) -> None:
        self.begin_to_fill(seed)
        self.device.drain(self.stream)

    def pages(self, block: int) -> list[bytes]:
        """What a block's pages must hold, layer by layer."""
        return [bytes(image[at : at + width]) for image, at, width in self._pages(block)]

    def _pages(self, block: int) -> Iterator[tuple[bytearray, int, int]]:
        for pages in self.arrays:
            for start, count in self.memory:
                if start <= pages.address < start + count:
                    yield self.image[start], pages.address - start + block * pages.stride, pages.page_bytes

    def chunks(self, blocks: list[int]) -> list[bytes]:
        """The oracle: layer after layer, each layer's pages in the order of the chunk's blocks."""
        found = []
        for at in range(0, len(blocks), PER_CHUNK):
            pages = [self.pages(block) for block in blocks[at : at + PER_CHUNK]]
            found.append(b"".join(page[layer] for layer in range(len(self.arrays)) for page in pages))
        return found

    def expect(self, chunks: list[bytes], blocks: list[int], skip: int = 0) -> None:
        """What a load of these chunks makes of the pages, page by page."""
        for place, block in enumerate(blocks, skip):
            chunk, within, offset = chunks[place // PER_CHUNK], place % PER_CHUNK, 0
            for image, at, width in self._pages(block):
                start = offset + within * width
                image[at : at + width] = chunk[start : start + width]
                offset += width * PER_CHUNK

    def wrong_bytes(self) -> int:
        """Bytes of the whole memory, touched or not, that are not what they must be; read on the engine's stream."""
        wrong = 0
        for start, count in self.memory:
            buffer = ctypes.create_string_buffer(count)
            self.device.copy_out(ctypes.addressof(buffer), start, count, self.stream)
            self.device.drain(self.stream)
            found, wanted = np.frombuffer(buffer.raw, np.uint8), np.frombuffer(bytes(self.image[start]), np.uint8)
            wrong += int(np.count_nonzero(found != wanted))
        return wrong


class Node:
    """The node's process, with the emulator as its driver."""

    def __init__(self, folder: Path | None = None, **variables: str) -> None:
        self._own = None if folder else tempfile.TemporaryDirectory()
        self.folder = folder or Path(self._own.name)  # type: ignore[union-attr]
        self.socket = self.folder / "node.sock"
        self.knobs_file = self.folder / "knobs"
        self.knobs("")
        config = self.folder / "node.toml"
        config.write_text(
            f'engine_socket = "{self.socket}"\ncontrol = "127.0.0.1:0"\nhost = {{ size = "64MiB" }}\n'
            'lookup_deadline = "10s"\nregion = { size = "4MiB" }\nlog = "warn"\n'
        )
        assert NODE and EMULATOR
        driver = {} if REAL else {"LARDER_LIBCUDA": EMULATOR, "LARDER_EMULATOR_KNOBS": str(self.knobs_file)}
        environment = {**os.environ, **driver, **variables}
        command = [NODE, "--config", str(config)]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.process.stdout.readline()
        self.address = self.process.stdout.readline().strip().removeprefix("control on ")

    def knobs(self, text: str) -> None:
        beside = self.knobs_file.with_suffix(".new")
        beside.write_text(text)
        beside.rename(self.knobs_file)

    def stat(self, name: str) -> int:
        with urllib.request.urlopen(f"{self.address}/v1/stats", timeout=PATIENCE) as answer:
            return int(json.load(answer)[name])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def close(self) -> None:
        self.kill()
        if self._own:
            self._own.cleanup()


class Answers:
    """The scheduler's connection: what the node said."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.heard: dict[int, object] = {}

    def on_registered(self, session: Session, fds: list[int]) -> None:
        self.session = session

    def on_message(self, message: object) -> None:
        self.heard[getattr(message, "id", None) or 0] = message

    def on_lost(self) -> None:
        self.session = None


class Engine:
    """One rank's worker and its scheduler, connected to a node."""

    def __init__(
        self, node_socket: Path, cache: Cache, mode: str = "auto", name: str = "e",
        mover_class: type[GpuMover] = GpuMover, moves: str | None = None, world: int = 1, first: "Engine | None" = None,
    ) -> None:
        """``first``: rank 0 of the same engine, which has its scheduler; this one is rank 1 then."""
        rank, self._world = 1 if first else 0, world
        self._ended: list[Job] = []
        self.cache, self._numbers = cache, first._numbers if first else itertools.count(1)
        self.transfers, self.handover = movers.in_gpu(
            cache.layout(rank), mode, lambda: cache.stream, moves, mover_class=mover_class,
        )
        self.answers = first.answers if first else Answers()
        register = wire.Register(
            id=0, model="m", hash="sha256_cbor", weights=b"w" * 32, epoch=0, layout=b"l" * 32, dtype="float32",
            tokens_per_block=16, blocks_per_chunk=PER_CHUNK, part_bytes=cache.part_bytes, world=world,
        )
        self.links = []
        for role, sink in (("scheduler", self.answers), ("worker", self.transfers)):
            if first and role == "scheduler":
                continue
            hello = wire.Hello(versions=wire.VERSIONS, role=role, rank=rank, engine=name)
            link = Link(str(node_socket), hello, lambda: register, sink)  # type: ignore[arg-type]
            if role == "worker" and self.handover is not None:
                self.handover.line = link
            self.links.append(link)
            link.start()
        self._scheduler: Link = first._scheduler if first else self.links[0]
        self.connected()

    def connected(self) -> None:
        """Waits for both connections."""
        until(lambda: self.answers.session, "a session")
        until(lambda: self.transfers.mapping(self.session), "a worker's session")

    def attached(self, node: Node) -> "Engine":
        """Waits until the node copies itself: the pages are open there and all memory is pinned."""
        session = self.answers.session
        assert session
        told = session.registered
        until(lambda: self.handover and self.handover._peer, "attached")
        until(lambda: node.stat("gpu_pinned_bytes") >= told.slab_bytes + told.region_bytes, "pinned memory")
        return self

    def decided(self) -> "Engine":
        """Waits until the node has opened the pages, or it is known that it does not."""
        handover = self.handover
        until(lambda: handover is None or handover._peer or handover._told, "an answer to attach")
        return self

    @property
    def session(self) -> bytes:
        until(lambda: self.answers.session, "a session")
        assert self.answers.session
        return self.answers.session.id

    def ask(self, message: wire.Message) -> object:
        number = message.id  # type: ignore[attr-defined]
        assert self._scheduler.send(message), "the scheduler's connection is lost"
        until(lambda: number in self.answers.heard, f"an answer to {message}")
        return self.answers.heard.pop(number)

    def number(self) -> int:
        return next(self._numbers)

    def lookup(self, keys: list[bytes]) -> wire.Lease:
        ends = [64 * (place + 1) for place in range(len(keys))]
        found = self.ask(wire.Lookup(id=self.number(), keys=keys, end_tokens=ends))
        assert isinstance(found, wire.Lease) and len(found.slots) == len(keys), found
        return found

    def submit_store(self, slots: list[int], blocks: list[int]) -> Job:
        job = Job(self.number(), False, 0, self.session, np.array(slots, np.uint32), np.empty(0, np.uint64), [],
                  np.array(blocks, np.int32), 0)
        self.transfers.submit(job)
        return job

    def submit_load(self, lease: wire.Lease, blocks: list[int], skip: int = 0, first: int = 0) -> Job:
        """A load as vLLM's: the scheduler has said ``load`` before."""
        count = -(-(len(blocks) + skip) // PER_CHUNK)
        assert isinstance(self.ask(wire.Load(id=self.number(), lease=lease.lease, first=first, count=count)), wire.Ok)
        span = slice(first, first + count)
        # Two leases' parts, as after a grant and a lookup that went further.
        half = count // 2
        parts = [(lease.lease, first, half), (lease.lease, first + half, count - half)][0 if half else 1 :]
        job = Job(self.number(), True, 0, self.session, np.array(lease.slots[span], np.uint32),
                  np.array(lease.generations[span], np.uint64), parts, np.array(blocks, np.int32), skip)
        self.transfers.submit(job)
        return job

    def finish(self, job: Job) -> Job:
        def ended() -> bool:
            self._ended.extend(self.transfers.take_finished())
            return job in self._ended

        until(ended, "the end of a transfer")
        return job

    def store(self, keys: list[bytes], blocks: list[int], slots: list[int] | None = None) -> Job:
        """Stores and commits."""
        slots = slots or list(range(len(keys)))
        job = self.finish(self.submit_store(slots, blocks))
        assert not job.failed, job
        self.commit(keys, slots)
        return job

    def commit(self, keys: list[bytes], slots: list[int]) -> None:
        ends = [64 * (place + 1) for place in range(len(keys))]
        done = self.ask(wire.Commit(id=self.number(), keys=keys, end_tokens=ends, region_slots=slots))
        assert isinstance(done, wire.Committed) and done.results == [0] * len(keys), done

    def held(self, keys: list[bytes]) -> list[bytes]:
        """What the node holds, as read from its slab."""
        lease = self.lookup(keys)
        mapping = self.transfers.mapping(self.session)
        assert mapping
        offsets = mapping.slab_offsets(np.array(lease.slots, np.uint32))
        whole = self.cache.part_bytes * self._world
        chunks = [mapping.slab[at : at + whole].tobytes() for at in offsets.tolist()]
        self.ask(wire.Release(id=self.number(), lease=lease.lease))
        return chunks

    def close(self) -> None:
        for link in self.links:
            link.stop()
        self.transfers.shutdown()
        # A descriptor each in the emulator; of an engine they end with its process.
        for mark in self.transfers._mover.marks:  # type: ignore[attr-defined]
            mark.close()


class Gate:
    """An event of another process, not reached until it is opened: for work that is to wait in the engine's stream."""

    def __init__(self, device: Device) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu_gate"], cwd=Path(__file__).parents[1], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )
        assert self._process.stdout
        self.event: Event = device.open_event(bytes.fromhex(self._process.stdout.readline().strip()))

    def open(self) -> None:
        if self._process.stdin and not self._process.stdin.closed:
            self._process.communicate("open\n")
