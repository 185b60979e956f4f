"""Leadership in virtual time, against a Lease kept in memory that behaves as the API server's."""

# ruff: noqa: ASYNC110  # polling costs nothing in virtual time
from __future__ import annotations

import asyncio
import copy
from datetime import timedelta

from spotinference import errors
from spotinference.api.kinds import Json, Kind
from spotinference.clients.leader import Elector, LeaseTimes
from tests.support.virtual_time import VirtualClock, virtual_time

TIMES = LeaseTimes()


class FakeLeases:
    """One Lease with optimistic concurrency; may be unreachable."""

    def __init__(self) -> None:
        self.lease: Json | None = None
        self.version = 0
        self.down = False
        self.writes: list[str] = []

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Json:
        self._reach()
        if self.lease is None:
            raise errors.NotFound(name)
        return copy.deepcopy(self.lease)

    async def create(self, kind: Kind, body: Json) -> Json:
        self._reach()
        if self.lease is not None:
            raise errors.Conflict("exists")
        return self._store(copy.deepcopy(body))

    async def merge_patch(self, kind: Kind, name: str, namespace: str | None, patch: Json) -> Json:
        self._reach()
        if self.lease is None:
            raise errors.NotFound(name)
        if patch["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise errors.Conflict("stale")
        merged = copy.deepcopy(self.lease)
        merged["spec"].update(patch["spec"])
        return self._store(merged)

    def _reach(self) -> None:
        if self.down:
            raise errors.ApiUnavailable("down")

    def _store(self, lease: Json) -> Json:
        self.version += 1
        lease["metadata"]["resourceVersion"] = str(self.version)
        self.lease = lease
        self.writes.append(lease["spec"]["holderIdentity"])
        return copy.deepcopy(lease)


def candidate(api: FakeLeases, clock: VirtualClock, name: str) -> Elector:
    return Elector(api, clock, namespace="system", name="leader", identity=name)


class Paused:
    """A clock and a sleep that stand still while the process is stopped (SIGSTOP)."""

    def __init__(self) -> None:
        self.until = 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        while (left := self.until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)


@virtual_time
async def test_one_of_two_candidates_leads_and_goes_on_leading(clock: VirtualClock) -> None:
    api = FakeLeases()
    one, two = candidate(api, clock, "one"), candidate(api, clock, "two")
    tasks = [asyncio.create_task(e.run()) for e in (one, two)]
    for _ in range(600):
        await asyncio.sleep(1)
        assert one.leads() != two.leads()
    assert len(set(api.writes)) == 1
    assert all(not task.done() for task in tasks)


@virtual_time
async def test_a_dead_leader_is_followed_within_one_lease_duration(clock: VirtualClock) -> None:
    api = FakeLeases()
    one, two = candidate(api, clock, "one"), candidate(api, clock, "two")
    first = asyncio.create_task(one.run())
    await asyncio.sleep(1)
    second = asyncio.create_task(two.run())
    await asyncio.sleep(30)
    assert one.leads()
    first.cancel()  # as by kill -9: nothing is released
    died_at = clock.monotonic()
    while not two.leads():
        await asyncio.sleep(0.1)
    assert clock.monotonic() - died_at <= TIMES.duration_s + 2 * TIMES.retry_every_s
    assert not one.leads()
    second.cancel()


@virtual_time
async def test_a_released_lease_is_taken_at_once(clock: VirtualClock) -> None:
    api = FakeLeases()
    one, two = candidate(api, clock, "one"), candidate(api, clock, "two")
    first = asyncio.create_task(one.run())
    await asyncio.sleep(1)
    second = asyncio.create_task(two.run())
    await asyncio.sleep(20)
    first.cancel()
    await one.release()
    assert not one.leads()
    await asyncio.sleep(TIMES.retry_every_s + 0.1)
    assert two.leads()
    second.cancel()


@virtual_time
async def test_a_stopped_leader_knows_on_waking_that_it_leads_no_more(clock: VirtualClock) -> None:
    api, paused = FakeLeases(), Paused()
    one = Elector(api, clock, namespace="system", name="leader", identity="one", sleep=paused.sleep)
    two = candidate(api, clock, "two")
    tasks = [asyncio.create_task(one.run())]
    await asyncio.sleep(1)
    tasks.append(asyncio.create_task(two.run()))
    await asyncio.sleep(10)
    assert one.leads()
    paused.until = clock.monotonic() + 60
    await asyncio.sleep(59)
    # What it asks before each write, in the first moment after SIGCONT:
    assert not one.leads()
    assert two.leads()
    await asyncio.sleep(60)
    assert not one.leads()
    assert two.leads()
    for task in tasks:
        task.cancel()


@virtual_time
async def test_leadership_never_overlaps_while_the_api_comes_and_goes(clock: VirtualClock) -> None:
    api = FakeLeases()
    electors = [candidate(api, clock, name) for name in ("one", "two", "three")]
    tasks = [asyncio.create_task(e.run()) for e in electors]
    for second in range(900):
        api.down = second % 97 > 60
        await asyncio.sleep(1)
        assert sum(e.leads() for e in electors) <= 1
    api.down = False
    await asyncio.sleep(30)
    assert sum(e.leads() for e in electors) == 1
    for task in tasks:
        task.cancel()


@virtual_time
async def test_a_leader_cut_off_from_the_api_stops_before_another_may_start(
    clock: VirtualClock,
) -> None:
    api = FakeLeases()
    one = candidate(api, clock, "one")
    task = asyncio.create_task(one.run())
    await asyncio.sleep(10)
    api.down = True
    cut_at = clock.monotonic()
    while one.leads():
        await asyncio.sleep(0.1)
    assert clock.monotonic() - cut_at < TIMES.duration_s - 4
    task.cancel()


@virtual_time
async def test_wall_clocks_an_hour_apart_change_nothing(clock: VirtualClock) -> None:
    api = FakeLeases()
    ahead = VirtualClock()
    ahead.skew = timedelta(hours=1)
    one, two = candidate(api, clock, "one"), candidate(api, ahead, "two")
    tasks = [asyncio.create_task(one.run())]
    await asyncio.sleep(1)
    tasks.append(asyncio.create_task(two.run()))
    for _ in range(120):
        await asyncio.sleep(1)
        assert one.leads()
        assert not two.leads()
    for task in tasks:
        task.cancel()


@virtual_time
async def test_a_lease_taken_by_force_is_given_up_not_taken_back(clock: VirtualClock) -> None:
    api = FakeLeases()
    one = candidate(api, clock, "one")
    task = asyncio.create_task(one.run())
    await asyncio.sleep(5)
    assert api.lease is not None
    await api.merge_patch(
        None,  # type: ignore[arg-type]  # the fake looks at neither
        "leader",
        "system",
        {
            "metadata": {"resourceVersion": api.lease["metadata"]["resourceVersion"]},
            "spec": {"holderIdentity": "thief"},
        },
    )
    await asyncio.sleep(TIMES.renew_every_s + 0.1)
    assert not one.leads()
    assert api.lease["spec"]["holderIdentity"] == "thief"
    task.cancel()


@virtual_time
async def test_two_processes_with_the_same_name_do_not_both_lead(clock: VirtualClock) -> None:
    api = FakeLeases()
    one, two = candidate(api, clock, "same"), candidate(api, clock, "same")
    tasks = [asyncio.create_task(e.run()) for e in (one, two)]
    for _ in range(60):
        await asyncio.sleep(1)
        assert one.leads() != two.leads()
    for task in tasks:
        task.cancel()


@virtual_time
async def test_changes_of_leadership_are_told_in_order(clock: VirtualClock) -> None:
    api = FakeLeases()
    one = candidate(api, clock, "one")
    told: list[bool] = []
    one.on_change = told.append
    task = asyncio.create_task(one.run())
    await asyncio.sleep(5)
    api.down = True
    await asyncio.sleep(30)
    api.down = False
    await asyncio.sleep(30)
    task.cancel()
    await one.release()
    assert told == [True, False, True, False]
