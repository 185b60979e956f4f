"""How one request waits for a replica: parked in its place, kept alive, until the cap."""

from __future__ import annotations

import asyncio
import time

from spotinference.api.keys import ApiKey
from spotinference.core import chunks
from spotinference.core.chunks import Identity
from spotinference.core.continuation import Prepared
from spotinference.core.delivered import Delivered
from spotinference.gateway import errors
from spotinference.gateway.catalogue import Tier
from spotinference.gateway.context import Context
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.parking import Ticket
from spotinference.gateway.reply import Reply


class Waiting:
    """One request's; begun anew after each loss, in the same place of the queue."""

    def __init__(
        self,
        context: Context,
        tier: Tier,
        prepared: Prepared,
        delivered: Delivered,
        reply: Reply,
        ticket: Ticket,
        *,
        key: ApiKey,
    ) -> None:
        self._context = context
        self._key = key
        self._prepared = prepared
        self._delivered = delivered
        self._reply = reply
        self._ticket = ticket
        self._admitted = False
        self.tier = tier
        """as last seen in the catalogue"""
        self.since: float | None = time.monotonic()
        """monotonic; None while the answer flows"""
        self.who: Identity | None = None
        """set when a chunk of ours had to go out before the engine's first"""

    @property
    def begun(self) -> bool:
        """The client has its status already."""
        return self._reply.begun

    def refresh(self) -> None:
        """The tier as it is now; deleted and paused ones end the wait."""
        tier = self._context.catalogue.get(self.tier.ref)
        if tier is None:
            raise self._context.catalogue.gone(self.tier)
        if tier.spec.paused and not self._reply.begun:
            raise errors.tier_paused(tier.names[0])
        self.tier = tier

    def deadline(self) -> float:
        since = self.since if self.since is not None else time.monotonic()
        return since + self.tier.cap_s

    def timeout(self) -> GatewayError:
        return GatewayError(
            Code.WAKE_TIMEOUT,
            f"No replica of {self.tier.names[0]!r} became ready within "
            f"{self.tier.spec.wake.cap} (spec.wake.cap).",
        )

    async def park(self) -> None:
        """Until a replica may be there; `wake_timeout` at the cap."""
        ref = self.tier.ref
        parking = self._context.parking
        started = time.monotonic()
        released = parking.enter(
            self.tier, self._ticket, bounded=not (self._admitted or self._reply.begun)
        )
        self._admitted = True
        try:
            if self._prepared.stream and self.tier.spec.wake.heartbeat != "off":
                await self._beat(released)
            await self._until(released, self.deadline())
            if not released.done():
                raise self.timeout()
            released.result()
        finally:
            parking.leave(ref, self._ticket)
            if not released.cancel() and not released.cancelled():
                released.exception()  # seen, whether or not it was raised here
            self._context.metrics.parked_seconds.labels(ref.name).observe(
                time.monotonic() - started
            )

    async def _beat(self, released: asyncio.Future[None]) -> None:
        """Keeps a waiting stream alive; returns on release or at the cap."""
        settings = self._context.settings
        deadline = self.deadline()
        if not self._reply.begun:
            assert self.since is not None
            await self._until(released, min(deadline, self.since + settings.fail_fast_s))
            if released.done() or time.monotonic() >= deadline:
                return
            await self._reply.begin({"x-spotinference-eta": str(self._eta())})
        empty_at = time.monotonic() + settings.empty_chunk_s
        while not released.done() and time.monotonic() < deadline:
            await self._reply.write(chunks.comment(f"waking eta_seconds={self._eta()}"))
            if self._prepared.endpoint.chunked and time.monotonic() >= empty_at:
                empty_at += settings.empty_chunk_s
                await self._reply.write(
                    chunks.empty_chunk(self._prepared.endpoint, self._identity())
                )
            await self._until(released, min(deadline, time.monotonic() + settings.heartbeat_s))

    def _identity(self) -> Identity:
        """The answer's own; made here when a chunk must go out before the engine's first."""
        self._delivered.settle()
        if self._delivered.identity is not None:
            return self._delivered.identity
        if self.who is None:
            self.who = Identity(
                id=self._prepared.endpoint.id_prefix + self._reply.request_id,
                created=int(self._context.clock.now().timestamp()),
                model=self.tier.names[0],
            )
        return self.who

    def _eta(self) -> int:
        tier = self._context.catalogue.get(self.tier.ref) or self.tier
        waited_s = time.monotonic() - (self.since or time.monotonic())
        return tier.eta_seconds(self._context.clock.now(), waited_s)

    @staticmethod
    async def _until(released: asyncio.Future[None], at: float) -> None:
        """Waits for the release, at most until `at`."""
        left = at - time.monotonic()
        if left > 0 and not released.done():
            await asyncio.wait([released], timeout=left)
