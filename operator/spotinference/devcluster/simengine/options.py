"""`vllm serve`'s command line and the SPOTINFERENCE_SIM_* environment, parsed once.

Flags are read the way vLLM's parser reads them (`_` for `-`, `--flag=value`); flags that mean
nothing here are accepted and ignored, so that any tier's arguments start the simulated engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spotinference import errors

ENV_PREFIX = "SPOTINFERENCE_SIM_"

DEFAULT_MAX_MODEL_LEN = 4096
DEFAULT_MAX_NUM_SEQS = 256
"""vLLM's own default on most platforms."""

_BARE_FLAGS = frozenset({"enforce-eager", "enable-auto-tool-choice"})
_LIST_FLAGS = frozenset({"served-model-name"})


@dataclass(frozen=True, slots=True)
class SimOptions:
    """Everything the engine needs to know; the defaults make a fast engine for tests."""

    model: str = "sim"
    served_names: tuple[str, ...] = ("sim",)
    host: str = "127.0.0.1"
    port: int = 0
    max_model_len: int = DEFAULT_MAX_MODEL_LEN
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS
    max_num_queued_reqs: int | None = None
    shutdown_timeout_s: float = 0.0
    enforce_eager: bool = False
    tool_parser: bool = False
    """tools may be called; vLLM wants both flags, also for calls that a request demands"""
    reasoning_parser: bool = False
    pooling: bool = False
    """Embeds, scores and ranks, and generates nothing."""

    start_delay_s: float = 0.0
    compile_s: float = 0.0
    tokens_per_s: float = 0.0
    """Output tokens per second of one sequence; 0: as fast as it can."""
    prefill_tokens_per_s: float = 0.0
    step_per_seq_s: float = 0.0
    """A batch step gets longer by this much per running sequence: the load model."""
    eos_mean_tokens: int = 1000
    """An answer ends by itself after about so many tokens; 0: never."""
    start_failure: str = ""
    """`oom`, `crash`: print what vLLM would and exit with 1 instead of starting."""
    start_failures_left: Path | None = None
    """With `start_failure`: fail only while this file exists."""
    cache_root: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    """The VLLM_* variables: part of the compile cache's key."""


def parse(argv: Sequence[str], env: Mapping[str, str]) -> SimOptions:
    """Options from `serve MODEL …`; ConfigInvalid when there is no model or a number is none."""
    words = list(argv)
    if words[:1] == ["serve"]:
        words = words[1:]
    flags, positional = _split(words)
    model = positional[0] if positional else _last(flags, "model")
    if not model:
        raise errors.ConfigInvalid("serve: no model given; use `serve MODEL [flags]`")
    names = tuple(flags.get("served-model-name", ())) or (model,)
    sim = {k.removeprefix(ENV_PREFIX): v for k, v in env.items() if k.startswith(ENV_PREFIX)}
    failures_file = sim.get("START_FAILURE_WHILE")
    cache_root = env.get("VLLM_CACHE_ROOT")
    queued = _last(flags, "max-num-queued-reqs")
    return SimOptions(
        model=model,
        served_names=names,
        host=_last(flags, "host") or "0.0.0.0",
        port=_number("--port", _last(flags, "port"), 8000),
        max_model_len=_number("--max-model-len", _last(flags, "max-model-len"), 0),
        max_num_seqs=_number("--max-num-seqs", _last(flags, "max-num-seqs"), DEFAULT_MAX_NUM_SEQS),
        max_num_queued_reqs=None if queued is None else _number("--max-num-queued-reqs", queued, 0),
        shutdown_timeout_s=_real("--shutdown-timeout", _last(flags, "shutdown-timeout"), 0.0),
        enforce_eager="enforce-eager" in flags,
        pooling=_last(flags, "runner") == "pooling",
        tool_parser="tool-call-parser" in flags and "enable-auto-tool-choice" in flags,
        reasoning_parser="reasoning-parser" in flags,
        start_delay_s=_real(ENV_PREFIX + "START_DELAY_S", sim.get("START_DELAY_S"), 0.0),
        compile_s=_real(ENV_PREFIX + "COMPILE_S", sim.get("COMPILE_S"), 0.0),
        tokens_per_s=_real(ENV_PREFIX + "TOKENS_PER_S", sim.get("TOKENS_PER_S"), 0.0),
        prefill_tokens_per_s=_real(
            ENV_PREFIX + "PREFILL_TOKENS_PER_S", sim.get("PREFILL_TOKENS_PER_S"), 0.0
        ),
        step_per_seq_s=_real(ENV_PREFIX + "STEP_PER_SEQ_S", sim.get("STEP_PER_SEQ_S"), 0.0),
        eos_mean_tokens=_number(ENV_PREFIX + "EOS_MEAN_TOKENS", sim.get("EOS_MEAN_TOKENS"), 1000),
        start_failure=sim.get("START_FAILURE", ""),
        start_failures_left=Path(failures_file) if failures_file else None,
        cache_root=Path(cache_root) if cache_root else None,
        env={k: v for k, v in env.items() if k.startswith("VLLM_") and k != "VLLM_CACHE_ROOT"},
    )


def _split(words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Flags by name with all their values, and the words before the first flag."""
    flags: dict[str, list[str]] = {}
    positional: list[str] = []
    current: list[str] | None = None
    limit = 0
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("_", "-")
            values = flags.setdefault(name, [])
            if name in _LIST_FLAGS:
                values.clear()
            current, limit = values, 10**6 if name in _LIST_FLAGS else 1
            if name in _BARE_FLAGS:
                current = None
            if equals:
                values.append(value)
                current = None
        elif current is not None and limit:
            current.append(word)
            limit -= 1
        elif not flags:
            positional.append(word)
    return flags, positional


def _last(flags: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = flags.get(name)
    return values[-1] if values else None


def _number(name: str, text: str | None, default: int) -> int:
    if text is None or text == "":
        return default
    try:
        return int(text)
    except ValueError:
        raise errors.ConfigInvalid(f"{name}: {text!r} is not a whole number") from None


def _real(name: str, text: str | None, default: float) -> float:
    if text is None or text == "":
        return default
    try:
        return float(text)
    except ValueError:
        raise errors.ConfigInvalid(f"{name}: {text!r} is not a number") from None
