"""A small honest cache node in Python, for tests: it speaks the real wire and can be told to misbehave.

It keeps chunks in a memfd slab, hands out leases and regions, and remembers every message it got.
"""

import mmap
import os
import socket
import threading
from collections.abc import Callable

from larder_vllm import wire

SLOT_STRIDE = 131_072
SLOTS_PER_EXTENT = 7
EXTENT_BYTES = 1_048_576
EXTENTS = 64
REGION_SLOTS = 512


class Connection:
    """One accepted connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.hello: wire.Hello | None = None
        self.region: mmap.mmap | None = None

    def say(self, message: wire.Message, fds: list[int] | None = None) -> None:
        frame = wire.encode(message)
        if fds:
            socket.send_fds(self.sock, [frame], fds)
        else:
            self.sock.sendall(frame)


class FakeNode:
    """Serves one session at a time. ``answer`` may be replaced to script other answers; None means silence."""

    def __init__(self, path: str, session: bytes | None = b"s" * 16) -> None:
        self.path = path
        self.session = session
        self.heard: list[wire.ToNode] = []
        self.held: dict[bytes, int] = {}
        self.scheduler: Connection | None = None
        self.answer: Callable[[wire.ToNode], wire.Message | None] = self.honest
        self._region: mmap.mmap | None = None
        self._numbers = 0
        self._slab_fd = os.memfd_create("slab")
        os.ftruncate(self._slab_fd, EXTENTS * EXTENT_BYTES)
        self.slab = mmap.mmap(self._slab_fd, EXTENTS * EXTENT_BYTES)
        self._table_fd = os.memfd_create("generations")
        os.ftruncate(self._table_fd, 8 * EXTENTS * SLOTS_PER_EXTENT)
        self.table = mmap.mmap(self._table_fd, 8 * EXTENTS * SLOTS_PER_EXTENT)
        self._connections: list[Connection] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if os.path.exists(path):
            os.unlink(path)
        self._listener.bind(path)
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    # === memory

    @staticmethod
    def offset(slot: int) -> int:
        return (slot // SLOTS_PER_EXTENT) * EXTENT_BYTES + (slot % SLOTS_PER_EXTENT) * SLOT_STRIDE

    def generation(self, slot: int) -> int:
        return int.from_bytes(self.table[8 * slot : 8 * slot + 8], "little")

    def bump(self, slot: int) -> None:
        self.table[8 * slot : 8 * slot + 8] = (self.generation(slot) + 1).to_bytes(8, "little")

    def put(self, key: bytes, data: bytes) -> int:
        """Holds a chunk."""
        slot = self.held.get(key, len(self.held) + 1)
        self.bump(slot)
        self.slab[self.offset(slot) : self.offset(slot) + len(data)] = data
        self.held[key] = slot
        return slot

    # === wire

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            connection = Connection(sock)
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        reader = wire.FrameReader()
        try:
            while data := connection.sock.recv(262_144):
                for body in reader.feed(data):
                    message = wire.decode_to_node(body)
                    assert message is not None
                    self.heard.append(message)
                    self._hear(connection, message)
        except OSError:
            pass

    def _hear(self, connection: Connection, message: wire.ToNode) -> None:
        if isinstance(message, wire.Hello):
            connection.hello = message
            if message.role == "scheduler":
                self.scheduler = connection
            connection.say(wire.Welcome(version=1, node=b"n" * 16, frame_bytes_max=8_388_608, list_len_max=65_536))
        elif isinstance(message, wire.Register):
            self._register(connection, message)
        else:
            said = self.answer(message)
            if said is not None:
                connection.say(said)

    def _register(self, connection: Connection, message: wire.Register) -> None:
        worker = connection.hello is not None and connection.hello.role == "worker"
        fds: list[int] = []
        if worker:
            region_fd = os.memfd_create("region")
            os.ftruncate(region_fd, REGION_SLOTS * SLOT_STRIDE)
            self._region = mmap.mmap(region_fd, REGION_SLOTS * SLOT_STRIDE)
            fds = [self._slab_fd, self._table_fd, region_fd]
        connection.say(wire.Registered(
            id=message.id, namespace=b"0" * 16, slab_bytes=EXTENTS * EXTENT_BYTES, extent_bytes=EXTENT_BYTES,
            slots_per_extent=SLOTS_PER_EXTENT, slot_stride=SLOT_STRIDE, region_bytes=REGION_SLOTS * SLOT_STRIDE,
            region_stride=SLOT_STRIDE, region_slots=REGION_SLOTS, lease_ttl_ms=30_000, fds=len(fds),
            session=self.session,
        ), fds)
        self.part_bytes = message.part_bytes * message.world

    def honest(self, message: wire.ToNode) -> wire.Message | None:
        """What a good node answers."""
        if isinstance(message, wire.Lookup):
            slots: list[int] = []
            for key in message.keys:
                if key not in self.held:
                    break
                slots.append(self.held[key])
            if not slots:
                return wire.Miss(id=message.id, reason="not_held")
            return wire.Lease(id=message.id, lease=self.lease_id(), slots=slots,
                              generations=[self.generation(slot) for slot in slots], expires_ms=30_000)
        if isinstance(message, wire.Commit):
            return wire.Committed(id=message.id, results=[self._commit(*pair) for pair in
                                                          zip(message.keys, message.region_slots)])
        if isinstance(message, wire.Epoch):
            self.held.clear()
            return wire.EpochSet(id=message.id, namespace=b"1" * 16)
        if isinstance(message, (wire.Load, wire.Complete, wire.Release)):
            return wire.Ok(id=message.id)
        return None

    def _commit(self, key: bytes, region_slot: int) -> int:
        if key in self.held:
            return 1
        if len(self.held) + 1 >= EXTENTS * SLOTS_PER_EXTENT or self._region is None:
            return 2
        start = region_slot * SLOT_STRIDE
        self.put(key, self._region[start : start + self.part_bytes])
        return 0

    def lease_id(self) -> bytes:
        self._numbers += 1
        return self._numbers.to_bytes(16, "big")

    def said(self, kind: type[wire.Message]) -> list[wire.Message]:
        """Everything heard of one kind."""
        return [message for message in self.heard if isinstance(message, kind)]

    def drop_connections(self) -> None:
        """As if the node's process had died; it listens on."""
        for connection in self._connections:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            connection.sock.close()
        self._connections.clear()

    def close(self) -> None:
        self._listener.close()
        self.drop_connections()
        if os.path.exists(self.path):
            os.unlink(self.path)
