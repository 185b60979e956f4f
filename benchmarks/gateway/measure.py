"""One system under load: what the load generator saw, and what the system cost meanwhile."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Literal

from benchmarks.gateway import native
from benchmarks.gateway.cluster import KEY
from benchmarks.gateway.processes import Group

WARMUP_S = 3.0
"""As in native/load.c."""
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    ip: str
    port: int
    model: str


@dataclass(frozen=True, slots=True)
class Load:
    kind: Literal["plain", "stream"]
    concurrency: int
    seconds: float


def run(
    target: Target, load: Load, group: Group | None, cores: str, *, prompt_bytes: int = 200
) -> dict[str, float]:
    """The load generator's figures, with `cpu_s` of the system per second of the measured time."""
    cpu: list[float] = []

    def sample() -> None:
        if group is not None:
            time.sleep(WARMUP_S)
            before = group.cpu_s()
            time.sleep(load.seconds)
            cpu.append((group.cpu_s() - before) / load.seconds)

    sampler = threading.Thread(target=sample)
    sampler.start()
    done = subprocess.run(
        [
            "taskset", "-c", cores, str(native.program("load")), target.ip, str(target.port),
            str(load.concurrency), str(load.seconds), load.kind, KEY, target.model,
            str(prompt_bytes),
        ],
        capture_output=True, text=True, timeout=WARMUP_S + load.seconds + 60, check=True,
    )  # fmt: skip
    sampler.join()
    figures: dict[str, float] = json.loads(done.stdout)
    figures["cpu_s"] = cpu[0] if cpu else 0.0
    return figures


def request(model: str, *, stream: bool = False) -> bytes:
    body = json.dumps(
        {"model": model, "stream": stream, "messages": [{"role": "user", "content": "x"}]}
    )
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
