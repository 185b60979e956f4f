"""Waiting in tests: a condition with a deadline instead of a sleep."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

MOST_TIMES = 10
"""A process that stands still altogether is given up after so many times the deadline."""
POLL_S = 0.05
FIRST_POLL_S = 0.002
"""Doubles up to `POLL_S`: most conditions are true within a few milliseconds."""


@overload
async def eventually(
    check: Callable[[], Awaitable[T | None]], deadline_s: float = 30, what: str = ""
) -> T: ...
@overload
async def eventually(
    check: Callable[[], T | None], deadline_s: float = 30, what: str = ""
) -> T: ...
async def eventually(
    check: Callable[[], Awaitable[T | None] | T | None], deadline_s: float = 30, what: str = ""
) -> T:
    """What `check` returns once it is true; retried while it is falsy or asserts wrongly.

    At the deadline it fails with the last state it saw. What this process was late to wake, because
    a busy machine ran others, is no part of the time.
    """
    began = time.monotonic()
    late_s = 0.0
    pause_s = FIRST_POLL_S
    while True:
        last: object
        try:
            answer = check()
            result: T | None = await answer if inspect.isawaitable(answer) else answer
            if result:
                return result
            last = result
        except AssertionError as error:
            last = error
        if time.monotonic() - began > deadline_s + min(late_s, MOST_TIMES * deadline_s):
            name = what or getattr(check, "__name__", "condition")
            raise AssertionError(f"{name}: not within {deadline_s} s; last seen: {last!r}")
        slept = time.monotonic()
        await asyncio.sleep(pause_s)
        late_s += time.monotonic() - slept - pause_s
        pause_s = min(2 * pause_s, POLL_S)
