"""How long this process's loop stood still: what a busy machine did, and not the code under test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

CHECK_S = 0.02


@dataclass(slots=True)
class Stalls:
    worst_s: float = 0.0
    """the longest at a time"""
    total_s: float = 0.0


@asynccontextmanager
async def stalls() -> AsyncIterator[Stalls]:
    """Counts while the block runs."""
    seen = Stalls()
    task = asyncio.create_task(_watch(seen))
    try:
        yield seen
    finally:
        task.cancel()


async def _watch(seen: Stalls) -> None:
    now = asyncio.get_running_loop().time
    while True:
        due = now() + CHECK_S
        await asyncio.sleep(CHECK_S)
        late_s = now() - due
        seen.worst_s = max(seen.worst_s, late_s)
        seen.total_s += late_s
