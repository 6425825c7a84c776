"""What keeps two engines' KV apart: the weights digest, the layout digest, and what may not be shared at all.

vLLM's block hash names tokens, adapter name and salt, never the model. Everything else that makes KV of given tokens
what it is must be in these digests, or an engine would load another model's KV under a good key.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

import vllm
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig

if TYPE_CHECKING:
    from vllm.config import VllmConfig

DIGEST_BYTES: Final = 32
HASH_THREADS: Final = 4
"""Threads that hash a shard: enough for a few GB/s without starving the engine that starts beside it."""
SHARD_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")
CONFIG_SUFFIXES: Final = (".json",)
LOAD_FORMATS: Final = ("auto", "hf", "safetensors", "pt")
"""Formats whose weights are what lies in the model's files."""


class IdentityFault(Exception):
    """The weights cannot be named; sharing would be a guess."""


def refusal(vllm_config: "VllmConfig", kv_cache_config: KVCacheConfig) -> str | None:
    """Why this engine may not share KV, in one line, or None. What no test proves is refused."""
    return next(_refusals(vllm_config, kv_cache_config), None)


def _refusals(config: "VllmConfig", kv_cache_config: KVCacheConfig) -> Iterator[str]:
    parallel, model, cache = config.parallel_config, config.model_config, config.cache_config
    transfer = config.kv_transfer_config
    if transfer is None or transfer.kv_load_failure_policy != "recompute":
        yield 'kv_load_failure_policy must be "recompute": a failed load must cost time and never a request'
    if transfer is None or transfer.kv_role != "kv_both":
        yield 'kv_role must be "kv_both"'
    if not cache.enable_prefix_caching:
        yield "prefix caching is off, so blocks have no keys (--enable-prefix-caching)"
    yield from _device_refusals(config)
    for name, size in (
        ("pipeline", parallel.pipeline_parallel_size), ("data", parallel.data_parallel_size),
        ("prefill context", parallel.prefill_context_parallel_size),
        ("decode context", parallel.decode_context_parallel_size),
    ):
        if size > 1:
            yield f"{name} parallelism ({size}) is not supported yet"
    if parallel.world_size != parallel.tensor_parallel_size:
        yield f"a world of {parallel.world_size} with tensor parallelism {parallel.tensor_parallel_size}"
    yield from _group_refusals(kv_cache_config)
    if model.runner_type != "generate" or model.is_multimodal_model or model.is_encoder_decoder:
        yield f"model of kind {model.runner_type} (multimodal: {model.is_multimodal_model}): only text generation"
    if config.speculative_config is not None:
        yield "speculative decoding is not supported yet"
    if cache.cache_dtype != "auto" or getattr(cache, "calculate_kv_scales", False):
        yield f"KV cache dtype {cache.cache_dtype}: only auto"
    if config.load_config.load_format not in LOAD_FORMATS:
        yield f"load format {config.load_config.load_format}: the weights are not those of the model's files"


def _device_refusals(config: "VllmConfig") -> Iterator[str]:
    from vllm.platforms import current_platform

    kind = str(config.device_config.device_type)
    if kind == "cpu":
        return
    if kind != "cuda" or not current_platform.is_cuda():
        yield f"device {kind} ({current_platform.device_name}): only the CPU backend and NVIDIA's GPUs are known"
    transfer = config.kv_transfer_config
    if transfer is not None and transfer.kv_connector_extra_config.get("larder_gpu") == "off":
        yield "larder_gpu is off, and the KV cache lies in a GPU"


def _group_refusals(kv_cache_config: KVCacheConfig) -> Iterator[str]:
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        yield f"{len(groups)} KV cache groups (hybrid model): only one is supported yet"
    for group in groups:
        spec = group.kv_cache_spec
        if type(spec) is not FullAttentionSpec:
            yield f"KV cache of kind {type(spec).__name__}: only full attention is supported yet"
        elif spec.sliding_window is not None or spec.attention_chunk_size is not None:
            yield "sliding-window or chunked attention is not supported yet"


