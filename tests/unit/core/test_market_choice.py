"""Which market takes the next replica: paid for, cheap, calm, apart; on-demand only while it must."""

from __future__ import annotations

from datetime import timedelta

from spotinference.api import times
from spotinference.api.pool import PoolSpec, PriceSpec
from spotinference.api.tier_status import MarketStatus
from spotinference.core.observed import Market
from tests.support.world import World, pool, tier, world


def priced(micro_usd: int, base: PoolSpec) -> PoolSpec:
    price = PriceSpec.model_validate({"microUSDPerHour": micro_usd})
    return base.model_copy(update={"price": price})


def asked_for(w: World, replicas: int) -> World:
    """A tier that is to have so many replicas, whatever its load."""
    w.edit(replicas=replicas)
    return w


def market(w: World, name: str) -> MarketStatus:
    return next(m for m in w.status.markets if f"{m.pool}/{m.zone}" == name)


def test_the_cheaper_pool_is_taken_although_it_is_named_last() -> None:
    w = world()
    w.pools |= {"spot-a": priced(900_000, pool()), "spot-b": priced(300_000, pool())}
    asked_for(w, 1).run(60)
    assert w.replicas == {"spot-b/zone-1": 1}


def test_while_a_price_is_unknown_the_order_of_the_tier_decides() -> None:
    w = world()
    w.pools["spot-b"] = priced(1, pool())
    asked_for(w, 1).run(60)
    assert w.replicas == {"spot-a/zone-1": 1}


def test_reserved_capacity_is_filled_first_because_it_is_paid_for() -> None:
    w = world(placement={"pools": ["spot-a", "ours"]})
    w.pools["ours"] = pool(("zone-1",), "reserved")
    w.capacity[Market("ours", "zone-1")] = 2
    asked_for(w, 3).run(400)
    assert w.replicas["ours/zone-1"] == 2
    assert sum(n for m, n in w.replicas.items() if m.startswith("spot-a")) == 1


def test_a_market_that_took_a_node_is_avoided_for_a_newly_added_replica() -> None:
    w = world()
    asked_for(w, 1).run(120)
    w.reclaim(w.node_of("spot-a/zone-1"))
    asked_for(w, 2).run(60)
    assert "spot-a/zone-1" not in w.replicas
    assert market(w, "spot-a/zone-1").backoff_seconds == 60


def test_each_refusal_doubles_the_pause_and_an_accepted_launch_forgets_it() -> None:
    w = world(placement={"pools": ["spot-a"]})
    w.capacity = dict.fromkeys((Market("spot-a", "zone-1"), Market("spot-a", "zone-2")), 0)
    asked_for(w, 1)
    pauses: list[int] = []
    for _ in range(4000):
        w.step()
        pause = market(w, "spot-a/zone-1").backoff_seconds
        if not pauses or pauses[-1] != pause:
            pauses.append(pause)
    assert pauses[:6] == [0, 60, 120, 240, 480, 900]
    w.capacity = {}
    w.run(400)
    assert w.status.phase == "Ready"
    stands = next(iter(w.replicas))
    assert market(w, stands).backoff_seconds == 0
    assert market(w, stands).refused_at is None


def test_two_reclaims_of_one_market_in_one_moment_double_the_pause_once() -> None:
    w = world(placement={"pools": ["spot-a"]})
    w.pools["spot-a"] = pool(("zone-1",))
    asked_for(w, 2).run(120)
    assert w.replicas == {"spot-a/zone-1": 2}
    nodes = [n.name for n in w.nodes.values()]
    w.reclaim(nodes[0])
    w.run(5)
    w.reclaim(nodes[1])
    w.run(5)
    assert market(w, "spot-a/zone-1").backoff_seconds == 60


def test_from_on_demand_back_to_spot_once_spot_is_proven_and_never_below_the_wanted() -> None:
    w = world(placement={"pools": ["spot-a", "steady"]})
    spot = [Market("spot-a", z) for z in ("zone-1", "zone-2")]
    w.capacity = dict.fromkeys(spot, 0)
    asked_for(w, 1).run(400)
    assert w.replicas.get("steady/zone-1") == 1
    w.capacity = {}
    for _ in range(2400):
        w.step()
        assert len(w.ready) >= 1
        assert w.total <= 2
    assert list(w.replicas.values()) == [1]
    assert "steady/zone-1" not in w.replicas
    w.settle()


