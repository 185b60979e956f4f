"""The work queue: which tier is looked at next.

One key is worked on by one worker at a time; a key added while it is worked on runs once more.
Failures back off per key, a hanging key hits its deadline and blocks nobody else. Knows nothing
of what the work is: `work(key)` answers when to look again.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from spotinference import errors
from spotinference.core.observed import TierRef

log = structlog.get_logger(__name__)

Work = Callable[[TierRef], Awaitable[float | None]]
"""Reconciles one tier; answers after how many seconds to look again (None: only on events)."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    workers: int = 64
    """tiers worked on at once; a worker mostly waits for the API server, and where many nodes go
    at once no tier may wait for the rest of another one's work"""
    deadline_s: float = 60.0
    """one reconcile; longer than any single request's deadline"""
    backoff_first_s: float = 0.05
    backoff_max_s: float = 60.0


@dataclass(slots=True)
class QueueStats:
    """Read by `controller.metrics`; plain numbers so that tests need no registry."""

    done: int = 0
    failed: dict[str, int] = field(default_factory=dict)


class WorkQueue:
    def __init__(
        self,
        work: Work,
        limits: QueueLimits | None = None,
        *,
        on_wait: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._work = work
        self._limits = limits or QueueLimits()
        self._on_wait = on_wait
        self._urgent: deque[TierRef] = deque()
        self._normal: deque[TierRef] = deque()
        self._queued_at: dict[TierRef, float] = {}
        self._active: dict[TierRef, float] = {}
        self._again: dict[TierRef, bool] = {}
        self._failures: dict[TierRef, int] = {}
        self._timers: dict[TierRef, asyncio.TimerHandle] = {}
        self._available = asyncio.Semaphore(0)
        self._open = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.stats = QueueStats()

    # --- what to do -----------------------------------------------------------------------------

    def add(self, key: TierRef, *, urgent: bool = False) -> None:
        """Have the key looked at as soon as a worker is free; many adds are one look."""
        if key in self._active:
            self._again[key] = urgent or self._again.get(key, False)
        elif key not in self._queued_at:
            self._queued_at[key] = asyncio.get_running_loop().time()
            (self._urgent if urgent else self._normal).append(key)
            self._available.release()
        elif urgent and key not in self._urgent:
            self._normal.remove(key)
            self._urgent.append(key)

    def add_after(self, key: TierRef, delay_s: float) -> None:
        """Look at the key at the latest after this long; an earlier timer stays."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + delay_s:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(max(0.0, delay_s), self._due, key)

    def open(self) -> None:
        self._open.set()

    def close(self) -> None:
        """Take up nothing new; what runs finishes (see `drained`)."""
        self._open.clear()

    async def drained(self, deadline_s: float) -> bool:
        """Whether everything under way ended in time."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    # --- what it shows --------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        return len(self._queued_at)

    @property
    def active(self) -> int:
        return len(self._active)

    def idle(self) -> bool:
        """Nothing is worked on, and nothing waits."""
        return not self._active and not self._queued_at

    def failures_of(self, key: TierRef) -> int:
        return self._failures.get(key, 0)

    def stalled_s(self) -> float:
        """How long the oldest key has waited while the queue is open and a worker was free."""
        if not self._open.is_set() or not self._queued_at:
            return 0.0
        if len(self._active) >= self._limits.workers:
            return self._oldest(self._active)
        return self._oldest(self._queued_at)

    def _oldest(self, times: dict[TierRef, float]) -> float:
        return asyncio.get_running_loop().time() - min(times.values())

    # --- the workers ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._limits.workers):
                group.create_task(self._worker(), name=f"worker-{number}")

    async def _worker(self) -> None:
        while True:
            await self._available.acquire()
            await self._open.wait()
            key = self._urgent.popleft() if self._urgent else self._normal.popleft()
            now = asyncio.get_running_loop().time()
            self._on_wait(now - self._queued_at.pop(key))
            self._active[key] = now
            self._idle.clear()
            try:
                await self._once(key)
            finally:
                del self._active[key]
                if not self._active:
                    self._idle.set()
            urgent = self._again.pop(key, None)
            if urgent is not None:
                self.add(key, urgent=urgent)

    async def _once(self, key: TierRef) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        try:
            async with asyncio.timeout(self._limits.deadline_s):
                again_s = await self._work(key)
        except (errors.Retryable, TimeoutError) as error:
            self._retry(key, error)
        except Exception as error:  # the outermost frame of the loop
            log.exception("reconcile.bug", tier=str(key), error=str(error))
            self._retry(key, error)
        else:
            self.stats.done += 1
            self._failures.pop(key, None)
            if again_s is not None:
                self.add_after(key, again_s)

    def _retry(self, key: TierRef, error: Exception) -> None:
        family = type(error).__name__
        self.stats.failed[family] = self.stats.failed.get(family, 0) + 1
        count = self._failures.get(key, 0) + 1
        self._failures[key] = count
        delay_s = self._limits.backoff_first_s * 2 ** min(count - 1, 20)
        delay_s = min(self._limits.backoff_max_s, delay_s) * random.uniform(0.5, 1.0)
        if isinstance(error, errors.Throttled) and error.retry_after_s:
            delay_s = max(delay_s, error.retry_after_s)
        log.info(
            "reconcile.retry", tier=str(key), error=f"{family}: {error}", in_s=round(delay_s, 3)
        )
        self.add_after(key, delay_s)

    def _due(self, key: TierRef) -> None:
        self._timers.pop(key, None)
        self.add(key)
