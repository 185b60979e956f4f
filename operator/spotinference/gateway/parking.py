"""Requests without a replica wait here: bounded, first in first out, each with its deadline.

One queue per tier, ordered by arrival: a request that was released and found its replica dead
again returns to its old place. They are released as replicas have room for them; while any wait,
whoever comes later waits behind them.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from spotinference.core.observed import TierRef
from spotinference.gateway.catalogue import Tier
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.metrics import Metrics

LINE_SLACK = 64
"""Orders of requests that have left which a queue keeps beyond as many as still wait."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A request's place, the same for its whole life."""

    order: int
    arrived_at: datetime
    body_bytes: int
    key_id: str
    answered: bool = False
    """bytes of its answer are out: it is never turned away, nor ended by a pause of the tier"""
    admitted: bool = False
    """it was parked before: it keeps its place whatever the bounds say"""


@dataclass(slots=True, eq=False)
class _Place:
    ticket: Ticket
    future: asyncio.Future[None]
    wakes: bool
    """it waits for a replica, not just for a slot of one"""


@dataclass(slots=True)
class _Queue:
    places: dict[int, _Place] = field(default_factory=dict)
    """by order of arrival"""
    line: list[int] = field(default_factory=list)
    """a heap of the orders that were not released; some may have left"""
    waking: int = 0
    """of these, how many wait for a replica"""
    bytes: int = 0
    released: int = 0
    """of these, how many were let go but have not left yet"""
    knocked_at: datetime | None = None
    """somebody who does not wait asked for the tier"""
    knock: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> int:
        """Requests that want a replica."""
        return self.waking + (self.knocked_at is not None)


