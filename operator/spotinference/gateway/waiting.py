"""How one request waits for a replica: parked in its place, kept alive, until the cap."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable

from spotinference.api.keys import ApiKey
from spotinference.clients.engine_http import Answer
from spotinference.core import chunks
from spotinference.gateway import errors
from spotinference.gateway.catalogue import Tier
from spotinference.gateway.context import Context
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.parking import Ticket
from spotinference.gateway.reply import Reply

SPREAD = 0.2


def pause_s(heartbeat_s: float) -> float:
    """Until the next sign of life: those that began to wait together must not write together."""
    return heartbeat_s * random.uniform(1, 1 + SPREAD)


class _Bell:
    """Rings when a future is done or a time has come; lighter than `asyncio.wait`, for thousands."""

    __slots__ = ("_end", "_timer", "_waiter")

    def __init__(self, end: asyncio.Future[None]) -> None:
        self._end = end
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        end.add_done_callback(self._ring)

    def until(self, at: float) -> asyncio.Future[None]:
        """Done when the end is, or at `at` in monotonic seconds; one at a time."""
        loop = asyncio.get_running_loop()
        self._stop()
        self._waiter = loop.create_future()
        left_s = at - time.monotonic()
        if left_s <= 0 or self._end.done():
            self._waiter.set_result(None)
        else:
            self._timer = loop.call_later(left_s, self._ring)
        return self._waiter

    def close(self) -> None:
        self._stop()
        self._end.remove_done_callback(self._ring)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Waiting:
    """One request's; begun anew after each loss, in the same place of the queue."""

    __slots__ = (
        "_context",
        "_empty",
        "_empty_at",
        "_expected_s",
        "_key",
        "_noted_s",
        "_reply",
        "_stream",
        "_ticket",
        "parked_s",
        "since",
        "tier",
    )

    def __init__(
        self,
        context: Context,
        tier: Tier,
        reply: Reply,
        ticket: Ticket,
        empty: Callable[[], bytes],
        *,
        key: ApiKey,
        stream: bool,
    ) -> None:
        """`empty` makes a parsed but empty event of this answer, for a client that waits."""
        self._context = context
        self._key = key
        self._reply = reply
        self._ticket = ticket
        self._empty = empty
        self._empty_at: float | None = None
        """monotonic; the next such event is due, however often it was parked since the last"""
        self._stream = stream
        self.tier = tier
        """as last seen in the catalogue"""
        self.since: float | None = time.monotonic()
        """monotonic; None while the answer flows"""
        self.parked_s = 0.0
        """waited for a replica or a slot, in all"""
        self._noted_s = 0.0
        """of that the metric has so much"""
        self._expected_s: int | None = None
        """to the replica, as estimated when the wait began; None once it was judged"""

    @property
    def begun(self) -> bool:
        """The client has its status already."""
        return self._reply.begun

    def over(self) -> None:
        """The request is: lets go of what would else be a circle, and the collector's work.

        A turn that it was given and did not use is the next one's.
        """
        self._empty = bytes
        self._note_wait()
        self._context.parking.release(self.tier.ref)

    def refresh(self) -> None:
        """The tier as it is now; its end ends the wait, a pause only one without an answer yet."""
        tier = self._context.catalogue.get(self.tier.ref)
        if tier is None:
            raise self._context.catalogue.gone(self.tier)
        if tier.spec.paused and not self._ticket.answered:
            raise errors.tier_paused(tier.names[0])
        self.tier = tier

    def answers(self) -> None:
        """The first bytes of the answer are about to go out."""
        self._ticket.answered = True
        self._empty_at = None
        self._note_wait()

    def _note_wait(self) -> None:
        """One wait, however often it was parked anew meanwhile."""
        waited_s, self._noted_s = self.parked_s - self._noted_s, self.parked_s
        if waited_s > 0:
            self._context.metrics.parked_seconds.labels(self.tier.ref.name).observe(waited_s)

    def deadline(self) -> float:
        since = self.since if self.since is not None else time.monotonic()
        return since + self.tier.cap_s

    def timeout(self) -> GatewayError:
        if self._paused:
            return errors.tier_paused(self.tier.names[0])
        return GatewayError(
            Code.WAKE_TIMEOUT,
            f"No replica of {self.tier.names[0]!r} became ready within "
            f"{self.tier.spec.wake.cap} (spec.wake.cap).",
        )

    @property
    def patient(self) -> bool:
        """It may wait for a tier that wakes."""
        return self._key.wait != "reject" or self._reply.begun or self._ticket.answered

    def may_wait(self) -> None:
        """Raises `model_warming` for a key that does not wait; the tier is woken all the same."""
        if self._expected_s is None and not self._ticket.answered:
            self._expected_s = self._eta()
        if self.patient:
            return
        ref, context = self.tier.ref, self._context
        eta_s = max(1, self._eta())
        self._expected_s = None
        context.metrics.rejected_warming.labels(ref.name).inc()
        context.parking.knock(ref, context.clock.now(), eta_s + context.settings.reject_hold_s)
        raise GatewayError(
            Code.MODEL_WARMING,
            f"The tier {self.tier.names[0]!r} wakes; a replica is expected in {eta_s} s.",
            retry_after_s=eta_s,
        )

    async def park(self, *, until: float | None = None) -> bool:
        """True: it is this request's turn. False: not by `until`, in monotonic seconds.

        Without `until` it waits for a replica, and `wake_timeout` is raised at the cap.
        """
        ref = self.tier.ref
        parking = self._context.parking
        started = time.monotonic()
        deadline = self.deadline() if until is None else until
        released = parking.enter(self.tier, self._ticket, wakes=until is None)
        bell = _Bell(released)
        try:
            if self._beats:
                await self._beat(released, bell, deadline)
            await bell.until(deadline)
            if released.done():
                released.result()
                self._came(ref.name, time.monotonic() - started)
            elif until is None:
                raise self.timeout()
            return released.done()
        finally:
            bell.close()
            parking.leave(ref, self._ticket)
            if not released.cancel() and not released.cancelled():
                released.exception()  # seen, whether or not it was raised here
            self.parked_s += time.monotonic() - started

    def _came(self, tier: str, waited_s: float) -> None:
        """A replica is there: how wrong was what was said on arrival?"""
        if self._expected_s is not None:
            self._context.metrics.eta_error_seconds.labels(tier).observe(
                self._expected_s - waited_s
            )
            self._expected_s = None

    @property
    def _beats(self) -> bool:
        """Strict keys get no status before the answer; one that has begun is kept alive always."""
        if not self._stream:
            return False
        if self._ticket.answered:
            return True
        return self._key.wait != "strict" and self.tier.spec.wake.heartbeat != "off"

    async def first_part(self, answer: Answer) -> None:
        """Until the engine speaks: its queue and the prefill are no silence for the client either.

        A status that can still be a true one is not given away before `fail_fast_s`.
        """
        if not self._beats:
            return
        since = self.since if self.since is not None else time.monotonic()
        status_at = since + self._context.settings.fail_fast_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, status_at - time.monotonic())):
                await answer.arrival()
                return
        arrival = asyncio.get_running_loop().create_task(answer.arrival())
        bell = _Bell(arrival)
        try:
            await self._beat(arrival, bell, float("inf"))
            await arrival
        finally:
            bell.close()
            arrival.cancel()

    async def _beat(self, end: asyncio.Future[None], bell: _Bell, deadline: float) -> None:
        """Keeps a waiting stream alive; returns when `end` is done, or at the deadline."""
        settings = self._context.settings
        if not self._reply.begun:
            assert self.since is not None
            await bell.until(min(deadline, self.since + settings.fail_fast_s))
            if end.done() or time.monotonic() >= deadline:
                return
            await self._reply.begin({"x-spotinference-eta": str(self._eta())})
        if self._empty_at is None:
            # Of an answer that was cut the last chunk may be as old as its replica's silence.
            share = 0.5 if self._ticket.answered else 1.0
            self._empty_at = time.monotonic() + share * settings.empty_chunk_s
        while not end.done() and time.monotonic() < deadline:
            await self._reply.write(chunks.comment(self._news()))
            now = time.monotonic()
            if now >= self._empty_at:
                self._empty_at = now + settings.empty_chunk_s
                await self._reply.write(self._empty())
            await bell.until(min(deadline, self._empty_at, now + pause_s(settings.heartbeat_s)))

    def _news(self) -> str:
        if self._paused:
            return "paused"
        if any(r.routable for r in self._context.replicas.of(self.tier.ref)):
            return "waiting for a replica's first token"
        return f"waking eta_seconds={self._eta()}"

    @property
    def _paused(self) -> bool:
        tier = self._context.catalogue.get(self.tier.ref)
        return tier is not None and tier.spec.paused

    def _eta(self) -> int:
        tier = self._context.catalogue.get(self.tier.ref) or self.tier
        waited_s = time.monotonic() - (self.since or time.monotonic())
        return tier.eta_seconds(self._context.clock.now(), waited_s)
