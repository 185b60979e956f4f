"""What a container is doing, as values: shared by those who run it and those who report it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Timing:
    """Waiting times of the kubelet; tests shorten them."""

    backoff_s: float = 10.0
    backoff_max_s: float = 300.0
    heartbeat_s: float = 10.0
    status_heartbeat_s: float = 60.0
    pull_retry_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Waiting:
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Terminated:
    exit_code: int
    reason: str
    message: str
    started_at: datetime | None
    finished_at: datetime


State = Waiting | Running | Terminated


@dataclass(slots=True)
class ContainerStatus:
    name: str
    image: str
    state: State = field(default_factory=lambda: Waiting("ContainerCreating"))
    last: Terminated | None = None
    restarts: int = 0
    started: bool = False
    ready: bool = False
    container_id: str = ""


class Backoff:
    """CrashLoopBackOff: at once, then base, doubling to the bound; forgotten after a long run."""

    def __init__(self, base_s: float, max_s: float) -> None:
        self._base_s, self._max_s = base_s, max_s
        self._next_s = 0.0

    def after(self, ran_s: float) -> float:
        if ran_s > 2 * self._max_s:
            self._next_s = 0.0
        delay_s = self._next_s
        self._next_s = min(self._max_s, max(self._base_s, delay_s * 2))
        return delay_s


def restarts(policy: str, exit_code: int) -> bool:
    """Whether a pod's restartPolicy starts an ended container again."""
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)
