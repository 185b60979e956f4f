"""Requests without a replica wait here: bounded, first in first out, each with its deadline.

One queue per tier, ordered by arrival: a request that was released and found its replica dead
again returns to its old place.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from spotinference.core.observed import TierRef
from spotinference.gateway.catalogue import Tier
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.errors import Code, GatewayError


@dataclass(slots=True, eq=False)
class Ticket:
    """A request's place, the same for its whole life."""

    order: int
    arrived_at: datetime
    body_bytes: int


@dataclass(slots=True)
class _Queue:
    waiting: dict[int, tuple[Ticket, asyncio.Future[None]]] = field(default_factory=dict)
    """by order of arrival"""


class Parking:
    def __init__(
        self,
        settings: GatewaySettings,
        on_count: Callable[[TierRef, int], None],
    ) -> None:
        """`on_count(tier, parked)` is called whenever the number changes."""
        self._settings = settings
        self._on_count = on_count
        self._queues: dict[TierRef, _Queue] = {}
        self._orders = itertools.count()
        self._count = 0
        self._bytes = 0

    def ticket(self, arrived_at: datetime, body_bytes: int) -> Ticket:
        return Ticket(next(self._orders), arrived_at, body_bytes)

    def parked(self, ref: TierRef) -> int:
        queue = self._queues.get(ref)
        return len(queue.waiting) if queue else 0

    def enter(self, tier: Tier, ticket: Ticket, *, bounded: bool) -> asyncio.Future[None]:
        """A future that is done on release, or carries the error that ends the wait.

        `bounded` False: a stream that was being answered is never turned away here.
        """
        queue = self._queues.setdefault(tier.ref, _Queue())
        limits = self._settings
        if bounded and (
            len(queue.waiting) >= tier.spec.wake.max_parked
            or self._count >= limits.max_parked
            or self._bytes + ticket.body_bytes > limits.max_parked_bytes
        ):
            raise GatewayError(
                Code.PARKED_FULL,
                f"{len(queue.waiting)} requests wait for {tier.names[0]!r} already "
                f"(spec.wake.maxParked is {tier.spec.wake.max_parked}). Retry later.",
                retry_after_s=limits.parked_retry_after_s,
            )
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.waiting[ticket.order] = (ticket, future)
        self._count += 1
        self._bytes += ticket.body_bytes
        self._counted(tier.ref, queue)
        return future

    def leave(self, ref: TierRef, ticket: Ticket) -> None:
        """Idempotent: released, given up or cancelled."""
        queue = self._queues.get(ref)
        if queue is None or queue.waiting.pop(ticket.order, None) is None:
            return
        self._count -= 1
        self._bytes -= ticket.body_bytes
        self._counted(ref, queue)

    def release(self, ref: TierRef) -> None:
        """All waiting requests of the tier, in the order they came."""
        for _, future in self._in_order(ref):
            if not future.done():
                future.set_result(None)

    def fail(self, ref: TierRef, error: Callable[[], GatewayError]) -> None:
        for _, future in self._in_order(ref):
            if not future.done():
                future.set_exception(error())

    def _in_order(self, ref: TierRef) -> list[tuple[Ticket, asyncio.Future[None]]]:
        queue = self._queues.get(ref)
        return [queue.waiting[order] for order in sorted(queue.waiting)] if queue else []

    def oldest(self, ref: TierRef) -> datetime | None:
        """When the first of those that still wait arrived."""
        queue = self._queues.get(ref)
        return queue.waiting[min(queue.waiting)][0].arrived_at if queue else None

    def _counted(self, ref: TierRef, queue: _Queue) -> None:
        if not queue.waiting:
            del self._queues[ref]
        self._on_count(ref, len(queue.waiting))
