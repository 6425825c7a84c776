"""The proxy before the engines."""

from collections.abc import Sequence
from pathlib import Path

from engines import http_json
from engines.node import Node
from engines.program import Program, free_port
from engines.engine import Vllm


class Proxy:
    """One proxy, one pool of all engines, each beside the one node."""

    def __init__(self, binary: Path, folder: Path, node: Node, engines: Sequence[Vllm]) -> None:
        port, admin = free_port(), free_port()
        self.url, self.admin = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"
        lines = [
            f'listen = "127.0.0.1:{port}"', f'admin = "127.0.0.1:{admin}"',
            "[health]", 'interval = "500ms"', 'timeout = "1s"', "unhealthy_after = 2",
            "[warehouse]", 'deadline = "500ms"', "min_tokens = 64",
            "[[pool]]", 'model = "tiny"',
        ]
        for engine in engines:
            lines += ["[[pool.endpoint]]", f'url = "{engine.url}"', f'name = "{engine.name}"',
                      f'cache_node = "{node.url}"']
        config = folder / "proxy.toml"
        config.write_text("\n".join(lines) + "\n")
        self.program = Program("proxy", [str(binary), "--config", str(config)], folder / "proxy.log")
        self.program.until(lambda: http_json.answers(f"{self.admin}/readyz"), 30, "readyz")
