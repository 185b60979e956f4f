"""Notice, loss, silence and refusal: where the replacement starts, and when."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from spotinference.core.fleet import Standing, standing
from spotinference.core.observed import Market
from spotinference.core.plan import Doom, DoomReason
from spotinference.core.reconcile import decide
from tests.support.world import World, pool, tier, world


def serving(**changes: object) -> World:
    w = world(**changes)
    w.streams = 1
    w.run(60)
    assert w.replicas == {"spot-a/zone-1": 1}
    w.writes.clear()
    return w


@pytest.mark.fault(36)
def test_a_notice_moves_the_replica_in_one_plan() -> None:
    w = serving()
    w.notice(w.node_of("spot-a/zone-1"), 30)
    plan = w.step()
    assert [d.reason for d in plan.dooms] == [DoomReason.NOTICE]
    assert w.replicas == {"spot-a/zone-2": 1}
    assert w.condition("Interrupted") == ("True", "Notice")
    assert any(e.startswith("Notice: ") for e in w.events)


@pytest.mark.fault(37)
def test_a_lost_node_moves_the_replica_and_its_pod_object_is_deleted_at_once() -> None:
    w = serving()
    lost = next(iter(w.pods))
    w.reclaim(w.node_of("spot-a/zone-1"))
    plan = w.step()
    assert w.replicas == {"spot-a/zone-2": 1}
    assert [(d.name, d.grace_s) for d in plan.deletes] == [(lost, 0)]
    w.run(60)
    assert w.status.phase == "Ready"
    assert w.condition("Interrupted") == ("False", "Undisturbed")


def test_one_plan_is_enough_and_the_next_ones_change_nothing_more() -> None:
    w = serving()
    w.notice(w.node_of("spot-a/zone-1"), 30)
    w.run(20)
    scales = [x.what for x in w.writes if "Deployment" in x.what]
    assert scales == [
        "apply Deployment chat-spot-a-zone-1 0",
        "apply Deployment chat-spot-a-zone-2 1",
    ]


def test_a_pod_whose_notice_has_expired_is_struck_off() -> None:
    w = serving()
    node = w.node_of("spot-a/zone-1")
    w.notice(node, 10)
    w.step()
    stuck = next(p for p in w.pods.values() if p.node == node)
    w.nodes[node].silent = True  # its kubelet ends nothing any more
    w.run(8)
    assert stuck.name in w.pods
    w.run(4)
    assert stuck.name not in w.pods


@pytest.mark.fault(40)
def test_a_silent_node_is_replaced_elsewhere_but_its_replica_is_not_deleted() -> None:
    w = serving(scaling={"maxReplicas": 1})
    node = w.node_of("spot-a/zone-1")
    w.nodes[node].silent = True
    plan = w.step()
    assert [d.reason for d in plan.dooms] == [DoomReason.NODE_LOST]
    assert w.replicas == {"spot-a/zone-1": 1, "spot-a/zone-2": 1}
    assert all(p.deleting_until is None for p in w.pods.values())


@pytest.mark.fault(40)
def test_a_node_that_comes_back_keeps_its_replica_and_the_other_start_is_called_off() -> None:
    w = serving(scaling={"maxReplicas": 1})
    before = set(w.pods)
    node = w.nodes[w.node_of("spot-a/zone-1")]
    node.silent = True
    w.run(10)
    node.silent = False
    w.run(20)
    assert w.replicas == {"spot-a/zone-1": 1}
    assert set(w.pods) == before
    assert all(p.doomed_until is None for p in w.pods.values())
    assert w.condition("Interrupted") == ("False", "Undisturbed")


def test_a_node_that_stays_silent_gives_its_slot_back() -> None:
    w = serving(scaling={"maxReplicas": 1})
    w.nodes[w.node_of("spot-a/zone-1")].silent = True
    w.run(200)
    assert w.replicas == {"spot-a/zone-2": 1}


def test_a_refused_launch_moves_on_to_the_next_market() -> None:
    w = world()
    w.capacity = {m: 0 for m in _markets(w) if str(m) != "spot-b/zone-1"}
    w.demand(1)
    w.run(58)
    assert w.replicas == {"spot-a/zone-1": 1}
    w.run(4)
    assert w.replicas == {"spot-a/zone-2": 1}
    w.run(62)
    assert w.replicas == {"spot-b/zone-1": 1}
    w.run(60)
    assert w.status.phase == "Ready"


def test_a_replica_that_merely_waits_elsewhere_is_not_capacity_found() -> None:
    w = world()
    w.capacity = {m: 0 for m in _markets(w) if str(m) != "spot-b/zone-1"}
    w.demand(1)
    w.run(62)
    for _ in range(50):  # waiting in zone-2, not refused there yet
        w.step()
        assert w.condition("CapacityAvailable") == ("False", "NoCapacity")
    w.run(150)
    assert w.status.phase == "Ready"
    assert w.condition("CapacityAvailable") == ("True", "CapacityFound")


@pytest.mark.fault(38, 39)
def test_on_demand_bridges_when_every_spot_market_refuses() -> None:
    w = world(placement={"pools": ["spot-b", "steady"]})
    w.capacity = {m: 0 for m in _markets(w) if m.pool != "steady"}
    w.demand(1)
    w.run(65)
    assert w.replicas["steady/zone-1"] == 1
    w.run(60)
    assert w.status.phase == "Ready"


@pytest.mark.fault(39)
def test_on_demand_is_left_alone_when_burst_is_off() -> None:
    w = world(placement={"pools": ["spot-b", "steady"], "onDemand": {"burst": False}})
    w.capacity = dict.fromkeys(_markets(w), 0)
    w.demand(1)
    for _ in range(600):
        w.step()
        assert "steady/zone-1" not in w.replicas


@pytest.mark.fault(39)
def test_without_capacity_anywhere_the_tier_says_what_was_tried_and_probes_sparsely() -> None:
    w = world()
    w.capacity = dict.fromkeys(_markets(w), 0)
    w.demand(1)
    w.run(300)
    assert w.condition("CapacityAvailable") == ("False", "NoCapacity")
    message = w.message("CapacityAvailable")
    assert "spot-a/zone-1, spot-a/zone-2, spot-b/zone-1, spot-b/zone-2" in message
    assert "insufficient nvidia.com/gpu" in message
    w.writes.clear()
    w.run(1800)
    assert w.total == 1
    moves = [x for x in w.writes if "Deployment" in x.what]
    assert len(moves) <= 2 * 1800 / 60
    w.demand(0)
    w.run(60)
    assert w.replicas == {}
    assert w.nodes == {}


@pytest.mark.fault(39)
def test_capacity_that_returns_is_found_by_the_probes() -> None:
    w = world()
    w.capacity = dict.fromkeys(_markets(w), 0)
    w.demand(1)
    w.run(400)
    w.capacity = {}
    w.run(200)
    assert w.status.phase == "Ready"
    assert w.condition("CapacityAvailable") == ("True", "CapacityFound")


def test_the_only_market_is_used_again_after_its_node_is_lost() -> None:
    w = World(
        spec=tier(placement={"pools": ["spot-a"]}, scaling={"maxReplicas": 1}),
        pools={"spot-a": pool(("zone-1",))},
    )
    w.settle()
    w.streams = 1
    w.run(60)
    w.reclaim(next(iter(w.nodes)))
    w.run(70)
    assert w.status.phase == "Ready"


def test_the_only_market_starts_a_replacement_while_the_doomed_replica_drains() -> None:
    w = World(
        spec=tier(placement={"pools": ["spot-a"]}, scaling={"maxReplicas": 1}),
        pools={"spot-a": pool(("zone-1",))},
    )
    w.settle()
    w.streams = 1
    w.run(60)
    doomed = next(iter(w.pods))
    w.notice(next(iter(w.nodes)), 120)
    w.run(2)
    assert w.replicas == {"spot-a/zone-1": 1}
    assert any(p.name != doomed for p in w.pods.values())


@pytest.mark.fault(38)
def test_all_replicas_lost_at_once_are_all_replaced() -> None:
    w = world()
    w.streams = 20
    w.run(60)
    w.run(130)
    assert len(w.ready) == 3
    for node in list(w.nodes):
        w.reclaim(node)
    w.step()
    assert w.total == 3
    w.run(120)
    assert len(w.ready) == 3


def test_a_replacement_with_exclusive_volumes_does_not_wait_for_the_one_that_drains() -> None:
    """The volume of its zone stays on the node that goes until the last moment."""
    w = World(
        spec=tier(cache={"accessMode": "ReadWriteOnce"}),
        pools={"spot-a": pool(("zone-1",)), "spot-b": pool(("zone-1", "zone-2"))},
    )
    w.settle()
    w.streams = 1
    w.run(60)
    assert w.replicas == {"spot-a/zone-1": 1}
    w.notice(next(iter(w.nodes)), 120)
    w.pods[w.ready[0].name].running = 1
    w.carry_out(decide(w.observe()))
    assert w.replicas == {"spot-a/zone-1": 1, "spot-b/zone-2": 1}


@pytest.mark.fault(41)
def test_a_replacement_with_exclusive_volumes_starts_only_where_the_cache_is() -> None:
    w = serving(cache={"accessMode": "ReadWriteOnce"}, scaling={"maxReplicas": 1})
    w.reclaim(w.node_of("spot-a/zone-1"))
    w.step()
    assert w.replicas == {"spot-a/zone-2": 1}


def _markets(w: World) -> list[Market]:
    return [Market(name, zone) for name, body in w.pools.items() for zone in body.zones]


def test_an_evicted_pod_is_cleared_away_and_the_tier_falls_asleep_afterwards() -> None:
    w = serving()
    evicted = next(iter(w.pods))
    w.evict(evicted)
    w.run(120)
    assert len(w.ready) == w.total == 1
    w.streams = 0
    w.run(700)
    assert evicted not in w.pods
    assert w.status.phase == "Asleep"


def test_an_evicted_pod_does_not_fill_the_place_of_a_replica_that_finds_no_node() -> None:
    w = serving(placement={"pools": ["spot-a"]})
    w.capacity = {Market("spot-a", "zone-1"): 0, Market("spot-a", "zone-2"): 5}
    w.evict(next(iter(w.pods)))
    del w.nodes[w.node_of("spot-a/zone-1")]
    w.run(5)
    w.run(120)
    assert w.replicas == {"spot-a/zone-2": 1}
    assert w.status.phase == "Ready"


def test_a_scale_down_never_counts_on_an_evicted_pod_and_kills_a_busy_one() -> None:
    w = world(placement={"pools": ["steady"]})
    w.streams = 16
    w.run(200)
    assert w.replicas == {"steady/zone-1": 2}
    w.evict(w.ready[0].name)
    plan = w.step()
    assert not plan.scales
    assert w.total == 2


def test_a_hint_dooms_nothing_but_no_replica_is_placed_beside_it() -> None:
    w = serving(placement={"pools": ["spot-a"]}, cache={"accessMode": "ReadWriteMany"})
    w.nodes[w.node_of("spot-a/zone-1")].hinted = True
    w.run(60)
    assert [x.what for x in w.writes if x.what != "status"] == []
    assert w.condition("Interrupted") == ("False", "AtRisk")
    assert "event test" in w.message("Interrupted")
    w.streams = 24
    w.run(200)
    assert w.replicas == {"spot-a/zone-1": 1, "spot-a/zone-2": 2}


def test_with_a_hint_on_the_only_market_it_is_used_all_the_same() -> None:
    w = World(
        spec=tier(placement={"pools": ["spot-a"]}, cache={"accessMode": "ReadWriteMany"}),
        pools={"spot-a": pool(("zone-1",))},
    )
    w.settle()
    w.streams = 1
    w.run(60)
    next(iter(w.nodes.values())).hinted = True
    w.streams = 16
    w.run(90)
    assert w.replicas == {"spot-a/zone-1": 2}


def test_of_two_replicas_the_one_with_a_hint_goes_first() -> None:
    w = world()
    w.streams = 16
    w.run(120)
    kept = set(w.pods)
    older = min(w.pods.values(), key=lambda p: p.created_at)
    assert older.node is not None
    w.nodes[older.node].hinted = True
    w.streams = 1
    w.run(900)
    assert len(w.ready) == 1
    assert w.ready[0].name in kept - {older.name}


@pytest.mark.fault(36)
def test_a_replica_with_work_drains_as_long_as_its_notice_allows() -> None:
    w = serving(interruption={"drain": "20s"})  # told to go, it is gone after at most 30 s
    doomed = next(iter(w.pods))
    w.notice(w.node_of("spot-a/zone-1"), 120)
    w.step()
    assert w.replicas == {"spot-a/zone-1": 1, "spot-a/zone-2": 1}
    for _ in range(87):
        w.pods[doomed].running = 1  # the gateway leaves a long answer where it is
        plan = decide(w.observe())
        w.carry_out(plan)
        assert w.replicas["spot-a/zone-1"] == 1
        assert not plan.deletes
        w.now += timedelta(seconds=1)
    w.now += timedelta(seconds=3)
    w.carry_out(decide(w.observe()))
    assert w.replicas == {"spot-a/zone-2": 1}


@pytest.mark.fault(36)
@pytest.mark.parametrize("silent_before", [False, True])
def test_an_end_that_comes_nearer_is_told_and_one_that_goes_away_again_is_not(
    silent_before: bool,
) -> None:
    """A taint says that the node goes, a condition beside it says when; or it fell silent first."""
    w = serving(interruption={"drain": "10s"})
    doomed = w.pods[next(iter(w.pods))]
    node = w.nodes[w.node_of("spot-a/zone-1")]

    def marks_at(seconds: float) -> list[Doom]:
        node.notice_deadline = w.now + timedelta(seconds=seconds)
        doomed.running = 1
        plan = decide(w.observe())
        w.carry_out(plan)
        assert plan.dooms == () or doomed.doomed_until == node.notice_deadline
        return list(plan.dooms)

    if silent_before:
        node.silent = True
        w.step()
        assert doomed.doomed_reason == "node-lost"
    else:
        assert [d.reason for d in marks_at(120)] == [DoomReason.NOTICE]
    assert [d.reason for d in marks_at(40)] == [DoomReason.NOTICE]
    assert marks_at(40) == []
    assert marks_at(39.5) == []
    assert marks_at(120) == []
    assert w.status.losses is None
    assert [m.backoff_seconds for m in w.status.markets if m.refused_at is not None] == [60]


def test_a_doomed_replica_without_work_does_not_wait_for_its_deadline() -> None:
    w = serving()
    w.streams = 0
    w.step()
    w.notice(w.node_of("spot-a/zone-1"), 120)
    w.step()
    assert w.replicas == {"spot-a/zone-2": 1}


def test_the_only_market_drains_its_doomed_replica_beside_the_new_one() -> None:
    w = World(spec=tier(placement={"pools": ["spot-a"]}), pools={"spot-a": pool(("zone-1",))})
    w.settle()
    w.streams = 1
    w.run(60)
    doomed = next(iter(w.pods))
    w.notice(next(iter(w.nodes)), 120)
    w.pods[doomed].running = 1
    w.carry_out(decide(w.observe()))
    assert w.replicas == {"spot-a/zone-1": 2}
    assert w.pods[doomed].deleting_until is None


def test_a_replica_that_outlives_its_notice_on_a_living_node_is_ended_by_its_kubelet() -> None:
    w = serving()
    doomed = next(iter(w.pods))
    w.notice(w.node_of("spot-a/zone-1"), 10)
    w.now += timedelta(seconds=11)  # the provider is late, the node still there
    plan = decide(w.observe())
    assert [(d.name, d.grace_s) for d in plan.deletes] == [(doomed, None)]
    w.carry_out(plan)
    assert not decide(w.observe()).deletes
    w.nodes[w.node_of("spot-a/zone-1")].silent = True
    plan = decide(w.observe())
    assert [(d.name, d.grace_s) for d in plan.deletes] == [(doomed, 0)]


@pytest.mark.fault(41)
def test_a_volume_in_another_zone_is_said_at_once_and_another_market_is_tried() -> None:
    w = world()
    w.volume_elsewhere = {Market("spot-a", "zone-1")}
    w.demand(1)
    w.run(3)
    assert w.condition("CapacityAvailable") == ("False", "VolumeZoneMismatch")
    assert "volume node affinity conflict" in w.message("CapacityAvailable")
    assert any(e.startswith("VolumeZoneMismatch: ") for e in w.events)
    assert w.replicas == {"spot-a/zone-2": 1}
    w.run(90)
    assert w.status.phase == "Ready"
    assert w.condition("CapacityAvailable") == ("True", "CapacityFound")


@pytest.mark.fault(41)
def test_a_volume_that_no_market_can_mount_is_never_a_silent_wait() -> None:
    w = world()
    w.volume_elsewhere = set(_markets(w))
    w.demand(1)
    for _ in range(5):
        w.run(60)
        assert w.condition("CapacityAvailable") == ("False", "VolumeZoneMismatch")
    assert w.total == 1
    w.volume_elsewhere.clear()
    w.run(400)
    assert w.status.phase == "Ready"


@pytest.mark.fault(40)
def test_while_its_node_is_silent_nobody_else_is_given_the_volume() -> None:
    w = serving(
        placement={"pools": ["spot-a", "spot-b"]},
        cache={"accessMode": "ReadWriteOnce"},
        scaling={"maxReplicas": 2},
    )
    held = next(iter(w.pods))
    w.nodes[w.node_of("spot-a/zone-1")].silent = True
    w.demand(8)
    w.streams = 16
    for _ in range(175):  # until it is given up
        w.step()
        in_zone = [p for p in w.pods.values() if p.market.zone == "zone-1"]
        assert [p.name for p in in_zone] == [held], "two replicas for one volume"
        assert in_zone[0].deleting_until is None


@pytest.mark.fault(40)
def test_a_replica_of_a_silent_node_is_given_up_without_force() -> None:
    w = serving(scaling={"maxReplicas": 1})
    node = w.node_of("spot-a/zone-1")
    w.nodes[node].silent = True
    w.run(200)
    forced = [d for _, plan in w.plans for d in plan.deletes if d.grace_s == 0]
    assert not forced
    w.reclaim(node)
    lost = [p.name for p in w.pods.values() if p.node == node]
    plan = w.step()
    assert [d.name for d in plan.deletes if d.grace_s == 0] == lost


@pytest.mark.fault(41)
def test_a_volume_known_to_lie_elsewhere_is_refused_before_any_node_comes() -> None:
    w = world()
    w.capacity = dict.fromkeys(_markets(w), 0)
    w.demand(1)
    w.run(2)
    (waiting,) = w.observe().replicas
    far = replace(waiting, volume_zones=frozenset({"zone-9"}))
    near = replace(waiting, volume_zones=frozenset({waiting.market.zone, "zone-9"}))
    found = [standing(view, pool(), w.now) for view in (waiting, near, far)]
    assert found == [Standing.STARTING, Standing.STARTING, Standing.REFUSED]
