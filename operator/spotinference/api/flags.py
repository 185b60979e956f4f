"""Which arguments of `vllm serve` a user may add, and which belong to the operator.

vLLM's parser takes `_` for `-`, every unambiguous prefix of a flag, `--flag=value`,
`--flag.key=value`, and for one-letter flags the value in the same word (`-q8`). So an argument is
refused when its name, normalised, is a prefix of an owned flag; that some of those prefixes would
be ambiguous to vLLM does no harm. The CEL rule in the CRD says the same (`api/rules.py`), and a
test holds both to vLLM's own parser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Owned:
    """Flags refused for one reason. `remedy` completes 'is refused: …'."""

    remedy: str
    flags: tuple[str, ...]


FIELDS: Mapping[str, str] = {
    "--model": "spec.model.source",
    "--tokenizer": "spec.model.source",
    "--served-model-name": "spec.model.servedName",
    "--revision": "spec.model.revision",
    "--tokenizer-revision": "spec.model.revision",
    "--hf-token": "spec.model.tokenSecretRef",
    "--tensor-parallel-size": "spec.engine.tensorParallelSize",
    "-tp": "spec.engine.tensorParallelSize",
    "--max-model-len": "spec.engine.maxModelLen",
    "--dtype": "spec.engine.dtype",
    "--quantization": "spec.engine.quantization",
    "-q": "spec.engine.quantization",
    "--kv-cache-dtype": "spec.engine.kvCacheDtype",
    "--max-num-seqs": "spec.engine.maxNumSeqs",
    "--max-num-batched-tokens": "spec.engine.maxNumBatchedTokens",
    "--gpu-memory-utilization": "spec.engine.gpuMemoryUtilization",
    "--device-memory-utilization": "spec.engine.gpuMemoryUtilization",
    "--enable-prefix-caching": "spec.engine.prefixCaching",
    "--no-enable-prefix-caching": "spec.engine.prefixCaching",
    "--enable-auto-tool-choice": "spec.engine.toolCallParser",
    "--no-enable-auto-tool-choice": "spec.engine.toolCallParser",
    "--tool-call-parser": "spec.engine.toolCallParser",
    "--reasoning-parser": "spec.engine.reasoningParser",
    "--shutdown-timeout": "spec.interruption.drain",
}
"""Flags that a field of the tier sets."""

WIRING = (
    "--host",
    "--port",
    "--uds",
    "--root-path",
    "--config",
    "--help",
    "-h",
    "--version",
    "--headless",
    "--grpc",
    "--grpc-port",
    "--api-server-count",
    "-asc",
    "--api-key",
    "--ssl-keyfile",
    "--ssl-certfile",
    "--ssl-ca-certs",
    "--ssl-cert-reqs",
    "--ssl-ciphers",
    "--enable-ssl-refresh",
    "--download-dir",
    "--disable-log-stats",
    "--tokens-only",
    "--enable-scale-out",
    "--enable-force-include-usage",
    "--distributed-executor-backend",
    "--nnodes",
    "-n",
    "--node-rank",
    "-r",
    "--master-addr",
    "--master-port",
    "--data-parallel-size",
    "-dp",
    "--data-parallel-rank",
    "-dpn",
    "--data-parallel-start-rank",
    "-dpr",
    "--data-parallel-size-local",
    "-dpl",
    "--data-parallel-address",
    "-dpa",
    "--data-parallel-rpc-port",
    "-dpp",
    "--data-parallel-backend",
    "-dpb",
    "--data-parallel-hybrid-lb",
    "-dph",
    "--data-parallel-external-lb",
    "-dpe",
    "--data-parallel-multi-port-external-lb",
    "-dpm",
    "--data-parallel-supervisor-port",
)
"""How gateway and operator reach, measure and stop an engine."""

FOREIGN_CODE = (
    "--trust-remote-code",
    "--code-revision",
    "--middleware",
    "--tool-parser-plugin",
    "--reasoning-parser-plugin",
    "--io-processor-plugin",
    "--logits-processors",
    "--worker-cls",
    "--worker-extension-cls",
    "--scheduler-cls",
    "--model-class-overrides",
    "--logging-config",
    "--log-config-file",
    "--enable-prompt-embeds",
    "--trust-request-chat-template",
    "--trust-request-mm-kwargs",
    "--allowed-local-media-path",
    "--tool-server",
)
"""They let a model's repository or a request run code, or read files, in the engine."""

OWNED: tuple[Owned, ...] = (
    Owned(
        "a field of the tier sets it (spec.model, spec.engine, spec.interruption)", tuple(FIELDS)
    ),
    Owned("the operator sets how engines are reached and stopped; remove it", WIRING),
    Owned("it runs code or opens files on behalf of others; build an image instead", FOREIGN_CODE),
)

VALUE_PATTERN = r"^-\.?[0-9]"
"""A negative number is a value, not a flag."""


def refused(argument: str) -> str | None:
    """Why this word of `extraArgs` is refused; None when it may be passed to vLLM."""
    if spaced(argument):
        return f"{argument!r} is refused: write a flag and its value as two items"
    for owned in OWNED:
        flag = refused_by(argument, owned)
        if flag is not None:
            remedy = f"set {FIELDS[flag]} instead" if flag in FIELDS else owned.remedy
            return f"{argument!r} is refused (it may stand for {flag}): {remedy}"
    return None


def refused_by(argument: str, owned: Owned) -> str | None:
    """The owned flag that this word may stand for."""
    if not argument.startswith("-") or re.search(VALUE_PATTERN, argument):
        return None
    name = argument.split("=", maxsplit=1)[0].split(".", maxsplit=1)[0].replace("_", "-")
    for flag in owned.flags:
        if flag.startswith(name) or (_one_letter(flag) and argument.startswith(flag)):
            return flag
    return None


def spaced(argument: str) -> bool:
    """Whether it is a flag with a space in its name: a flag and its value in one word."""
    return (
        argument.startswith("-")
        and re.search(r"\s", argument.split("=", maxsplit=1)[0]) is not None
    )


def _one_letter(flag: str) -> bool:
    return len(flag) == 2
