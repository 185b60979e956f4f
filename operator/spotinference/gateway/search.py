"""Which replica a request goes to next: one it has not failed on, or the wait for one."""

from __future__ import annotations

import asyncio
import random
import time

from spotinference.core.routing import Work
from spotinference.core.splice import EngineFailed
from spotinference.core.stream import EventTooLong
from spotinference.gateway.context import Context
from spotinference.gateway.engines import Failed, Silent
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.replicas import Replica
from spotinference.gateway.waiting import Waiting


class Search:
    """One request's; remembers which replicas failed it or had full queues."""

    def __init__(self, context: Context, waiting: Waiting, work: Work) -> None:
        self._context = context
        self._waiting = waiting
        self.work = work
        self._fingerprint: str | None = None
        self._avoid: set[str] = set()
        self._busy: set[str] = set()
        context.vitals.asked(waiting.tier.ref)
        self.found_at = time.monotonic()
        """monotonic; when the last replica was found"""
        self.parked_s = 0.0
        """waited for a replica, in all"""

    async def replica(self) -> Replica:
        """The next to try; waits for one within the cap, else `wake_timeout` or `engine_busy`."""
        replicas = self._context.replicas
        while True:
            self._waiting.refresh()
            for avoid in (self._busy | self._avoid, self._busy):
                replica = replicas.pick(
                    self._waiting.tier.ref, self.work, avoid=avoid, fingerprint=self._fingerprint
                )
                if replica is not None:
                    self.found_at = time.monotonic()
                    return replica
            if not any(r.routable for r in replicas.of(self._waiting.tier.ref)):
                await self._park()
            elif self._busy:
                await self._all_busy()
            else:
                raise GatewayError(
                    Code.NOT_CONTINUABLE,
                    "The replicas that are left serve another revision of the model.",
                )

    async def _park(self) -> None:
        since = time.monotonic()
        try:
            await self._waiting.park()
        finally:
            self.parked_s += time.monotonic() - since

    def busy(self, replica: Replica) -> None:
        """Its queue is full: not this one again before the others were asked."""
        self._busy.add(replica.uid)

    def failed(self, replica: Replica, failure: Exception) -> None:
        """Any other first; raises when the tier bears no more retries.

        Only what a sick tier says counts (5xx, rubbish, silence): a replica that is gone or an
        answer that has begun is always carried on.
        """
        self._avoid = {replica.uid}
        ref = replica.tier
        if self._fingerprint is not None or not isinstance(failure, _SICK):
            return
        if self._context.vitals.may_retry(ref):
            self._context.metrics.retries.labels(ref.name, "sent").inc()
            return
        self._context.metrics.retries.labels(ref.name, "refused").inc()
        code = Code.UPSTREAM_LOST if isinstance(failure, Silent) else Code.ENGINE_FAILED
        raise GatewayError(
            code,
            f"{failure}. Too many requests to {self._waiting.tier.names[0]!r} fail for this one "
            "to be tried again.",
        ) from failure

    def found(self, replica: Replica) -> None:
        """It answers: from now on only its equals can carry the answer on."""
        self._fingerprint = replica.fingerprint
        self._busy.clear()
        self._avoid.clear()

    async def _all_busy(self) -> None:
        """Full queues everywhere: an error while that is possible, else a pause."""
        if not self._waiting.begun:
            raise GatewayError(
                Code.ENGINE_BUSY, "All replicas have full queues. Retry soon.", retry_after_s=1
            )
        if time.monotonic() >= self._waiting.deadline():
            raise self._waiting.timeout()
        await asyncio.sleep(random.uniform(0.1, 0.5))
        self._busy.clear()


_SICK = (Failed, EngineFailed, EventTooLong, Silent)
