"""Node health by what we saw ourselves: renewals, absence, notices."""

from __future__ import annotations

import asyncio

import pytest

from spotinference.api.kinds import LEASE, NODE, POD, Json
from spotinference.api.pool import PoolSpec
from spotinference.controller.nodes import NODE_LEASES, UNSEEN_GRACE_S, signature
from spotinference.core.health import HOLD_S, LEASE_STALE_S, Contact
from spotinference.core.observed import NodeHealth
from tests.support.virtual_time import VirtualClock, virtual_time
from tests.unit.controller.objects import engine_pod, obj
from tests.unit.controller.world import Shell

POOL = PoolSpec(capacity_type="spot", provider="karpenter", zones=["zone-a"], notice_seconds=120)


def node(*, version: int = 1, taints: list[Json] | None = None, ready: str = "True") -> Json:
    return obj(
        NODE,
        "node-1",
        namespace=None,
        version=version,
        spec={"taints": taints or []},
        status={"conditions": [{"type": "Ready", "status": ready}]},
    )


def renew(it: Shell, clock: VirtualClock) -> None:
    body = obj(LEASE, "node-1", namespace=NODE_LEASES)
    body["spec"] = {"renewTime": str(clock.monotonic())}
    it.api.put(LEASE, body)


def running(clock: VirtualClock) -> tuple[Shell, asyncio.Task[None]]:
    it = Shell(clock)
    it.have(NODE, node())
    it.have(POD, engine_pod())
    renew(it, clock)
    return it, asyncio.create_task(it.nodes.run())


def health(it: Shell) -> NodeHealth:
    return it.nodes.view("node-1", POOL).health


@virtual_time
async def test_a_node_that_renews_is_healthy(clock: VirtualClock) -> None:
    it, _ = running(clock)
    for _ in range(30):
        renew(it, clock)
        await asyncio.sleep(10)
        assert health(it) is NodeHealth.HEALTHY
    assert it.changed_nodes == []


@virtual_time
async def test_three_missed_renewals_make_a_node_stale_and_one_renewal_mends_it(
    clock: VirtualClock,
) -> None:
    it, _ = running(clock)
    await asyncio.sleep(29)
    assert health(it) is NodeHealth.HEALTHY
    await asyncio.sleep(8)
    assert health(it) is NodeHealth.STALE
    assert it.changed_nodes == ["node-1"]
    renew(it, clock)
    await asyncio.sleep(5)
    assert health(it) is NodeHealth.HEALTHY
    assert it.changed_nodes == ["node-1", "node-1"]


@virtual_time
async def test_an_outage_of_the_api_server_is_not_taken_for_the_silence_of_all_nodes(
    clock: VirtualClock,
) -> None:
    it, _ = running(clock)
    await asyncio.sleep(10)
    it.api.down = True
    await asyncio.sleep(600)
    it.api.down = False
    await asyncio.sleep(6)
    assert health(it) is NodeHealth.HEALTHY
    renew(it, clock)
    await asyncio.sleep(20)
    assert health(it) is NodeHealth.HEALTHY


@virtual_time
async def test_a_node_whose_watch_lags_behind_its_pod_is_not_gone(clock: VirtualClock) -> None:
    it = Shell(clock)
    it.have(POD, engine_pod())
    assert health(it) is NodeHealth.HEALTHY
    await asyncio.sleep(UNSEEN_GRACE_S - 1)
    it.have(NODE, node())
    assert health(it) is NodeHealth.HEALTHY


@virtual_time
async def test_a_node_that_was_seen_and_is_deleted_is_gone_at_once(clock: VirtualClock) -> None:
    it = Shell(clock)
    live = it.have(NODE, node())
    assert health(it) is NodeHealth.HEALTHY
    it.store.gone(NODE, live)
    assert health(it) is NodeHealth.GONE


@virtual_time
async def test_a_node_never_seen_is_gone_after_a_grace(clock: VirtualClock) -> None:
    it = Shell(clock)
    health(it)
    await asyncio.sleep(UNSEEN_GRACE_S)
    assert health(it) is NodeHealth.GONE


