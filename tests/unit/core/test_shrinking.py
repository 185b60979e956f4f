"""A ReplicaSet chooses which pods go when its Deployment shrinks: never one that has work."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from spotinference.core.reconcile import decide
from tests.support.world import World, pool, tier


def crowd(replicas: int = 3) -> World:
    """So many busy replicas, all in one market."""
    w = World(
        spec=tier(placement={"pools": ["solo"]}, replicas=replicas),
        pools={"solo": pool(("zone-1",))},
    )
    w.settle()
    w.streams = 2 * replicas
    w.run(60)
    assert w.replicas == {"solo/zone-1": replicas}
    return w


def look_before_the_cluster_moves(w: World) -> None:
    w.now += timedelta(seconds=1)
    w.carry_out(decide(w.observe()))


def test_a_second_step_down_before_the_first_is_carried_out_drains_its_own_replica() -> None:
    w = crowd()
    w.edit(replicas=2)
    w.run(1)
    doomed = next(p for p in w.pods.values() if p.doomed_until)
    w.now = doomed.doomed_until or w.now
    look_before_the_cluster_moves(w)
    assert w.replicas == {"solo/zone-1": 2}, "drained"
    w.edit(replicas=1)
    look_before_the_cluster_moves(w)
    assert w.replicas == {"solo/zone-1": 2}, "the second one is busy, and has not drained"
    assert sum(p.doomed_until is not None for p in w.pods.values()) == 2
    w.run(1)
    assert sum(p.deleting_until is not None for p in w.pods.values()) == 1


def test_a_node_that_vanishes_takes_no_other_replica_of_its_market_along() -> None:
    w = crowd()
    lost = list(w.pods.values())[-1]  # its ReplicaSet would choose another
    others = {p.name for p in w.pods.values()} - {lost.name}
    w.pools["solo-2"] = pool(("zone-2",))
    w.edit(placement={"pools": ["solo", "solo-2"]})
    w.run(5)
    assert lost.node is not None
    w.reclaim(lost.node)
    w.now += timedelta(seconds=1)
    plan = decide(w.observe())
    w.carry_out(replace(plan, deletes=()))  # killed before it came to them
    assert w.replicas == {"solo/zone-1": 2, "solo-2/zone-2": 1}
    w._replica_sets()
    assert all(w.pods[name].deleting_until is None for name in others)


def test_a_busy_replica_drains_although_the_one_that_rolls_out_goes_first() -> None:
    w = crowd(1)
    busy = w.ready[0]
    w.edit(engine={"image": "vllm/vllm-openai:v9"})
    w.run(10)
    assert len(w.pods) == 2
    w.edit(replicas=0, paused=True)
    w.step()
    assert busy.doomed_until is not None
    assert busy.deleting_until is None
    assert w.replicas == {"solo/zone-1": 1}