def bridged(replicas: int, **scaling: int) -> World:
    """So many replicas on on-demand, because both spot markets were sold out; now they are not."""
    w = world(placement={"pools": ["spot-a", "steady"]}, scaling={"maxReplicas": 6, **scaling})
    spot = [Market("spot-a", z) for z in ("zone-1", "zone-2")]
    w.capacity = dict.fromkeys(spot, 0)
    asked_for(w, replicas).run(400)
    assert w.replicas["steady/zone-1"] == replicas
    w.capacity = {}
    return w


def test_bridges_are_relieved_all_at_once_as_far_as_max_replicas_leaves_room() -> None:
    w = bridged(3)
    most = 0
    for _ in range(1300):
        w.step()
        most = max(most, w.total)
        assert len(w.ready) >= 3
    assert most > 4, "more than one at a time"
    assert "steady/zone-1" not in w.replicas
    assert w.total == 3
    w.settle()


def test_at_max_replicas_one_more_starts_to_relieve_a_bridge_and_never_two() -> None:
    w = bridged(2, maxReplicas=2)
    for _ in range(3600):
        w.step()
        assert len(w.ready) >= 2
        assert w.total <= 2 + ("steady/zone-1" in w.replicas)
    assert "steady/zone-1" not in w.replicas
    assert w.total == 2


def test_a_replica_that_spot_refused_once_is_bridged_and_spot_is_tried_beside_it() -> None:
    w = world(placement={"pools": ["spot-a", "spot-b", "steady"]})
    spot = [Market(p, z) for p in ("spot-a", "spot-b") for z in ("zone-1", "zone-2")]
    w.capacity = dict.fromkeys(spot, 0)
    asked_for(w, 1).run(65)
    assert w.replicas["steady/zone-1"] == 1, "three spot markets have yet to be tried"
    tried: list[str] = []
    for _ in range(400):
        w.step()
        assert w.replicas["steady/zone-1"] == 1
        tried += [m for m in w.replicas if m not in {"steady/zone-1", *tried[-1:]}]
    assert set(tried[:4]) == {str(m) for m in spot}, "none is tried again before the others"
    assert tried[4:7] == tried[:3], "the one that refused longest ago comes first"


def test_nobody_waits_at_a_market_that_refused_the_last_launch() -> None:
    w = world(placement={"pools": ["spot-a", "steady"]})
    refused = times.to_text(w.now - timedelta(seconds=600))
    known = [
        MarketStatus(
            pool="spot-a",
            zone=zone,
            refused_at=refused,
            backoff_seconds=60,
            calm_since=refused,
            watched_until=refused,
        )
        for zone in ("zone-1", "zone-2")
    ]
    w.status = w.status.model_copy(update={"markets": known})
    asked_for(w, 1).run(30)
    assert w.replicas["steady/zone-1"] == 1, "although the pauses are over"
    assert w.total == 2, "spot is tried beside it"


def test_a_scale_down_takes_a_bridge_before_the_spot_replica_that_starts_to_relieve_it() -> None:
    w = bridged(2)
    while not any(p.node and not p.ready_at for p in w.pods.values()):
        w.step()
    asked_for(w, 1).step()
    starting = [str(p.market) for p in w.pods.values() if not p.ready_at and p.node]
    assert all(market.startswith("spot-a") for market in starting)
    assert starting
    assert w.replicas["steady/zone-1"] == 1


def test_without_burst_only_the_base_stands_on_demand_although_spot_refuses() -> None:
    w = world(placement={"pools": ["spot-a", "steady"], "onDemand": {"base": 1, "burst": False}})
    w.capacity = dict.fromkeys([Market("spot-a", z) for z in ("zone-1", "zone-2")], 0)
    asked_for(w, 2)
    for _ in range(900):
        w.step()
        assert w.replicas.get("steady/zone-1", 0) <= 1


