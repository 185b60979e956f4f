"""The work queue in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable

from spotinference import errors
from spotinference.controller.queue import QueueLimits, WorkQueue
from spotinference.core.observed import TierRef
from tests.support.virtual_time import VirtualClock, virtual_time

A, B, C = (TierRef("default", name) for name in "abc")


def started(
    work: Callable[[TierRef], Awaitable[float | None]], limits: QueueLimits | None = None
) -> tuple[WorkQueue, asyncio.Task[None]]:
    queue = WorkQueue(work, limits)
    queue.open()
    return queue, asyncio.create_task(queue.run())


@virtual_time
async def test_many_adds_before_a_worker_is_free_are_one_look(clock: VirtualClock) -> None:
    seen: Counter[TierRef] = Counter()

    async def work(key: TierRef) -> None:
        seen[key] += 1

    queue, _ = started(work)
    for _ in range(50):
        queue.add(A)
    await asyncio.sleep(1)
    assert seen == {A: 1}


@virtual_time
async def test_a_key_is_worked_on_by_one_worker_and_runs_again_after_an_add_meanwhile(
    clock: VirtualClock,
) -> None:
    running = most = runs = 0

    async def work(key: TierRef) -> None:
        nonlocal running, most, runs
        running += 1
        runs += 1
        most = max(most, running)
        await asyncio.sleep(5)
        running -= 1

    queue, _ = started(work)
    queue.add(A)
    await asyncio.sleep(1)
    queue.add(A)
    queue.add(A)
    await asyncio.sleep(30)
    assert (most, runs) == (1, 2)


@virtual_time
async def test_a_hanging_tier_blocks_no_other_and_is_cut_at_its_deadline(
    clock: VirtualClock,
) -> None:
    done_at: dict[TierRef, float] = {}

    async def work(key: TierRef) -> None:
        if key == A:
            await asyncio.sleep(10_000)
        done_at[key] = clock.monotonic()

    queue, _ = started(work, QueueLimits(workers=2, deadline_s=60))
    for key in (A, B, C):
        queue.add(key)
    await asyncio.sleep(61)
    assert done_at == {B: 0.0, C: 0.0}
    assert queue.stats.failed == {"TimeoutError": 1}
    assert queue.failures_of(A) == 1


@virtual_time
async def test_failures_back_off_exponentially_up_to_a_bound_and_success_resets_it(
    clock: VirtualClock,
) -> None:
    tried_at: list[float] = []
    fail = True

    async def work(key: TierRef) -> None:
        tried_at.append(clock.monotonic())
        if fail:
            raise errors.ApiUnavailable("down")

    queue, _ = started(work, QueueLimits(backoff_first_s=1, backoff_max_s=8))
    queue.add(A)
    await asyncio.sleep(100)
    gaps = [after - before for before, after in itertools.pairwise(tried_at)]
    for number, gap in enumerate(gaps):
        longest = min(8, 2**number)
        assert longest / 2 <= gap <= longest
    assert queue.failures_of(A) == len(tried_at)
    fail = False
    queue.add(A)
    await asyncio.sleep(20)
    assert queue.failures_of(A) == 0


@virtual_time
async def test_a_throttled_tier_waits_as_long_as_the_server_asks(clock: VirtualClock) -> None:
    tried_at: list[float] = []

    async def work(key: TierRef) -> None:
        tried_at.append(clock.monotonic())
        if len(tried_at) == 1:
            raise errors.Throttled("slow down", retry_after_s=17)

    queue, _ = started(work)
    queue.add(A)
    await asyncio.sleep(60)
    assert tried_at == [0.0, 17.0]


@virtual_time
async def test_a_bug_in_one_tier_leaves_the_workers_alive(clock: VirtualClock) -> None:
    seen: list[TierRef] = []

    async def work(key: TierRef) -> None:
        if key == A:
            raise ValueError("not a tier I like")
        seen.append(key)

    queue, task = started(work, QueueLimits(workers=1))
    queue.add(A)
    queue.add(B)
    await asyncio.sleep(1)
    assert seen == [B]
    assert not task.done()


@virtual_time
async def test_an_urgent_key_overtakes_those_that_wait(clock: VirtualClock) -> None:
    order: list[TierRef] = []

    async def work(key: TierRef) -> None:
        order.append(key)
        await asyncio.sleep(1)

    queue, _ = started(work, QueueLimits(workers=1))
    queue.add(A)
    queue.add(B)
    queue.add(C)
    queue.add(C, urgent=True)
    await asyncio.sleep(10)
    assert order == [C, A, B]


@virtual_time
async def test_a_delayed_look_keeps_the_earliest_timer(clock: VirtualClock) -> None:
    seen_at: list[float] = []

    async def work(key: TierRef) -> None:
        seen_at.append(clock.monotonic())

    queue, _ = started(work)
    queue.add_after(A, 50)
    queue.add_after(A, 10)
    queue.add_after(A, 30)
    await asyncio.sleep(100)
    assert seen_at == [10.0]


@virtual_time
async def test_work_that_asks_to_be_looked_at_again_is(clock: VirtualClock) -> None:
    seen_at: list[float] = []

    async def work(key: TierRef) -> float | None:
        seen_at.append(clock.monotonic())
        return 5.0 if len(seen_at) < 3 else None

    queue, _ = started(work)
    queue.add(A)
    await asyncio.sleep(100)
    assert seen_at == [0.0, 5.0, 10.0]


@virtual_time
async def test_a_closed_queue_takes_up_nothing_and_finishes_what_runs(clock: VirtualClock) -> None:
    done: list[TierRef] = []

    async def work(key: TierRef) -> None:
        await asyncio.sleep(3)
        done.append(key)

    queue, _ = started(work, QueueLimits(workers=1))
    queue.add(A)
    await asyncio.sleep(1)
    queue.add(B)
    queue.close()
    assert await queue.drained(10)
    await asyncio.sleep(10)
    assert done == [A]
    queue.open()
    await asyncio.sleep(4)
    assert done == [A, B]


@virtual_time
async def test_draining_gives_up_at_its_deadline(clock: VirtualClock) -> None:
    async def work(key: TierRef) -> None:
        await asyncio.sleep(50)

    queue, _ = started(work)
    queue.add(A)
    await asyncio.sleep(1)
    queue.close()
    assert not await queue.drained(6)
    assert clock.monotonic() == 7.0


@virtual_time
async def test_a_queue_whose_workers_all_hang_says_for_how_long(clock: VirtualClock) -> None:
    async def work(key: TierRef) -> None:
        await asyncio.sleep(1000)

    queue, _ = started(work, QueueLimits(workers=1, deadline_s=2000))
    assert queue.stalled_s() == 0.0
    queue.add(A)
    await asyncio.sleep(1)
    assert queue.stalled_s() == 0.0, "a busy worker with nothing waiting is no stall"
    queue.add(B)
    await asyncio.sleep(200)
    assert queue.stalled_s() >= 200