@pytest.mark.fault(37)
@virtual_time
async def test_a_node_that_went_while_no_operator_ran_is_told_when_its_grace_is_over(
    clock: VirtualClock,
) -> None:
    it = Shell(clock)
    it.have(POD, engine_pod())
    task = asyncio.create_task(it.nodes.run())
    assert health(it) is NodeHealth.HEALTHY
    await asyncio.sleep(UNSEEN_GRACE_S + 3)
    assert it.changed_nodes == ["node-1"]
    assert health(it) is NodeHealth.GONE
    await asyncio.sleep(60)
    assert it.changed_nodes == ["node-1"]
    it.have(NODE, node())
    assert health(it) is NodeHealth.HEALTHY
    task.cancel()


@virtual_time
async def test_a_node_that_comes_back_under_its_name_is_healthy(clock: VirtualClock) -> None:
    it = Shell(clock)
    it.store.gone(NODE, it.have(NODE, node()))
    assert health(it) is NodeHealth.GONE
    it.have(NODE, node(version=9))
    assert health(it) is NodeHealth.HEALTHY


@virtual_time
async def test_the_deadline_of_a_notice_counts_from_when_it_was_first_seen(
    clock: VirtualClock,
) -> None:
    it = Shell(clock)
    taint = {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}
    it.have(NODE, node(taints=[taint]))
    first = it.nodes.view("node-1", POOL).notice
    await asyncio.sleep(60)
    again = it.nodes.view("node-1", POOL).notice
    assert first is not None
    assert again is not None
    assert (first.deadline - clock.now()).total_seconds() == 60
    assert again.deadline == first.deadline


@virtual_time
async def test_a_node_cordoned_a_second_time_is_not_struck_off_by_the_first_times_deadline(
    clock: VirtualClock,
) -> None:
    it = Shell(clock)
    taint = {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}
    it.have(NODE, node(taints=[taint]))
    assert it.nodes.view("node-1", POOL).notice is not None
    it.have(NODE, node(version=2))
    assert it.nodes.view("node-1", POOL).notice is None
    await asyncio.sleep(3600)
    it.have(NODE, node(version=3, taints=[taint]))
    notice = it.nodes.view("node-1", POOL).notice
    assert notice is not None
    assert (notice.deadline - clock.now()).total_seconds() == 120


@virtual_time
async def test_nothing_is_polled_while_no_engine_is_bound(clock: VirtualClock) -> None:
    it = Shell(clock)
    it.api.down = True
    task = asyncio.create_task(it.nodes.run())
    await asyncio.sleep(60)
    assert it.nodes.polls_failed == 0
    task.cancel()