def test_a_base_on_demand_stands_there_and_is_not_moved_to_spot() -> None:
    w = world(placement={"pools": ["spot-a", "steady"], "onDemand": {"base": 1, "burst": False}})
    asked_for(w, 2).run(120)
    assert w.replicas["steady/zone-1"] == 1
    w.run(900)
    assert w.replicas["steady/zone-1"] == 1
    assert w.total == 2
    asked_for(w, 1).run(600)
    assert w.replicas == {"steady/zone-1": 1}


def test_a_base_asked_for_later_is_filled_before_a_spot_replica_goes() -> None:
    w = world(placement={"pools": ["spot-a", "steady"]})
    asked_for(w, 1).run(300)
    assert w.replicas == {"spot-a/zone-1": 1}
    w.edit(placement={"pools": ["spot-a", "steady"], "onDemand": {"base": 1}})
    for _ in range(600):
        w.step()
        assert len(w.ready) >= 1
        assert w.total <= 2
    assert w.replicas == {"steady/zone-1": 1}
    w.settle()


def test_what_is_believed_survives_in_the_status_and_is_not_written_by_time_passing() -> None:
    w = world()
    asked_for(w, 2).settle()
    since = market(w, "spot-a/zone-1").calm_since
    assert since is not None
    assert times.parse(since) < w.now
    w.writes.clear()
    w.run(3600, step_s=5)
    assert w.writes == []
    assert market(w, "spot-a/zone-1").calm_since == since


def test_a_market_that_has_been_calm_is_preferred_to_one_that_was_just_reclaimed() -> None:
    w = world()
    calm = times.to_text(w.now - timedelta(days=5))
    rough = times.to_text(w.now - timedelta(seconds=400))
    w.status = w.status.model_copy(
        update={
            "markets": [
                MarketStatus(pool="spot-a", zone="zone-1", calm_since=rough, watched_until=rough),
                MarketStatus(
                    pool="spot-b",
                    zone="zone-2",
                    calm_since=calm,
                    watched_until=times.to_text(w.now),
                ),
            ]
        }
    )
    asked_for(w, 1).run(60)
    assert w.replicas == {"spot-b/zone-2": 1}


def test_the_default_tier_keeps_no_spare() -> None:
    w = world()
    assert tier().placement.on_demand.base == 0
    asked_for(w, 1).run(600)
    assert w.total == 1


def test_status_and_event_say_where_a_replica_goes_and_why_there() -> None:
    w = world(placement={"pools": ["spot-a", "steady"]})
    w.pools["spot-a"] = priced(350_000, pool(("zone-1",)))
    asked_for(w, 1).run(120)
    placed = w.status.last_placement
    assert placed is not None
    assert placed.reason == "spot-a/zone-1: spot at $0.35 per hour, not tried before"
    assert f"Placed: {placed.reason}" in w.events
    w.capacity = {Market("spot-a", "zone-1"): 0}
    w.reclaim(w.node_of("spot-a/zone-1"))
    w.run(120)
    assert w.status.last_placement is not None
    assert w.status.last_placement.reason == (
        "steady/zone-1: on-demand, as a bridge until spot stands"
    )


def test_a_tier_that_nothing_takes_is_not_explained_again_and_again() -> None:
    w = world(placement={"pools": ["spot-a"]})
    w.capacity = dict.fromkeys([Market("spot-a", z) for z in ("zone-1", "zone-2")], 0)
    asked_for(w, 1).run(1800)
    assert len([e for e in w.events if e.startswith("Placed: ")]) == 2, "once per market"


def test_what_is_believed_of_a_market_outlives_its_pool_and_is_not_written_at_each_look() -> None:
    w = asked_for(world(), 1)
    w.run(600, 5)
    assert w.replicas == {"spot-a/zone-1": 1}
    before = market(w, "spot-a/zone-1")
    gone = w.pools.pop("spot-a")
    w.run(60)
    w.writes.clear()
    w.run(300)
    assert w.writes == []
    assert market(w, "spot-a/zone-1").calm_since == before.calm_since
    w.pools["spot-a"] = gone
    w.run(60)
    assert market(w, "spot-a/zone-1").calm_since == before.calm_since
