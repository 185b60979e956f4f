"""The model directory: what vLLM offline would refuse to load, and a tiny repository to load.

Also the compile cache: a first start "compiles" and leaves a marker below VLLM_CACHE_ROOT, a later
one with the same key finds it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from pathlib import Path

import orjson

from spotinference import errors
from spotinference.devcluster.simengine import tokenizer
from spotinference.devcluster.simengine.options import SimOptions

MANIFEST = ".spotinference-manifest.json"
TINY_WEIGHT_BYTES = 4 * 1024 * 1024
MAX_HEADER_BYTES = 100 * 1024 * 1024


def check(path: Path) -> dict[str, object]:
    """The parsed config.json of a complete model directory; ConfigInvalid says what is missing."""
    if not path.is_dir():
        raise errors.ConfigInvalid(
            f"model {path}: no such directory, and the engine is offline (HF_HUB_OFFLINE=1)"
        )
    try:
        config = orjson.loads((path / "config.json").read_bytes())
    except OSError:
        raise errors.ConfigInvalid(f"model {path}: config.json is missing") from None
    except orjson.JSONDecodeError as error:
        raise errors.ConfigInvalid(f"model {path}: config.json is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise errors.ConfigInvalid(f"model {path}: config.json is not an object")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise errors.ConfigInvalid(f"model {path}: no *.safetensors file")
    for file in weights:
        _check_safetensors(file)
    manifest = path / MANIFEST
    if manifest.exists():
        _check_manifest(path, manifest)
    return config


def _check_safetensors(file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER_BYTES
        if length >= min(MAX_HEADER_BYTES, size):
            raise errors.ConfigInvalid(f"{file}: MetadataIncompleteBuffer: file is cut off")
        header = orjson.loads(stream.read(length))
    ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
    if size != 8 + length + max(ends, default=0):
        raise errors.ConfigInvalid(
            f"{file}: MetadataIncompleteBuffer: {size} bytes, "
            f"its header promises {8 + length + max(ends, default=0)}"
        )


def _check_manifest(path: Path, manifest: Path) -> None:
    files = orjson.loads(manifest.read_bytes()).get("files", {})
    for name, size in files.items():
        wanted = size["size"] if isinstance(size, dict) else size
        file = path / name
        actual = file.stat().st_size if file.exists() else -1
        if actual != wanted:
            raise errors.ConfigInvalid(f"{file}: {actual} bytes, the manifest says {wanted}")


def write_tiny_repo(path: Path, *, weight_bytes: int = TINY_WEIGHT_BYTES) -> None:
    """A repository the simulated engine loads: config, tokenizer, some MB of "weights"."""
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "vocab_size": tokenizer.VOCAB_SIZE,
        "torch_dtype": "float32",
    }
    (path / "config.json").write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2))
    vocabulary = {f"<{i}>": i for i in range(tokenizer.VOCAB_SIZE)}
    (path / "tokenizer.json").write_bytes(
        orjson.dumps({"version": "1.0", "model": {"type": "simulated", "vocab": vocabulary}})
    )
    (path / "tokenizer_config.json").write_bytes(
        orjson.dumps({"eos_token": tokenizer.SPECIAL[tokenizer.END]})
    )
    header = orjson.dumps(
        {
            "simulated.weight": {
                "dtype": "U8",
                "shape": [weight_bytes],
                "data_offsets": [0, weight_bytes],
            }
        }
    )
    block = hashlib.sha256(b"simulated weights").digest() * 1024
    body = (block * (weight_bytes // len(block) + 1))[:weight_bytes]
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + body)


def compile_cache_key(options: SimOptions, config: dict[str, object]) -> str:
    """As vLLM's: the model's config, the engine's shape and every VLLM_* variable."""
    parts = (config, options.max_model_len, options.max_num_seqs, dict(sorted(options.env.items())))
    text = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()[:10]


def compile_kernels(options: SimOptions, config: dict[str, object]) -> tuple[bool, float]:
    """(cache hit, seconds it takes). A miss is recorded only by `finish_compile`."""
    if options.enforce_eager or options.cache_root is None:
        return True, 0.0
    marker = _marker(options.cache_root, compile_cache_key(options, config))
    return (True, 0.0) if marker.exists() else (False, options.compile_s)


def finish_compile(options: SimOptions, config: dict[str, object]) -> None:
    """Leaves the marker, atomically: a start that was killed leaves nothing."""
    if options.cache_root is None:
        return
    marker = _marker(options.cache_root, compile_cache_key(options, config))
    marker.parent.mkdir(parents=True, exist_ok=True)
    temporary = marker.with_name(f"{marker.name}.{os.getpid()}.tmp")
    temporary.write_bytes(orjson.dumps({"compiled_at": int(time.time())}))
    temporary.replace(marker)


def _marker(root: Path, key: str) -> Path:
    return root / "torch_compile_cache" / key / "rank_0_0" / "compiled.json"
