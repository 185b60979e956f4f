"""From a sign that somebody waits to the scale write that answers it: two measured promises."""

from __future__ import annotations

from spotinference.clients.clock import Clock
from spotinference.controller.metrics import Metrics
from spotinference.core.observed import TierRef


class Latencies:
    """Marks when demand, or a notice or loss, was first seen; a scale-up ends the measurement."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._demand: dict[TierRef, float] = {}
        self._notice: dict[TierRef, float] = {}

    def demand_seen(self, ref: TierRef) -> None:
        self._demand.setdefault(ref, self._clock.monotonic())

    def notice_seen(self, ref: TierRef) -> None:
        self._notice.setdefault(ref, self._clock.monotonic())

    def scaled_up(self, ref: TierRef, *, from_zero: bool) -> None:
        now = self._clock.monotonic()
        demand_at, notice_at = self._demand.pop(ref, None), self._notice.pop(ref, None)
        if demand_at is not None and from_zero:
            self._metrics.wake.observe(now - demand_at)
        if notice_at is not None:
            self._metrics.notice.observe(now - notice_at)

    def looked(self, ref: TierRef) -> None:
        """The tier was looked at and needed no scale-up: what comes later is not the answer."""
        self._demand.pop(ref, None)
        self._notice.pop(ref, None)
