"""Demand counts by our own observation, whatever clocks say."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from spotinference.api import demand
from spotinference.api.kinds import LEASE, Json
from spotinference.controller.demand import DemandBook
from spotinference.controller.store import Store
from tests.support.virtual_time import VirtualClock, virtual_time
from tests.unit.controller.objects import REF, TIER_UID


def lease(clock: VirtualClock, *, version: int = 1, age_s: float = 0, gateway: str = "gw") -> Json:
    renewed_at = clock.now() - timedelta(seconds=age_s)
    body = demand.lease(
        namespace=REF.namespace,
        tier=REF.name,
        tier_uid=TIER_UID,
        demand=demand.Demand(gateway, 3, renewed_at),
        renewed_at=renewed_at,
    )
    body["metadata"] |= {"uid": f"{gateway}-uid", "resourceVersion": str(version)}
    return body


def book(clock: VirtualClock) -> tuple[Store, DemandBook]:
    store = Store(clock)
    return store, DemandBook(store, clock)


@virtual_time
async def test_demand_counts_while_its_lease_changes_and_ends_when_it_does_not(
    clock: VirtualClock,
) -> None:
    store, it = book(clock)
    for version in range(1, 7):
        store.put(LEASE, lease(clock, version=version))
        demands, ends_s = it.fresh(REF)
        assert [d.parked for d in demands] == [3]
        assert ends_s == demand.LEASE_DURATION_S
        await asyncio.sleep(demand.RENEW_S)
    await asyncio.sleep(demand.LEASE_DURATION_S - demand.RENEW_S - 1)
    assert it.fresh(REF)[0]
    await asyncio.sleep(2)
    assert it.fresh(REF) == ((), None)


@virtual_time
async def test_repetitions_of_the_watch_do_not_prolong_demand(clock: VirtualClock) -> None:
    store, it = book(clock)
    body = lease(clock)
    store.put(LEASE, body)
    for _ in range(4):
        it.saw(body)
        await asyncio.sleep(10)
    assert it.fresh(REF) == ((), None)


@virtual_time
async def test_a_gateway_whose_clock_is_four_minutes_off_is_heard(clock: VirtualClock) -> None:
    for skew_s in (240, -240):
        store, it = book(clock)
        store.put(LEASE, lease(clock, age_s=skew_s))
        assert it.fresh(REF)[0]


@virtual_time
async def test_what_a_dead_gateway_left_behind_wakes_nothing_when_the_operator_starts(
    clock: VirtualClock,
) -> None:
    store, it = book(clock)
    store.put(LEASE, lease(clock, age_s=3600))
    assert it.fresh(REF) == ((), None)
    store.put(LEASE, lease(clock, version=2, age_s=3600))
    assert it.fresh(REF)[0], "it lives after all, with a wrong clock"


@virtual_time
async def test_a_jump_of_our_wall_clock_ends_no_demand(clock: VirtualClock) -> None:
    store, it = book(clock)
    store.put(LEASE, lease(clock))
    assert it.fresh(REF)[0]
    clock.skew = timedelta(hours=1)
    assert it.fresh(REF)[0]


@virtual_time
async def test_a_damaged_lease_is_no_demand(clock: VirtualClock) -> None:
    store, it = book(clock)
    body = lease(clock)
    del body["spec"]["holderIdentity"]
    store.put(LEASE, body)
    assert it.fresh(REF)[0] == ()


@virtual_time
async def test_demand_of_two_gateways_ends_one_by_one(clock: VirtualClock) -> None:
    store, it = book(clock)
    store.put(LEASE, lease(clock, gateway="a"))
    assert len(it.fresh(REF)[0]) == 1
    await asyncio.sleep(20)
    store.put(LEASE, lease(clock, gateway="b"))
    demands, ends_s = it.fresh(REF)
    assert {d.gateway_id for d in demands} == {"a", "b"}
    assert ends_s == 10
    await asyncio.sleep(11)
    assert [d.gateway_id for d in it.fresh(REF)[0]] == ["b"]
