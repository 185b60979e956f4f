"""Which replica a request goes to next: one it has not failed on, or the wait for one."""

from __future__ import annotations

import asyncio
import random
import time

from spotinference.gateway.context import Context
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.replicas import Replica
from spotinference.gateway.waiting import Waiting


class Search:
    """One request's; remembers which replicas failed it or had full queues."""

    def __init__(self, context: Context, waiting: Waiting) -> None:
        self._context = context
        self._waiting = waiting
        self._fingerprint: str | None = None
        self._avoid: set[str] = set()
        self._busy: set[str] = set()
        self.found_at = time.monotonic()
        """monotonic; when the last replica was found"""

    async def replica(self) -> Replica:
        """The next to try; waits for one within the cap, else `wake_timeout` or `engine_busy`."""
        replicas = self._context.replicas
        while True:
            self._waiting.refresh()
            for avoid in (self._busy | self._avoid, self._busy):
                replica = replicas.pick(
                    self._waiting.tier.ref, avoid=avoid, fingerprint=self._fingerprint
                )
                if replica is not None:
                    self.found_at = time.monotonic()
                    return replica
            if replicas.pick(self._waiting.tier.ref) is None:
                await self._waiting.park()
            elif self._busy:
                await self._all_busy()
            else:
                raise GatewayError(
                    Code.NOT_CONTINUABLE,
                    "The replicas that are left serve another revision of the model.",
                )

    def busy(self, replica: Replica) -> None:
        """Its queue is full: not this one again before the others were asked."""
        self._busy.add(replica.uid)

    def failed(self, replica: Replica) -> None:
        """Any other first."""
        self._avoid = {replica.uid}

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