@dataclass(frozen=True)
class EngineIdentity:
    """What one engine registers with, apart from its weights digest."""

    model: str
    block_hash: str
    dtype: str
    layout: bytes
    config: bytes
    """Canonical JSON of everything in the configuration that changes KV."""
    weights_dir: str
    revision: str | None
    moves: str | None = None
    """Why the KV cache does not stay where it is while the engine runs, if so."""

    @classmethod
    def of(cls, config: "VllmConfig", kv_cache_config: KVCacheConfig) -> "EngineIdentity":
        """Reads vLLM's configuration. Cheap: no weights are read."""
        model = config.model_config
        return cls(
            model=str(model.served_model_name if isinstance(model.served_model_name, str) else model.model),
            block_hash=str(config.cache_config.prefix_caching_hash_algo),
            dtype=str(model.dtype).removeprefix("torch."),
            layout=_layout_digest(config, kv_cache_config),
            config=_canonical(_kv_config(config)),
            weights_dir=str(model.model_weights or model.model),
            revision=model.revision,
            moves="sleep mode gives the KV cache's memory back" if model.enable_sleep_mode else None,
        )

    def weights_digest(self) -> bytes:
        """Digest of the configuration and of *all* bytes of all weight files.

        A file's size and header would not do: two fine-tunes of one model have the same. Reads gigabytes: call it off
        the engine's threads. Raises ``IdentityFault`` when the files cannot be found or read.
        """
        digest = blake3(b"larder weights 1\0")
        for part in (self.config, *self._file_digests()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.digest(length=DIGEST_BYTES)

    def _file_digests(self) -> Iterator[bytes]:
        root = _local_dir(self.weights_dir, self.revision)
        names = sorted(path.name for path in root.iterdir() if path.is_file())
        shards = [name for name in names if name.endswith(SHARD_SUFFIXES)]
        if not shards:
            raise IdentityFault(f"no weight files ({', '.join(SHARD_SUFFIXES)}) in {root}")
        for name in names:
            if name in shards:
                yield name.encode()
                yield _shard_digest(root / name)
            elif name == "config.json" or name.startswith(("hf_quant", "quant")) and name.endswith(CONFIG_SUFFIXES):
                yield name.encode()
                yield (root / name).read_bytes()


def _kv_config(config: "VllmConfig") -> dict[str, Any]:
    model = config.model_config
    fields = model.hf_config.to_dict()
    for path_like in ("_name_or_path", "name_or_path"):  # where a copy lies is not what it is
        fields.pop(path_like, None)
    return {
        "hf_config": fields,
        "hf_overrides": str(model.hf_overrides),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "revision": str(model.revision),
        "max_model_len": model.max_model_len,  # some RoPE variants choose their factors by it
        "kv_cache_dtype": str(config.cache_config.cache_dtype),
        "model_impl": str(model.model_impl),
    }


def _layout_digest(config: "VllmConfig", kv_cache_config: KVCacheConfig) -> bytes:
    (group,) = kv_cache_config.kv_cache_groups
    spec = group.kv_cache_spec
    assert isinstance(spec, FullAttentionSpec)
    fields = {
        "vllm": vllm.__version__,  # backends change how they lay out a page
        "layers": list(group.layer_names),
        "block_size": spec.block_size,
        "kv_heads": spec.num_kv_heads,
        "head_size": spec.head_size,
        "page_bytes": spec.page_size_bytes,
        "dtype": str(spec.dtype),
        "tensor_parallel": config.parallel_config.tensor_parallel_size,
        "order": str(config.cache_config.kv_cache_layout),
        "backend": _backend(config, spec),
    }
    return bytes(blake3(b"larder layout 1\0" + _canonical(fields)).digest(length=DIGEST_BYTES))


def _backend(config: "VllmConfig", spec: FullAttentionSpec) -> str:
    """Who wrote the pages, as far as it changes how they look inside."""
    if config.device_config.device_type == "cpu":
        return _cpu_backend(config, spec)
    # On GPUs every backend has the same logical page, and ``order`` says how it lies. The backend that was asked for is
    # named all the same; one that vLLM chose by itself is the same wherever model, version and kind of GPU are.
    from vllm.platforms import current_platform

    attention = config.attention_config
    capability = current_platform.get_device_capability()
    return f"cuda {capability} {attention.backend} {attention.backend_per_kind}"


def _cpu_backend(config: "VllmConfig", spec: FullAttentionSpec) -> str:
    """The CPU attention packs pages differently for each instruction set."""
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    isa = _get_attn_isa(spec.dtype, spec.block_size, spec.head_size, config.cache_config.cache_dtype)
    return f"cpu_attn {isa}"


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


def _local_dir(name: str, revision: str | None) -> Path:
    """The directory that holds a model's files; never downloads."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception as fault:
        raise IdentityFault(f"the weight files of {name!r} are not in the local hub cache: {fault}") from fault


def _shard_digest(path: Path) -> bytes:
    """BLAKE3 of a file's bytes, remembered by what the file system says of it."""
    stat = path.stat()
    name = f"{path.resolve()}|{stat.st_dev}|{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "larder" / "shard-digests"
    entry = cache / blake3(name.encode()).hexdigest()
    try:
        remembered = entry.read_bytes()
        if len(remembered) == DIGEST_BYTES:
            return remembered
    except OSError:
        pass
    digest = blake3(max_threads=HASH_THREADS).update_mmap(path).digest(length=DIGEST_BYTES)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, delete=False) as file:
            file.write(digest)
        os.replace(file.name, entry)
    except OSError:
        pass  # hashed again next time
    return bytes(digest)
