"""Full collections come when the operator is idle, or at the latest after a while; never by themselves."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from spotinference.controller import garbage
from tests.support.virtual_time import VirtualClock, virtual_time


@pytest.fixture
def full() -> Iterator[list[int]]:
    """One entry for each full collection."""
    before, found = gc.get_threshold(), list[int]()

    def seen(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            found.append(2)

    gc.callbacks.append(seen)
    yield found
    gc.callbacks.remove(seen)
    gc.set_threshold(*before)


def test_a_full_collection_waits_for_a_quiet_moment(full: list[int]) -> None:
    @virtual_time
    async def scenario(_: VirtualClock) -> None:
        busy = True
        task = asyncio.create_task(garbage.collect(lambda: not busy))
        full.clear()
        await asyncio.sleep(garbage.EVERY_S + 10)
        assert full == []
        busy = False
        await asyncio.sleep(1)
        assert len(full) == 1
        busy = True
        await asyncio.sleep(garbage.EVERY_S + garbage.PATIENCE_S + 1)
        assert len(full) == 2, "never idle: collected all the same"
        task.cancel()

    scenario()


def test_much_that_is_allocated_begins_no_full_collection(full: list[int]) -> None:
    @virtual_time
    async def scenario(_: VirtualClock) -> None:
        task = asyncio.create_task(garbage.collect(lambda: True))
        await asyncio.sleep(0)
        full.clear()
        kept = [{"n": [n]} for n in range(200_000)]
        assert len(kept) == 200_000
        assert full == []
        task.cancel()

    scenario()
