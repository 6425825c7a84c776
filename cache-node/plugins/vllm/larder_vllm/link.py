"""One connection to the cache node, on a thread of its own.

Nobody but that thread ever waits for the node: ``send`` copies bytes into the socket's buffer or its own and returns.
A lost connection is made again, with growing pauses, for as long as the engine runs.
"""

import logging
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from larder_vllm import wire

log = logging.getLogger("vllm.larder")

CONNECT_SECONDS: Final = 2.0
"""A unix socket answers at once or its node is stuck."""
GREETING_SECONDS: Final = 30.0
"""From hello to registered: the node may have to make and touch a region."""
PAUSE_SECONDS_MIN: Final = 0.2
PAUSE_SECONDS_MAX: Final = 5.0
"""Pauses between attempts double from one to the other: a restarted node is found within seconds."""
PAUSE_SECONDS_REFUSED: Final = 30.0
"""After a refusal: the node's configuration would have to change first."""
UNSENT_BYTES_MAX: Final = 8_388_608
"""Bytes kept for a node that does not read. More means it is stuck: the connection is given up."""
READ_BYTES: Final = 262_144
FDS_MAX: Final = 3
FDS_AT_ONCE_MAX: Final = 253
"""Descriptors that go with one call of the system (``SCM_MAX_FD`` of Linux)."""
_PEERCRED: Final = struct.Struct("3i")
_SO_PEERPIDFD: Final = 77
"""Linux 6.5 and newer; names the process whatever namespace it is in."""


@dataclass(frozen=True)
class Session:
    """What the node answered to ``register``; slots mean something only together with it."""

    node: bytes
    registered: wire.Registered
    version: int = 2
    """Of the wire, as both sides speak it."""

    @property
    def id(self) -> bytes:
        """Names this session in every process of the engine."""
        return self.registered.session or self.node


class Sink(Protocol):
    """Who is told what the connection brings. Called on the link's thread."""

    def on_registered(self, session: Session, fds: list[int]) -> None:
        """The session's connection stands; the descriptors are the sink's."""

    def on_message(self, message: "wire.ToEngine") -> None:
        """The node said something after that."""

    def on_lost(self) -> None:
        """The connection is gone, and with it all that was not yet answered."""


