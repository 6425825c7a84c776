"""A process that has recorded an event which its held stream reaches when a line comes."""

from tests.gpu_world import Emulator

emulator = Emulator.of_process()
emulator.library.larder_emulator_hold(1)
event = emulator.device.event(shared=True)
stream = emulator.device.stream()
event.record(stream)
print(event.name().hex(), flush=True)
input()
emulator.library.larder_emulator_hold(0)
emulator.device.drain(stream)
