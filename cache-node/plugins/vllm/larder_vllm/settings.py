"""What an operator writes into ``kv_connector_extra_config``, read once and refused whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

LOOKUP_MS_DEFAULT: Final = 50
"""How long one request may wait for the node's answer, all its scheduler steps together."""

LOOKUP_MS_MAX: Final = 1_000
"""vLLM sets no limit of its own: above this a hung node would be felt as a hung engine."""

PENDING_MS_DEFAULT: Final = 1_000
"""How long one request may wait for chunks that come up from the node's disk: some gigabytes of an NVMe drive."""

PENDING_MS_MAX: Final = 60_000
"""Above this a prompt is sooner computed, whatever the model."""

GPU_MODES: Final = ("auto", "copy", "node", "off")
"""How KV gets into and out of a GPU: by the node, and by the engine's workers where it cannot; by these alone; by the
node alone; not at all."""

_KNOWN: Final = {"larder_socket", "larder_endpoint", "larder_lookup_ms", "larder_pending_ms", "larder_gpu"}


class SettingsFault(ValueError):
    """The configuration cannot be used; the message says which value and what to write instead."""


@dataclass(frozen=True)
class Settings:
    """The plugin's configuration."""

    socket: str
    """Path of the cache node's engine socket."""
    endpoint: str | None = None
    """The URL under which the proxy knows this engine; without it nothing can be staged for it."""
    lookup_ms: int = LOOKUP_MS_DEFAULT
    """Milliseconds a request waits for the node's answer at most before it is computed as if alone."""
    pending_ms: int = PENDING_MS_DEFAULT
    """Milliseconds it waits at most while the node says that its chunks are coming up from disk."""
    gpu: str = GPU_MODES[0]
    """One of ``GPU_MODES``; without meaning on the CPU backend."""

    @classmethod
    def read(cls, extra: Mapping[str, Any]) -> "Settings":
        """Reads the ``larder_*`` keys of an extra config; raises ``SettingsFault`` naming every fault."""
        faults = [
            f"unknown key {key!r} (known: {', '.join(sorted(_KNOWN))})"
            for key in sorted(extra)
            if key.startswith("larder_") and key not in _KNOWN
        ]
        socket = extra.get("larder_socket")
        if not isinstance(socket, str) or not socket.startswith("/"):
            faults.append(f"larder_socket is {socket!r}: write the absolute path of the cache node's engine_socket")
        endpoint = extra.get("larder_endpoint")
        if endpoint is not None and not isinstance(endpoint, str):
            faults.append(f"larder_endpoint is {endpoint!r}: write this engine's URL as in the proxy's configuration")
        lookup_ms = extra.get("larder_lookup_ms", LOOKUP_MS_DEFAULT)
        if type(lookup_ms) is not int or not 1 <= lookup_ms <= LOOKUP_MS_MAX:
            faults.append(f"larder_lookup_ms is {lookup_ms!r}: write 1 to {LOOKUP_MS_MAX}")
        pending_ms = extra.get("larder_pending_ms", PENDING_MS_DEFAULT)
        if type(pending_ms) is not int or not 0 <= pending_ms <= PENDING_MS_MAX:
            faults.append(f"larder_pending_ms is {pending_ms!r}: write 0 (never wait for a disk) to {PENDING_MS_MAX}")
        gpu = extra.get("larder_gpu", GPU_MODES[0])
        if gpu not in GPU_MODES:
            faults.append(f"larder_gpu is {gpu!r}: write one of {', '.join(GPU_MODES)}")
        if faults:
            raise SettingsFault("kv_connector_extra_config: " + "; ".join(faults))
        return cls(str(socket), endpoint, lookup_ms, pending_ms, gpu)