class Parking:
    def __init__(
        self,
        settings: GatewaySettings,
        metrics: Metrics,
        *,
        on_wanted: Callable[[TierRef, int], None],
        room: Callable[[TierRef, int], int],
    ) -> None:
        """`on_wanted(tier, requests)` is called whenever the number that wants a replica changes;
        `room(tier, on_the_way)` says how many more its replicas can take now.
        """
        self._settings = settings
        self._metrics = metrics
        self._on_wanted = on_wanted
        self._room = room
        self._queues: dict[TierRef, _Queue] = {}
        self._orders = itertools.count()
        self._count = 0
        self._bytes = 0
        self._of_key: Counter[str] = Counter()
        self._bytes_of_key: Counter[str] = Counter()

    def ticket(self, arrived_at: datetime, body_bytes: int, key_id: str) -> Ticket:
        return Ticket(next(self._orders), arrived_at, body_bytes, key_id)

    def parked(self, ref: TierRef) -> int:
        queue = self._queues.get(ref)
        return len(queue.places) if queue else 0

    @property
    def count(self) -> int:
        """All that wait here, of whatever tier."""
        return self._count

    def queued(self, ref: TierRef) -> bool:
        """Somebody waits who was not released yet: a newcomer goes behind."""
        queue = self._queues.get(ref)
        return queue is not None and len(queue.places) > queue.released

    def wanted(self, ref: TierRef) -> int:
        queue = self._queues.get(ref)
        return queue.wanted if queue else 0

    def oldest(self, ref: TierRef) -> datetime | None:
        """When the first of those that still want a replica arrived."""
        queue = self._queues.get(ref)
        if queue is None:
            return None
        since = [place.ticket.arrived_at for place in queue.places.values() if place.wakes]
        if queue.knocked_at is not None:
            since.append(queue.knocked_at)
        return min(since, default=None)

    def enter(self, tier: Tier, ticket: Ticket, *, wakes: bool) -> asyncio.Future[None]:
        """A future that is done on release, or carries the error that ends the wait.

        `wakes` False: the tier's replicas are there, but all of them are full.
        """
        queue = self._queues.setdefault(tier.ref, _Queue())
        try:
            if not (ticket.admitted or ticket.answered):
                self._admit(tier, queue, ticket)
        except GatewayError:
            self._tidy(tier.ref, queue)
            raise
        ticket.admitted = True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.places[ticket.order] = _Place(ticket, future, wakes)
        heapq.heappush(queue.line, ticket.order)
        queue.waking += wakes
        queue.bytes += ticket.body_bytes
        self._count += 1
        self._bytes += ticket.body_bytes
        self._of_key[ticket.key_id] += 1
        self._bytes_of_key[ticket.key_id] += ticket.body_bytes
        self._changed(tier.ref, queue)
        self.release(tier.ref)
        return future

    def _share(self, bound: int) -> int:
        """Our part of a tier's bound, so that all workers of a pod keep it together."""
        return max(1, bound // self._settings.workers)

    def leave(self, ref: TierRef, ticket: Ticket) -> None:
        """Idempotent: released, given up or cancelled."""
        queue = self._queues.get(ref)
        place = queue.places.pop(ticket.order, None) if queue is not None else None
        if queue is None or place is None:
            return
        if place.future.done():
            queue.released -= 1
        queue.waking -= place.wakes
        queue.bytes -= ticket.body_bytes
        self._count -= 1
        self._bytes -= ticket.body_bytes
        for counter, by in (self._of_key, 1), (self._bytes_of_key, ticket.body_bytes):
            counter[ticket.key_id] -= by
        if not self._of_key[ticket.key_id]:
            del self._of_key[ticket.key_id], self._bytes_of_key[ticket.key_id]
        if len(queue.line) > 2 * len(queue.places) + LINE_SLACK:  # a tier may be asleep for days
            queue.line = [order for order, one in queue.places.items() if not one.future.done()]
            heapq.heapify(queue.line)
        self._changed(ref, queue)
        self._tidy(ref, queue)

    def release(self, ref: TierRef) -> None:
        """As many of those that wait longest as the tier's replicas have room for."""
        queue = self._queues.get(ref)
        if queue is None or len(queue.places) <= queue.released:
            return
        room = self._room(ref, queue.released)
        if room <= 0:
            return
        while room and queue.line:
            place = queue.places.get(heapq.heappop(queue.line))
            if place is not None and not place.future.done():
                place.future.set_result(None)
                queue.released += 1
                room -= 1

    def replica_came(self, ref: TierRef) -> None:
        """One can take work: those who wait go, and nobody need be woken for who only knocked."""
        self._end_knock(ref)
        self.release(ref)

    def fail(
        self, ref: TierRef, error: Callable[[], GatewayError], *, answered_too: bool = True
    ) -> None:
        """Ends the waits with this error; `answered_too` False spares answers that have begun."""
        self._end_knock(ref)
        queue = self._queues.get(ref)
        for place in list(queue.places.values()) if queue is not None else ():
            if not place.future.done() and (answered_too or not place.ticket.answered):
                place.future.set_exception(error())
                assert queue is not None
                queue.released += 1

    def knock(self, ref: TierRef, at: datetime, hold_s: float) -> None:
        """Somebody who will not wait wants a replica: that stands for so long, once per tier."""
        queue = self._queues.setdefault(ref, _Queue())
        if queue.knock is not None:
            queue.knock.cancel()
        queue.knock = asyncio.get_running_loop().call_later(hold_s, self._end_knock, ref)
        if queue.knocked_at is None:
            queue.knocked_at = at
            self._changed(ref, queue)

    def close(self) -> None:
        """Nobody comes back for who only knocked."""
        for ref in list(self._queues):
            self._end_knock(ref)

    def _end_knock(self, ref: TierRef) -> None:
        queue = self._queues.get(ref)
        if queue is None or queue.knock is None:
            return
        queue.knock.cancel()
        queue.knock = queue.knocked_at = None
        self._changed(ref, queue)
        self._tidy(ref, queue)

    def _admit(self, tier: Tier, queue: _Queue, ticket: Ticket) -> None:
        """Raises `parked_full`, with the bound that is reached."""
        limits, size, key = self._settings, ticket.body_bytes, ticket.key_id
        most = tier.spec.wake.max_parked
        bounds = (
            (
                "tier",
                len(queue.places),
                1,
                self._share(most),
                f"requests for it (spec.wake.maxParked is {most})",
            ),
            ("tier_bytes", queue.bytes, size, limits.max_parked_bytes_per_tier, "bytes for it"),
            ("key", self._of_key[key], 1, limits.max_parked_per_key, "requests of this key"),
            (
                "key_bytes",
                self._bytes_of_key[key],
                size,
                limits.max_parked_bytes_per_key,
                "bytes of this key",
            ),
            ("all", self._count, 1, limits.max_parked, "requests"),
            ("all_bytes", self._bytes, size, limits.max_parked_bytes, "bytes"),
        )
        for bound, have, more, limit, what in bounds:
            if have + more > limit:
                self._metrics.parked_refused.labels(bound).inc()
                raise GatewayError(
                    Code.PARKED_FULL,
                    f"No replica of {tier.names[0]!r} has room, and as much waits already as may: "
                    f"{have} {what}, the bound is {limit}. Retry later.",
                    retry_after_s=limits.parked_retry_after_s,
                )

    def _changed(self, ref: TierRef, queue: _Queue) -> None:
        self._metrics.parked.labels(ref.name).set(len(queue.places))
        self._metrics.parked_bytes.set(self._bytes)
        self._on_wanted(ref, queue.wanted)

    def _tidy(self, ref: TierRef, queue: _Queue) -> None:
        if not queue.places and queue.knock is None:
            self._queues.pop(ref, None)
