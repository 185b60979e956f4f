"""The argv of `vllm serve` and the environment of the engine container: deterministic.

The image's ENTRYPOINT is `vllm serve`, so the argv begins with the model. It is a list, never a
shell string. vLLM's compile cache key contains its environment and configuration: all replicas of
a revision get exactly the same of both.
"""

from __future__ import annotations

from spotinference.api import durations, names
from spotinference.api.tier import TierSpec

DRAIN_AUTO_S = 25
"""Fits with the preStop sleep into the shortest notice that most providers give (30 s)."""
PRE_STOP_S = 3
"""Routing stops at deletionTimestamp; vLLM answers 500 to what arrives after SIGTERM."""
GRACE_MARGIN_S = 7
"""From the end of the drain to the exit of the processes (7-9 s measured when idle)."""
MODEL_MOUNT = "/model"
HOME = "/home/engine"


def drain_s(spec: TierSpec) -> int:
    """How long running requests may finish when a replica goes."""
    text = spec.interruption.drain
    return DRAIN_AUTO_S if text == "auto" else max(0, round(durations.seconds(text)))


def grace_s(spec: TierSpec) -> int:
    return PRE_STOP_S + drain_s(spec) + GRACE_MARGIN_S


def served_names(tier: str, spec: TierSpec) -> list[str]:
    """Names the engine answers to; the first is the one it reports."""
    first = spec.model.served_name or tier
    return [first, *(alias for alias in spec.model.aliases if alias != first)]


def model_path(spec: TierSpec, revision: str | None) -> str:
    """Where the weights lie in the engine's container."""
    if spec.model.source.startswith("pvc://"):
        _, _, path = spec.model.source.removeprefix("pvc://").partition("/")
        return f"{MODEL_MOUNT}/{path}".rstrip("/")
    return f"{names.WEIGHTS_DIR}/{revision}"


def argv(tier: str, spec: TierSpec, revision: str | None) -> list[str]:
    """Arguments after `vllm serve`."""
    engine = spec.engine
    args = [
        model_path(spec, revision),
        "--host",
        "0.0.0.0",
        "--port",
        str(names.ENGINE_PORT),
        "--served-model-name",
        *served_names(tier, spec),
        "--shutdown-timeout",
        str(drain_s(spec)),
        "--tensor-parallel-size",
        str(engine.tensor_parallel_size),
        "--dtype",
        engine.dtype,
    ]
    optional = {
        "--max-model-len": engine.max_model_len,
        "--quantization": engine.quantization,
        "--kv-cache-dtype": engine.kv_cache_dtype,
        "--max-num-seqs": engine.max_num_seqs,
        "--max-num-batched-tokens": engine.max_num_batched_tokens,
        "--gpu-memory-utilization": engine.gpu_memory_utilization,
        "--reasoning-parser": engine.reasoning_parser,
    }
    for flag, value in optional.items():
        if value is not None:
            args += [flag, str(value)]
    args.append(
        "--enable-prefix-caching" if engine.prefix_caching else "--no-enable-prefix-caching"
    )
    if engine.tool_call_parser is not None:
        args += ["--enable-auto-tool-choice", "--tool-call-parser", engine.tool_call_parser]
    return args + [verbatim(word) for word in engine.extra_args]


def verbatim(text: str) -> str:
    """As the kubelet hands it on unchanged: it makes `$` of `$$` and a variable's value of `$(NAME)`.

    A word `$(X)` would else become whatever the tier's own variable X says, a refused flag too.
    """
    return text.replace("$", "$$")


def environment(spec: TierSpec) -> list[dict[str, str]]:
    """Environment of the engine: ours first, the tier's own after; a name of ours cannot be taken.

    Caches of compiled kernels lie on the cache volume, so that they outlive the machine.
    """
    ours = {
        "HF_HUB_OFFLINE": "1",
        "HOME": HOME,
        "LOGNAME": "engine",
        "USER": "engine",
        "FLASHINFER_WORKSPACE_BASE": f"{names.CACHE_MOUNT}/flashinfer",
        "TORCHINDUCTOR_CACHE_DIR": f"{names.CACHE_MOUNT}/inductor",
        "TRITON_CACHE_DIR": f"{names.CACHE_MOUNT}/triton",
        "VLLM_CACHE_ROOT": names.VLLM_CACHE_ROOT,
        "VLLM_ENGINE_READY_TIMEOUT_S": str(round(durations.seconds(spec.engine.startup))),
        "VLLM_NO_USAGE_STATS": "1",
    }
    theirs = {e.name: verbatim(e.value) for e in spec.engine.env if e.name not in ours}
    return [
        {"name": name, "value": value} if value else {"name": name}
        for name, value in {**ours, **theirs}.items()
    ]
