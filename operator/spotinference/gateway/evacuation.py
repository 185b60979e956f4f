"""Moves answers off replicas that have a notice (`core/evacuation.py` decides which and when).

Started by `Replicas` when a pod gets its notice; ends with the replica, the deadline, or the notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta

import structlog

from spotinference.clients.clock import Clock
from spotinference.core import evacuation
from spotinference.core.evacuation import Notice
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.metrics import Metrics
from spotinference.gateway.replicas import Replica, Replicas

log = structlog.get_logger(__name__)

Spawn = Callable[[Coroutine[None, None, None]], object]


class Evacuation:
    def __init__(
        self,
        replicas: Replicas,
        settings: GatewaySettings,
        clock: Clock,
        metrics: Metrics,
        spawn: Spawn,
    ) -> None:
        self._replicas = replicas
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._spawn = spawn
        self._under_way: set[str] = set()
        self._closed = asyncio.Event()

    def close(self) -> None:
        self._closed.set()

    def doomed(self, replica: Replica) -> None:
        """The replica got a notice, or another deadline."""
        if replica.uid not in self._under_way and not self._closed.is_set():
            self._under_way.add(replica.uid)
            self._spawn(self._empty(replica))

    async def _empty(self, replica: Replica) -> None:
        settings = self._settings
        log.info(
            "replica.doomed", tier=str(replica.tier), pod=replica.name, answers=replica.running
        )
        try:
            while not self._closed.is_set() and self._here(replica):
                until = replica.doomed_until
                if until is None or until < self._clock.now() - timedelta(
                    seconds=settings.doom_grace_s
                ):
                    return
                left_s = (until - self._clock.now()).total_seconds()
                notice = Notice(left_s, settings.evacuation_margin_s, settings.evacuation_tick_s)
                if self._has_equal(replica):
                    self._move(replica, notice)
                try:
                    async with asyncio.timeout(settings.evacuation_tick_s):
                        await self._closed.wait()
                except TimeoutError:
                    continue
        finally:
            self._under_way.discard(replica.uid)

    def _here(self, replica: Replica) -> bool:
        return replica in self._replicas.of(replica.tier)

    def _has_equal(self, replica: Replica) -> bool:
        """Somewhere to go: else an answer would be parked that is still being given here."""
        return any(
            other.routable and other.fingerprint == replica.fingerprint
            for other in self._replicas.of(replica.tier)
        )

    def _move(self, replica: Replica, notice: Notice) -> None:
        answers = list(replica.answers)
        progress = [answer.progress() for answer in answers]
        for place in evacuation.leaving(progress, notice):
            self._metrics.evacuated.labels(replica.tier.name).inc()
            answers[place].move()
