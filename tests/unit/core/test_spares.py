"""`placement.overprovision`: a spare where it is rough, none where it is calm, never without being asked."""

from __future__ import annotations

from datetime import timedelta

from spotinference.core.observed import Market
from tests.support.world import World, pool, world

ZONES = ("zone-1", "zone-2", "zone-3", "zone-4")


def tier_of(overprovision: int, replicas: int = 1, **scaling: object) -> World:
    w = world(
        placement={"pools": ["spot-a", "steady"], "overprovision": overprovision},
        scaling={"maxReplicas": 6, **scaling},
    )
    w.pools |= {"spot-a": pool(ZONES), "steady": pool(("zone-1",), "on-demand")}
    w.edit(replicas=replicas)
    return w


def calm_for(w: World, hours: float) -> None:
    """As if nothing had been taken back in any market for so long."""
    before = w.now - timedelta(hours=hours)
    text = before.strftime("%Y-%m-%dT%H:%M:%SZ")
    markets = [
        m.model_copy(update={"calm_since": text}) if m.calm_since else m for m in w.status.markets
    ]
    w.status = w.status.model_copy(update={"markets": markets})


def test_a_spare_is_kept_where_markets_are_fresh() -> None:
    w = tier_of(1)
    w.run(600)
    assert w.total == 2
    assert len(w.ready) == 2
    assert w.condition("Progressing")[1] == "Steady"
    assert w.status.last_placement is not None
    assert "a spare on spot" in w.status.last_placement.reason


def test_nobody_gets_a_spare_without_asking() -> None:
    w = tier_of(0)
    w.run(600)
    assert w.total == 1


def test_a_spare_goes_when_the_markets_have_been_calm_for_weeks_and_stays_gone() -> None:
    w = tier_of(1)
    w.run(600)
    calm_for(w, 1000)
    w.settle()
    assert w.total == 1
    w.writes.clear()
    w.run(900)
    assert w.writes == []


def test_a_spare_is_no_reason_to_write_in_steady_state() -> None:
    w = tier_of(2, replicas=2)
    w.settle()
    w.writes.clear()
    w.run(1200)
    assert w.writes == []
    assert 2 < w.total <= 4


def test_never_more_spares_than_asked_for_nor_replicas_than_allowed() -> None:
    w = tier_of(3, replicas=1, maxReplicas=2)
    for _ in range(600):
        w.step()
        assert w.total <= 2


def test_a_spare_is_never_on_demand() -> None:
    w = tier_of(2)
    w.capacity |= {Market("spot-a", zone): 1 if zone == "zone-1" else 0 for zone in ZONES}
    for _ in range(1200):
        w.step()
        assert "steady/zone-1" not in w.replicas


def test_when_a_replica_is_lost_the_spare_takes_its_place_and_another_is_started() -> None:
    w = tier_of(1)
    w.run(600)
    lost = next(iter(w.replicas))
    w.reclaim(w.node_of(lost))
    w.step()
    assert len(w.ready) == 1, "it serves on"
    w.run(600)
    assert len(w.ready) == 2
    assert lost not in w.replicas


def test_a_tier_that_sleeps_has_no_spare() -> None:
    w = world(placement={"pools": ["spot-a"], "overprovision": 2})
    w.demand(1)
    w.run(200)
    assert w.total in {2, 3}
    w.demand(0)
    w.run(3600)
    assert w.replicas == {}
    assert w.nodes == {}


def test_a_bridge_is_no_spare_and_goes_when_spot_has_proven_itself() -> None:
    w = tier_of(1, replicas=2)
    w.capacity |= dict.fromkeys((Market("spot-a", zone) for zone in ZONES), 0)
    w.run(600)
    assert w.replicas.get("steady/zone-1") == 2
    w.capacity |= dict.fromkeys((Market("spot-a", zone) for zone in ZONES), 3)
    w.run(2400)
    assert "steady/zone-1" not in w.replicas
    assert len(w.ready) == 3