def test_a_heartbeat_does_not_change_the_signature_of_a_node() -> None:
    before, after = node(), node(version=7)
    after["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-11-21T06:00:10Z"
    assert signature(before) == signature(after)
    assert signature(before) != signature(node(taints=[{"key": "x", "effect": "NoSchedule"}]))
    assert signature(before) != signature(node(ready="Unknown"))
    assert signature(before) != signature(None)


def crowd(clock: VirtualClock, count: int) -> Shell:
    """`count` nodes with a replica each; their kubelets renew when told to."""
    it = Shell(clock)
    for number in range(count):
        it.have(NODE, renamed(node(), number))
        it.have(POD, engine_pod(f"pod-{number}", node=f"node-{number}"))
    renew_all(it, clock, range(count))
    return it


def renamed(body: Json, number: int) -> Json:
    body["metadata"] |= {"name": f"node-{number}", "uid": f"uid-{number}"}
    return body


def renew_all(it: Shell, clock: VirtualClock, numbers: range) -> None:
    for number in numbers:
        lease = obj(LEASE, f"node-{number}", namespace=NODE_LEASES)
        it.api.put(LEASE, lease | {"spec": {"renewTime": str(clock.monotonic())}})


def healths(it: Shell, count: int) -> set[NodeHealth]:
    return {it.nodes.view(f"node-{number}", POOL).health for number in range(count)}


@pytest.mark.fault(40)
@virtual_time
async def test_many_nodes_silent_at_once_are_held_while_their_engines_answer(
    clock: VirtualClock,
) -> None:
    it = crowd(clock, 12)
    it.nodes.contact_of = lambda _: Contact(answered_ago_s=3)
    task = asyncio.create_task(it.nodes.run())
    await asyncio.sleep(40)
    assert len(it.nodes.silent) == len(it.nodes.held) == 12
    assert healths(it, 12) == {NodeHealth.HEALTHY}
    assert it.nodes.view("node-3", POOL).held
    renew_all(it, clock, range(12))
    await asyncio.sleep(5)
    assert it.nodes.held == it.nodes.silent == frozenset()
    task.cancel()


@pytest.mark.fault(40)
@virtual_time
async def test_when_a_hiccup_ends_node_by_node_none_is_lost_at_last(clock: VirtualClock) -> None:
    it = crowd(clock, 4)
    it.nodes.contact_of = lambda _: Contact(answered_ago_s=3)
    task = asyncio.create_task(it.nodes.run())
    await asyncio.sleep(40)
    for number in range(4):
        it.have(NODE, renamed(node(version=2, ready="Unknown"), number))
    for back in range(4):
        renew_all(it, clock, range(back + 1))
        await asyncio.sleep(5)
        assert healths(it, 4) == {NodeHealth.HEALTHY}
        it.have(NODE, renamed(node(version=3), back))
    await asyncio.sleep(5)
    assert it.nodes.held == frozenset()
    assert healths(it, 4) == {NodeHealth.HEALTHY}
    task.cancel()


@virtual_time
async def test_a_hold_ends_after_its_time_and_begins_anew_only_after_all_were_back(
    clock: VirtualClock,
) -> None:
    it = crowd(clock, 12)
    it.nodes.contact_of = lambda _: Contact(answered_ago_s=3)
    task = asyncio.create_task(it.nodes.run())
    await asyncio.sleep(LEASE_STALE_S + HOLD_S + 10)
    assert it.nodes.held == frozenset()
    assert healths(it, 12) == {NodeHealth.STALE}
    await asyncio.sleep(HOLD_S)
    assert it.nodes.held == frozenset()
    renew_all(it, clock, range(12))
    await asyncio.sleep(LEASE_STALE_S + 10)
    assert len(it.nodes.held) == 12
    task.cancel()


@pytest.mark.fault(40)
@virtual_time
async def test_a_node_that_stays_dead_after_a_hiccup_leaves_the_others_their_next_hold(
    clock: VirtualClock,
) -> None:
    it = crowd(clock, 4)
    fine, dead = Contact(answered_ago_s=3), Contact(answered_ago_s=90, failing_s=60)
    it.nodes.contact_of = lambda name: dead if name == "node-3" else fine
    task = asyncio.create_task(it.nodes.run())
    await asyncio.sleep(40)
    assert it.nodes.held == {"node-0", "node-1", "node-2"}
    renew_all(it, clock, range(3))
    for _ in range(60):
        await asyncio.sleep(10)
        renew_all(it, clock, range(3))
    assert it.nodes.silent == {"node-3"}
    await asyncio.sleep(40)
    assert it.nodes.held == {"node-0", "node-1", "node-2"}
    assert health(it) is NodeHealth.HEALTHY
    task.cancel()


@virtual_time
async def test_nodes_whose_engines_do_not_answer_are_lost_sooner_and_never_held(
    clock: VirtualClock,
) -> None:
    it = crowd(clock, 12)
    it.nodes.contact_of = lambda _: Contact(answered_ago_s=60, failing_s=20)
    task = asyncio.create_task(it.nodes.run())
    await asyncio.sleep(18)
    assert healths(it, 12) == {NodeHealth.HEALTHY}
    await asyncio.sleep(8)
    assert healths(it, 12) == {NodeHealth.STALE}
    assert set(it.changed_nodes) == {f"node-{number}" for number in range(12)}
    task.cancel()
