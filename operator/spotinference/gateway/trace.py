"""What happened to one request, for its usage records: attempts, first bytes, gaps, parked time.

On the way of every token only `token` runs. The exchange calls; `usage` makes records of it.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass

from spotinference.gateway.replicas import Replica

MAX_GAPS = 4096
"""Of one attempt, 4 bytes each; a longer answer's percentiles are those of its first chunks."""


@dataclass(slots=True)
class Attempt:
    """One attempt that an engine was asked for."""

    number: int
    replica: Replica
    engine_request: str
    """the id under which the engine knows it"""
    batch: int
    """requests that the replica had when this one came"""
    started: float
    replayed: int
    """tokens that had to be computed anew, because an earlier attempt was lost"""
    parked_s: float
    """waited for a replica before it"""
    first_at: float | None = None
    last_at: float = 0.0
    ended: float | None = None
    status: str = "running"
    completion: int = 0
    gaps: array[float] | None = None
    """None before the second piece"""

    def token(self) -> None:
        """A piece of the answer went to the client."""
        now = time.monotonic()
        if self.first_at is None:
            self.first_at = now
        elif self.gaps is None:
            self.gaps = array("f", (now - self.last_at,))
        elif len(self.gaps) < MAX_GAPS:
            self.gaps.append(now - self.last_at)
        self.last_at = now


class Trace:
    __slots__ = ("attempts",)

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    @property
    def current(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    def started(
        self, replica: Replica, engine_request: str, *, replayed: int, parked_s: float
    ) -> None:
        """`replayed` and `parked_s`: of the whole request until now."""
        if self.attempts:
            replayed -= sum(attempt.replayed for attempt in self.attempts)
            parked_s -= sum(attempt.parked_s for attempt in self.attempts)
        self.attempts.append(
            Attempt(
                number=len(self.attempts) + 1,
                replica=replica,
                engine_request=engine_request,
                batch=replica.running,
                started=time.monotonic(),
                replayed=replayed,
                parked_s=parked_s,
            )
        )

    def token(self) -> None:
        """A piece of the answer went to the client."""
        self.attempts[-1].token()

    def not_taken(self) -> None:
        """The engine did nothing for the current attempt: no connection, a full queue, a drain."""
        self.attempts.pop()

    def ended(self, status: str, *, delivered: int) -> None:
        """The current attempt is over; `delivered`: tokens that the client has of all attempts."""
        attempt = self.current
        if attempt is None or attempt.ended is not None:
            return
        attempt.ended = time.monotonic()
        attempt.status = status
        if len(self.attempts) > 1:
            delivered -= sum(other.completion for other in self.attempts[:-1])
        attempt.completion = max(0, delivered)
