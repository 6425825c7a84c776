"""Another engine's process: it attaches, loads when it is told to, and waits to be killed."""

import sys
import time
from pathlib import Path

from tests.gpu_world import PATIENCE, SETUPS, Cache, Emulator, Engine, until

cache = Cache(Emulator.of_process(), SETUPS[0])
cache.fill(3)
engine = Engine(Path(sys.argv[1]), cache, name="other")
until(lambda: engine.handover and engine.handover._peer)
print("attached", flush=True)
input()
engine.submit_load(engine.lookup([b"k1", b"k2"]), [3, 4, 6, 10, 12, 11, 13])
time.sleep(PATIENCE)
