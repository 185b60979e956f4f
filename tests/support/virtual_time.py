"""Virtual time: an event loop whose clock jumps to the next timer, and a Clock that reads it.

    @virtual_time
    async def test_…(clock: VirtualClock) -> None: ...

An hour of time-outs runs in milliseconds, and always in the same way.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

START = datetime(2026, 11, 21, 6, 0, tzinfo=UTC)


class VirtualClock:
    """`clients.clock.Clock` over the running virtual loop; `skew` moves wall time only."""

    def __init__(self) -> None:
        self.skew = timedelta()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> datetime:
        return START + timedelta(seconds=self.monotonic()) + self.skew


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise AssertionError("nothing will ever happen again: the test waits for ever")
            self.now += max(0.0, timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def virtual_time(
    test: Callable[[VirtualClock], Coroutine[Any, Any, None]],
) -> Callable[[], None]:
    """Runs an async test on a virtual loop and hands it the clock."""

    @functools.wraps(test)
    def run() -> None:
        loop = VirtualLoop()
        try:
            loop.run_until_complete(test(VirtualClock()))
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
                loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            loop.close()

    # pytest would take the test's parameter for a fixture.
    del run.__wrapped__
    run.place_as = test  # type: ignore[attr-defined]  # where pytest says that the test stands
    return run
