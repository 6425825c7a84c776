"""What a connection does beyond sending and hearing: descriptors with a message, and seeing the other process end."""

import os
import select
import socket
import subprocess
import sys
import tempfile
import unittest

from larder_vllm import wire
from larder_vllm.link import Link


def link_over(end: socket.socket) -> Link:
    """A connection that stands, without a thread."""
    link = Link("/nowhere", wire.Hello([3], "worker", 0, "e"), lambda: None, None)  # type: ignore[arg-type, return-value]
    link._socket = end
    return link


def received(end: socket.socket, frame_bytes: int) -> tuple[bytes, list[int]]:
    data, found = b"", []
    while len(data) < frame_bytes:
        more, fds, _, _ = socket.recv_fds(end, 65_536, 253)
        data, found = data + more, found + fds
    return data, found


class Descriptors(unittest.TestCase):
    def setUp(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(self.ours.close)
        self.addCleanup(self.theirs.close)

    def test_any_number_comes_before_the_frames_end_and_in_order(self) -> None:
        for count in (0, 1, 253, 254, 300):
            with self.subTest(count):
                files = [tempfile.TemporaryFile() for _ in range(count)]
                message = wire.Save(id=1, region_slots=list(range(1000)), blocks=[1, 2, 3])
                self.assertTrue(link_over(self.ours).send_with(message, [file.fileno() for file in files]))
                data, fds = received(self.theirs, len(wire.encode(message)))
                self.assertEqual(data, wire.encode(message))
                self.assertEqual([os.fstat(fd).st_ino for fd in fds], [os.fstat(file.fileno()).st_ino for file in files])
                for file in files:
                    file.close()
                for fd in fds:
                    os.close(fd)

    def test_not_behind_what_waits_and_not_without_a_connection(self) -> None:
        link = link_over(self.ours)
        link._unsent += b"something"
        self.assertFalse(link.send_with(wire.Ok(id=1), []))
        link._socket = None
        self.assertFalse(link.send_with(wire.Ok(id=1), []))
        self.assertIsNone(link.watch_peer())


class Peer(unittest.TestCase):
    def test_the_end_of_the_other_process_is_seen_and_nothing_before(self) -> None:
        """Also when the connection is long lost."""
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/node.sock"
            program = (
                "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(flush=True);"
                "c, _ = s.accept(); c.close(); print(flush=True); sys.stdin.read()"
            )
            node = subprocess.Popen([sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert node.stdin and node.stdout
            node.stdout.readline()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
                end.connect(path)
                process = link_over(end).watch_peer()
            assert process is not None
            self.addCleanup(os.close, process)
            node.stdout.readline()
            poll = select.poll()
            poll.register(process, select.POLLIN)
            self.assertEqual(poll.poll(50), [])
            node.kill()
            self.assertTrue(poll.poll(60_000))
            node.communicate()


if __name__ == "__main__":
    unittest.main()
