"""Which replica a request goes to next: one it has not failed on, or the wait for one."""

from __future__ import annotations

import asyncio
import random
import time

from spotinference.core.observed import TierRef
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

    __slots__ = (
        "_admitted", "_avoid", "_busy", "_context", "_fingerprint", "_full_since", "_waiting",
        "found_at", "work",
    )  # fmt: skip

    def __init__(self, context: Context, waiting: Waiting, work: Work) -> None:
        self._context = context
        self._waiting = waiting
        self.work = work
        self._fingerprint: str | None = None
        self._avoid: tuple[str, ...] = ()
        self._busy: tuple[str, ...] = ()
        self._full_since: float | None = None
        """monotonic; since when it waits for a slot"""
        self._admitted = False
        """it had its turn: it need not wait behind others"""
        context.vitals.asked(waiting.tier.ref)
        self.found_at = time.monotonic()
        """monotonic; when the last replica was found"""

    async def replica(self) -> Replica:
        """The next to try; waits for one within the cap, else `wake_timeout` or `engine_busy`."""
        while True:
            if (replica := self.at_once()) is not None:
                return replica
            ref = self._waiting.tier.ref
            if not any(r.routable for r in self._context.replicas.of(ref)):
                self._waiting.may_wait()
                self._admitted = await self._waiting.park()
            elif self._busy or not self._admitted:
                await self._slot(ref)
            else:
                raise GatewayError(
                    Code.NOT_CONTINUABLE,
                    "The replicas that are left serve another revision of the model.",
                )

    def at_once(self) -> Replica | None:
        """The next to try; None: only by waiting."""
        self._waiting.refresh()
        ref = self._waiting.tier.ref
        if not self._admitted and self._context.parking.queued(ref):
            return None
        replica = self._pick(ref)
        if replica is not None:
            self._admitted = True
            self.found_at = time.monotonic()
        return replica

    def _pick(self, ref: TierRef) -> Replica | None:
        """Not one that has just failed, if there is another; never one that is full."""
        if not self._avoid:
            return self._context.replicas.pick(
                ref, self.work, avoid=self._busy, fingerprint=self._fingerprint
            )
        for avoid in ((*self._busy, *self._avoid), self._busy):
            replica = self._context.replicas.pick(
                ref, self.work, avoid=avoid, fingerprint=self._fingerprint
            )
            if replica is not None:
                return replica
        return None

    def busy(self, replica: Replica) -> None:
        """Its queue is full: not this one again before the others were asked."""
        self._busy = (*self._busy, replica.uid)
        self._context.engines.full(replica)

    def failed(self, replica: Replica, failure: Exception) -> None:
        """Any other first; raises when the tier bears no more retries.

        Only what a sick tier says counts (5xx, rubbish, silence): a replica that is gone or an
        answer that has begun is always carried on.
        """
        self._avoid = (replica.uid,)
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
        self._waiting.answers()
        self._full_since = None
        self._busy = self._avoid = ()

    async def _slot(self, ref: TierRef) -> None:
        """Replicas are there, but full, or others wait for them: in turn, for a bounded time.

        Behind those whose wait woke the tier it is a part of the same wait. Else it is short, for
        as long as a true error is possible.
        """
        waiting = self._waiting
        if waiting.patient and not self._busy and self._context.parking.wanted(ref):
            self._admitted = await self._waiting.park()
            return
        now = time.monotonic()
        if self._full_since is None:
            self._full_since = now
        until, busy_wait_s = waiting.deadline(), self._context.settings.busy_wait_s
        if not waiting.begun:
            until = min(until, self._full_since + busy_wait_s)
        if now >= until:
            raise waiting.timeout() if waiting.begun else _engine_busy()
        # Not longer at a time: the full ones may go, and then it must wake the tier.
        self._admitted = await waiting.park(until=min(until, now + busy_wait_s))
        if self._fingerprint is not None:
            # There may be room, but on replicas of another revision: do not spin on those that fit.
            await asyncio.sleep(self._context.settings.busy_retry_s * random.uniform(0.5, 1.5))
        self._busy = ()


def _engine_busy() -> GatewayError:
    return GatewayError(
        Code.ENGINE_BUSY, "All replicas have full queues. Retry soon.", retry_after_s=1
    )


_SICK = (Failed, EngineFailed, EventTooLong, Silent)