class _Ended(Exception):
    """Why this connection is over; ``pause`` overrides the wait before the next."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class Link:
    """The connection. ``start`` once, ``send`` from any thread, ``stop`` at the end."""

    def __init__(
        self, path: str, hello: wire.Hello, register: Callable[[], wire.Register], sink: Sink
    ) -> None:
        """``register`` is called on the link's thread (it may read gigabytes of weights); its faults are final."""
        self._path = path
        self._hello = hello
        self._make_register = register
        self._sink = sink
        self._name = f"{hello.role} {hello.rank}"
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._unsent = bytearray()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._last_reason = ""
        self._greeted = False
        self._thread = threading.Thread(target=self._run, name=f"larder {self._name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, reason: str = "shutdown") -> None:
        """Says goodbye and ends the thread; waits two seconds at most."""
        self.send(wire.Goodbye(reason=reason))
        self._stopping.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def send(self, message: wire.Message) -> bool:
        """Hands a message to the node without waiting. False: there is no connection, or it was just given up."""
        frame = wire.encode(message)
        with self._lock:
            sock = self._socket
            if sock is None:
                return False
            if len(self._unsent) + len(frame) > UNSENT_BYTES_MAX:
                self._shut(sock)
                return False
            if not self._unsent:
                try:
                    frame = frame[sock.send(frame, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    pass
                except OSError:
                    return False  # the thread sees it too, and reconnects
            if frame:
                self._unsent += frame
                self._wake()
        return True

    def send_with(self, message: wire.Message, fds: Sequence[int]) -> bool:
        """``send`` with descriptors, which stay the caller's. False also when something waits to be sent before it, or
        the socket takes no more: this is for a connection that has just begun."""
        frame = wire.encode(message)
        with self._lock:
            sock = self._socket
            if sock is None or self._unsent:
                return False
            begun = False
            try:
                # All but the last go with a byte each, so that every one comes before the frame's end.
                while len(fds) > FDS_AT_ONCE_MAX:
                    socket.send_fds(sock, [frame[:1]], fds[:FDS_AT_ONCE_MAX], socket.MSG_DONTWAIT)
                    begun, frame, fds = True, frame[1:], fds[FDS_AT_ONCE_MAX:]
                sent = socket.send_fds(sock, [frame], fds, socket.MSG_DONTWAIT)
            except OSError:
                if begun:
                    self._shut(sock)  # nothing can follow half a frame
                return False
            if sent < len(frame):
                self._unsent += frame[sent:]
                self._wake()
        return True

    def watch_peer(self) -> int | None:
        """A descriptor that becomes readable when the node's process has ended, the caller's to close. None where it
        cannot be had: there is no connection, or the system has no such thing."""
        with self._lock:
            if self._socket is None:
                return None
            try:
                return int.from_bytes(self._socket.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4), "little")
            except OSError:
                pass
            try:
                told = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
                pid = _PEERCRED.unpack(told)[0]
                return os.pidfd_open(pid) if pid > 0 else None
            except (AttributeError, OSError):
                return None

    @staticmethod
    def _shut(sock: socket.socket) -> None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"w")
        except BlockingIOError:
            pass  # full of wakes already

    # === the thread

    def _run(self) -> None:
        try:
            register = self._make_register()
        except Exception as fault:
            log.warning("larder: not sharing KV: %s", fault)
            return
        pause = PAUSE_SECONDS_MIN
        while not self._stopping.is_set():
            self._greeted = False
            wait: float | None = None
            try:
                self._serve(register)
            except _Ended as ended:
                self._say(str(ended))
                wait = ended.pause
            except (OSError, wire.WireFault) as fault:
                self._say(str(fault))
            except Exception as fault:  # a fault of ours costs this session, not the engine
                log.exception("larder: %s: the session is given up", self._name)
                self._last_reason = str(fault)
            pause = PAUSE_SECONDS_MIN if self._greeted else min(pause * 2, PAUSE_SECONDS_MAX)
            self._stopping.wait(wait if wait is not None else pause)

    def _say(self, reason: str) -> None:
        """One line when the state changes; a node that stays away is not news."""
        if not self._stopping.is_set() and (self._greeted or reason != self._last_reason):
            log.warning("larder: %s: no cache node at %s (%s): computing as if alone", self._name, self._path, reason)
        self._last_reason = reason

    def _serve(self, register: wire.Register) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(CONNECT_SECONDS)
            sock.connect(self._path)
            sock.settimeout(GREETING_SECONDS)
            reader = wire.FrameReader()
            session, fds, early = self._greet(sock, reader, register)
            sock.setblocking(False)
            with self._lock:
                self._socket, self._unsent = sock, bytearray()
            self._greeted = True
            log.info("larder: %s: session %s with the cache node at %s", self._name, session.id.hex()[:8], self._path)
            self._sink.on_registered(session, fds)
            self._listen(sock, reader, early)
        finally:
            with self._lock:
                self._socket, self._unsent = None, bytearray()
            sock.close()
            if self._greeted:
                self._sink.on_lost()

    def _greet(
        self, sock: socket.socket, reader: wire.FrameReader, register: wire.Register
    ) -> tuple[Session, list[int], list[wire.ToEngine]]:
        """Hello and register; returns what came after ``registered`` in the same read, too."""
        sock.sendall(wire.encode(self._hello))
        heard: list[wire.ToEngine] = []
        fds: list[int] = []
        welcome: wire.Welcome | None = None
        try:
            while True:
                while heard:
                    message = heard.pop(0)
                    if isinstance(message, wire.Welcome):
                        welcome = message
                        sock.sendall(wire.encode(register))
                    elif isinstance(message, wire.Registered) and welcome is not None:
                        if len(fds) != message.fds:
                            raise _Ended(f"{len(fds)} descriptors came and not {message.fds}")
                        return Session(welcome.node, message, welcome.version), fds, heard
                    else:
                        raise self._unwelcome(message)
                heard += self._read(sock, reader, fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    @staticmethod
    def _unwelcome(message: wire.ToEngine) -> _Ended:
        if isinstance(message, wire.Refused):
            return _Ended(f"refused: {message.code}: {message.message}", PAUSE_SECONDS_REFUSED)
        if isinstance(message, (wire.Reject, wire.ErrorAnswer)):
            return _Ended(f"{message.code}: {message.message}")
        if isinstance(message, wire.Goodbye):
            return _Ended(f"goodbye: {message.reason}")
        return _Ended(f"a {type(message).__name__} before registered")

    @staticmethod
    def _read(sock: socket.socket, reader: wire.FrameReader, fds: list[int] | None) -> "list[wire.ToEngine]":
        if fds is None:
            data = sock.recv(READ_BYTES)
        else:
            data, came, _, _ = socket.recv_fds(sock, READ_BYTES, FDS_MAX)
            fds += came
        if not data:
            raise _Ended("the node closed the connection")
        messages = [wire.decode_to_engine(body) for body in reader.feed(data)]
        return [message for message in messages if message is not None]

    def _listen(self, sock: socket.socket, reader: wire.FrameReader, early: "list[wire.ToEngine]") -> None:
        self._hand_on(early)
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while not self._stopping.is_set():
                with self._lock:
                    wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
                selector.modify(sock, wanted)
                for key, events in selector.select():
                    if key.fd == self._wake_read:
                        os.read(self._wake_read, 4096)
                    elif events & selectors.EVENT_READ:
                        self._hand_on(self._read(sock, reader, None))
                self._flush(sock)

    def _hand_on(self, messages: "list[wire.ToEngine]") -> None:
        for message in messages:
            if isinstance(message, wire.Goodbye):
                raise _Ended(f"goodbye: {message.reason}")
            self._sink.on_message(message)

    def _flush(self, sock: socket.socket) -> None:
        with self._lock:
            if self._unsent:
                try:
                    del self._unsent[: sock.send(self._unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)]
                except BlockingIOError:
                    pass
