"""The codec against the protocol's golden file, made by another codec's owner."""

import unittest
from pathlib import Path

from larder_vllm import wire

GOLDEN = Path(__file__).parents[3] / "protocol" / "golden"


def golden_lines() -> list[tuple[str, str, bytes]]:
    names = ("engine-port-v1.txt", "engine-port-v1-optional.txt", "engine-port-v2.txt", "engine-port-v3.txt")
    text = "".join((GOLDEN / name).read_text() for name in names)
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return [(direction, kind, bytes.fromhex(hexed)) for direction, kind, hexed in lines]


class Golden(unittest.TestCase):
    def test_every_line_decodes_and_encodes_to_the_same_bytes(self) -> None:
        lines = golden_lines()
        self.assertGreater(len(lines), 20)
        for direction, kind, frame in lines:
            with self.subTest(direction=direction, kind=kind):
                (body,) = wire.FrameReader().feed(frame)
                decode = wire.decode_to_node if direction == "to_node" else wire.decode_to_engine
                message = decode(body)
                assert message is not None
                self.assertEqual(type(message).__struct_config__.tag, kind)
                again = wire.encode(message)
                if kind == "error":  # its optional id comes last here; the order of fields is free
                    self.assertEqual(decode(again[4:]), message)
                else:
                    self.assertEqual(again, frame)

    def test_the_session_is_read_where_it_is_told(self) -> None:
        told = []
        for _, kind, frame in golden_lines():
            if kind == "registered":
                message = wire.decode_to_engine(frame[4:])
                assert isinstance(message, wire.Registered)
                told.append(message.session)
        self.assertEqual(told, [None, (9).to_bytes(16, "big")])

    def test_a_changed_byte_is_seen(self) -> None:
        frame = next(frame for _, kind, frame in golden_lines() if kind == "lease")
        (body,) = wire.FrameReader().feed(frame)
        changed = body.replace(b"\x04\x01", b"\x04\x02", 1)
        self.assertNotEqual(wire.decode_to_engine(changed), wire.decode_to_engine(body))


class Stream(unittest.TestCase):
    def test_bytes_one_at_a_time(self) -> None:
        frames = [frame for direction, _, frame in golden_lines() if direction == "to_engine"]
        reader = wire.FrameReader()
        bodies = [body for byte in b"".join(frames) for body in reader.feed(bytes([byte]))]
        self.assertEqual(bodies, [frame[4:] for frame in frames])

    def test_lengths_out_of_range(self) -> None:
        for length in (0, wire.FRAME_BYTES_MAX + 1, 2**32 - 1):
            with self.assertRaises(wire.WireFault):
                wire.FrameReader().feed(length.to_bytes(4, "little"))

    def test_unknown_kinds_and_fields_are_skipped(self) -> None:
        import msgspec

        self.assertIsNone(wire.decode_to_engine(msgspec.msgpack.encode({"kind": "weather", "id": 1})))
        ok = wire.decode_to_engine(msgspec.msgpack.encode({"kind": "ok", "id": 1, "mood": "fine"}))
        self.assertEqual(ok, wire.Ok(id=1))

    def test_garbage_is_a_fault(self) -> None:
        import msgspec

        for body in (b"\xc1", b"\x00", msgspec.msgpack.encode([1]), msgspec.msgpack.encode({"kind": "ok"}),
                     msgspec.msgpack.encode({"kind": "lease", "id": 1, "lease": "text"}), b"\x81\xa4kind"):
            with self.assertRaises(wire.WireFault):
                wire.decode_to_engine(body)


if __name__ == "__main__":
    unittest.main()
