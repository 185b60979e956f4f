"""An edit takes markets away, of a tier or of a pool: what runs there is relieved first, and drains."""

from __future__ import annotations

from tests.support.world import World, pool, tier


def in_old_pool(**changes: object) -> World:
    w = World(
        spec=tier(placement={"pools": ["old"]}, **changes),
        pools={"old": pool(("zone-1",)), "new": pool(("zone-1", "zone-2"))},
    )
    w.settle()
    w.streams = 4
    w.run(90)
    w.writes.clear()
    return w


def test_a_tier_that_names_another_pool_is_served_all_the_while() -> None:
    w = in_old_pool()
    assert w.replicas == {"old/zone-1": 1}
    w.edit(placement={"pools": ["new"]})
    w.step()
    assert w.replicas == {"new/zone-1": 1, "old/zone-1": 1}, "the new one is asked for at once"
    for _ in range(200):
        w.step()
        assert w.ready, "the old one goes when the new one is ready"
        assert w.status.phase == "Ready"
    assert w.replicas == {"new/zone-1": 1}
    assert ("Deployment", "chat-old-zone-1") not in w.children
    w.settle()


def test_a_busy_replica_of_a_zone_that_its_pool_lost_drains() -> None:
    w = in_old_pool()
    busy = w.ready[0]
    w.pools["old"] = pool(("zone-2",))
    while busy.doomed_until is None:
        assert busy.deleting_until is None
        w.step()
    assert w.replicas == {"old/zone-1": 1, "old/zone-2": 1}
    assert busy.deleting_until is None
    w.run(20)
    assert w.replicas == {"old/zone-2": 1}
    assert busy.name not in w.pods


def test_a_tier_that_idles_in_a_market_it_lost_sleeps_as_ever_and_wakes_elsewhere() -> None:
    w = in_old_pool()
    w.streams = 0
    w.edit(placement={"pools": ["new"]}, paused=True)
    w.settle()
    assert w.replicas == {}
    assert ("Deployment", "chat-old-zone-1") not in w.children
    w.edit(paused=False)
    w.demand(1)
    w.run(60)
    assert w.replicas == {"new/zone-1": 1}


def test_with_the_pool_named_again_the_replica_stays_and_nothing_is_left_over() -> None:
    w = in_old_pool()
    before = set(w.pods)
    w.edit(placement={"pools": ["new"]})
    w.run(5)
    w.edit(placement={"pools": ["old"]})
    w.settle()
    assert w.replicas == {"old/zone-1": 1}
    assert set(w.pods) == before
    assert all(p.doomed_until is None for p in w.pods.values())


def test_many_are_relieved_no_faster_than_the_limit_leaves_room() -> None:
    w = in_old_pool(replicas=3)
    assert w.replicas == {"old/zone-1": 3}
    w.edit(placement={"pools": ["new"]})
    for _ in range(900):
        w.step()
        assert len(w.ready) >= 3
        undoomed = [p for p in w.pods.values() if not p.doomed_until and not p.deleting_until]
        assert len(undoomed) <= 4
    assert sum(n for m, n in w.replicas.items() if m.startswith("new/")) == w.total == 3


def test_with_a_volume_for_one_node_the_old_replica_makes_room_first() -> None:
    w = in_old_pool(cache={"accessMode": "ReadWriteOnce"}, interruption={"drain": "30s"})
    assert w.replicas == {"old/zone-1": 1}
    w.pools["new"] = pool(("zone-1",))
    w.edit(placement={"pools": ["new"]})
    for _ in range(300):
        w.step()
        assert w.total <= 1
    assert w.replicas == {"new/zone-1": 1}
    assert w.status.phase == "Ready"


def test_with_a_volume_for_one_node_the_old_replica_serves_while_no_pool_is_left() -> None:
    w = in_old_pool(cache={"accessMode": "ReadWriteOnce"})
    w.edit(placement={"pools": ["misspelt"]})
    for _ in range(300):
        w.step()
        assert w.condition("Ready") == ("True", "Serving")
        assert w.ready[0].doomed_until is None
    assert w.condition("Degraded") == ("True", "PoolNotFound")
    w.settle()


def test_with_a_volume_for_one_node_no_room_is_made_where_nothing_may_start() -> None:
    w = in_old_pool(cache={"accessMode": "ReadWriteOnce"})
    w.pools["new"] = pool(("zone-1",), cordoned=True)
    w.edit(placement={"pools": ["new"]})
    w.run(300)
    assert w.replicas == {"old/zone-1": 1}
    assert w.ready[0].doomed_until is None
    w.pools["new"] = pool(("zone-1",))
    w.run(300)
    assert w.replicas == {"new/zone-1": 1}


def test_an_idle_replica_that_misses_a_probe_stays_until_it_is_relieved_too() -> None:
    w = in_old_pool()
    w.streams = 0
    w.run(10)
    old = w.ready[0]
    w.edit(placement={"pools": ["new"]})
    w.step()
    old.ready_at, old.misses_probes, old.unready_since = None, True, w.now
    w.run(5)
    assert w.replicas == {"new/zone-1": 1, "old/zone-1": 1}
    old.misses_probes = False
    w.run(2)
    assert w.ready == [old]
    w.run(120)
    assert w.replicas == {"new/zone-1": 1}
