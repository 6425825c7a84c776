"""One vLLM of the CPU backend with the plugin, and its numbers."""

import json
import re
from pathlib import Path
from typing import Any, Final

from engines import http_json
from engines.program import Failed, Program, free_port

START_SECONDS_MAX: Final = 400.0
"""Two engines that start side by side on two busy cores take over a minute."""
PLUGIN: Final = Path(__file__).parents[3] / "cache-node" / "plugins" / "vllm"
INSIDE: Final = Path(__file__).parents[1] / "inside"


class Vllm:
    """An engine: started, waited for, asked, killed."""

    def __init__(
        self, name: str, bin_dir: Path, model: Path, socket: Path, folder: Path, cores: set[int],
        faults: Path | None = None, extra: dict[str, Any] | None = None, arguments: tuple[str, ...] = (),
        policy: str = "recompute", driver: Path | None = None,
    ) -> None:
        """``faults``: a directory; the engine then runs the plugin with ``larder_faults``. ``extra``: more of the
        connector's configuration; ``arguments``: of the command; ``policy``: for failed loads. ``driver``: the emulator's
        library; the engine then has its KV cache in the emulated GPU (``larder_emulated``)."""
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{name}.log"
        connector_extra: dict[str, Any] = {
            "larder_socket": str(socket), "larder_endpoint": self.url, **(extra or {}),
        }
        if faults is not None:
            connector_extra |= {"spec_name": "FaultySpec", "spec_module_path": "larder_faults"}
        if driver is not None:
            connector_extra |= {"spec_name": "EmulatedSpec", "spec_module_path": "larder_emulated"}
        self._command = [*self._command_of(bin_dir, model, connector_extra, policy), *arguments]
        self._environment = {
            "PYTHONPATH": f"{PLUGIN}:{INSIDE}", "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1", "PYTHONHASHSEED": "0", "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "LARDER_FAULTS": str(faults or ""),
            "LARDER_LIBCUDA": str(driver or ""),
        }
        self._cores = cores
        self.start()

    def _command_of(self, bin_dir: Path, model: Path, connector_extra: dict[str, Any], policy: str) -> list[str]:
        transfer = {
            "kv_connector": "LarderConnector", "kv_connector_module_path": "larder_vllm.connector",
            "kv_role": "kv_both", "kv_load_failure_policy": policy, "kv_connector_extra_config": connector_extra,
        }
        return [
            str(bin_dir / "vllm"), "serve", str(model), "--served-model-name", "tiny", "--dtype", "float32",
            "--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager", "--max-model-len", "16384",
            "--max-num-seqs", "16", "--block-size", "32", "--enable-prefix-caching",
            "--prefix-caching-hash-algo", "sha256_cbor", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log",
            "--enable-lora", "--max-loras", "1", "--max-lora-rank", "8",
            "--kv-transfer-config", json.dumps(transfer),
        ]

    def start(self) -> None:
        """Starts it (again, on the same port); ``wait`` for it afterwards."""
        self.program = Program(self.name, self._command, self.log, self._environment, self._cores)

    def wait(self) -> "Vllm":
        """Until it serves."""
        self.program.until(lambda: http_json.answers(f"{self.url}/health"), START_SECONDS_MAX, "health")
        return self

    def kill(self) -> None:
        self.program.kill()

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; 0 where it does not exist yet."""
        text, _ = http_json.call("GET", f"{self.url}/metrics")
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for value in values)

    def external_hits(self) -> int:
        """Tokens it took from its connector since it started."""
        return int(self.metric("vllm:external_prefix_cache_hits_total"))

    def counter(self, name: str) -> int:
        """One of the plugin's counters."""
        return int(self.metric(f"vllm:larder_{name}_total"))

    def forget(self) -> None:
        """Empties its own prefix cache; what the cache node holds stays."""
        http_json.call("POST", f"{self.url}/reset_prefix_cache")

    def load_adapter(self, path: Path, again: bool) -> None:
        """Loads the LoRA adapter ``adapter`` from a path, or loads it again from there."""
        if again:
            http_json.call("POST", f"{self.url}/v1/unload_lora_adapter", {"lora_name": "adapter"})
        http_json.call("POST", f"{self.url}/v1/load_lora_adapter", {"lora_name": "adapter", "lora_path": str(path)})

    def must_run(self) -> None:
        if not self.program.running():
            raise Failed(f"{self.name} died\n{self.program.tail()}")
