"""A replica moves to a market that has cost less for long enough: made before broken, one at a time."""

from __future__ import annotations

from datetime import timedelta

import pytest

from spotinference.api import parse, times
from spotinference.api.pool import PoolSpec, PriceSpec
from spotinference.api.tier_status import MoveStatus
from spotinference.core import regret
from spotinference.core.observed import Market
from tests.support.world import World, pool, world

MILLION = 1_000_000


def priced(dollars: float, base: PoolSpec | None = None) -> PoolSpec:
    price = PriceSpec.model_validate({"microUSDPerHour": round(dollars * MILLION)})
    return (base or pool()).model_copy(update={"price": price})


def settled(replicas: int = 1, a: float = 1.0, b: float = 1.0, **changes: object) -> World:
    """So many replicas in spot-a, which was there first; nothing is going on."""
    w = world(**{"scaling": {"maxReplicas": 6}, **changes})
    w.pools |= {"spot-a": priced(a), "spot-b": priced(b)}
    w.capacity = {Market("spot-b", zone): 0 for zone in ("zone-1", "zone-2")}
    w.edit(replicas=replicas)
    w.run(600, 5)
    w.capacity = {}
    never = {"refused_at": None, "backoff_seconds": 0}
    w.status = w.status.model_copy(
        update={"markets": [m.model_copy(update=never) for m in w.status.markets]}
    )
    assert len(w.ready) >= replicas
    assert all(m.startswith("spot-a/") for m in w.replicas)
    return w


def in_pool(w: World, name: str) -> int:
    return sum(n for m, n in w.replicas.items() if m.startswith(f"{name}/"))


def move_of(w: World) -> MoveStatus:
    assert w.status.move is not None
    return w.status.move


def test_a_replica_moves_once_staying_has_cost_what_the_move_costs() -> None:
    w = settled()
    w.pools["spot-b"] = priced(0.5)
    began = w.now
    while in_pool(w, "spot-b") == 0:
        w.step(5)
        assert w.now - began < timedelta(hours=2)
    both_s = 50 + 120 + 30  # the last wake, the proof, the drain
    waited_s = (w.now - began).total_seconds()
    assert waited_s == pytest.approx(both_s / 0.5, rel=0.1)
    assert move_of(w).origin == "spot-a/zone-1"
    assert move_of(w).target in {"spot-b/zone-1", "spot-b/zone-2"}


def test_the_new_replica_has_proven_itself_before_the_old_one_goes() -> None:
    w = settled(replicas=2)
    w.pools["spot-b"] = priced(0.5)
    for _ in range(2 * 720):
        w.step(5)
        assert len([p for p in w.ready if p.doomed_until is None]) >= 2
        assert w.total <= 3
        if in_pool(w, "spot-a") < 2 and w.total == 2:
            new = [p for p in w.ready if p.market.pool == "spot-b"]
            assert any(w.now - (p.ready_at or w.now) >= timedelta(seconds=120) for p in new)
    assert in_pool(w, "spot-b") == 2


@pytest.mark.fault(18)
@pytest.mark.parametrize("behind_s", [-7, 7, 50])
def test_a_move_comes_to_its_end_although_the_api_servers_clock_is_not_ours(behind_s: int) -> None:
    w = settled()
    w.api_behind_s = behind_s
    w.pools["spot-b"] = priced(0.5)
    launched = 0
    for _ in range(720):
        before = in_pool(w, "spot-b")
        w.step(5)
        launched += in_pool(w, "spot-b") > before
    assert launched == 1
    assert w.replicas == {move: 1 for move in w.replicas if move.startswith("spot-b/")}
    assert w.total == 1
    assert w.status.move is None


def test_after_the_move_there_is_nothing_left_to_do() -> None:
    w = settled(replicas=2)
    w.pools["spot-b"] = priced(0.5)
    w.run(2 * 3600, 5)
    assert in_pool(w, "spot-b") == 2
    assert w.status.move is None
    w.writes.clear()
    w.run(4 * 3600, 20)
    assert w.writes == []


def test_status_and_event_say_what_it_leaves_and_why() -> None:
    w = settled()
    w.pools["spot-b"] = priced(0.5)
    w.run(3600, 5)
    assert w.status.last_placement is not None
    assert w.status.last_placement.reason.startswith(
        "spot-b/zone-1: instead of spot-a/zone-1, which costs $0."
    )
    assert f"Placed: {w.status.last_placement.reason}" in w.events


def test_a_market_that_is_cheap_for_a_short_time_moves_nothing_and_is_forgotten() -> None:
    w = settled()
    w.pools["spot-b"] = priced(0.5)
    w.run(300, 5)
    assert move_of(w).micro_usd_per_hour > 0
    w.pools["spot-b"] = priced(1.5)
    w.run(1200, 5)
    assert in_pool(w, "spot-b") == 0
    assert w.status.move is None


def test_a_moment_in_which_the_prices_are_equal_does_not_make_it_begin_anew() -> None:
    w = settled()
    for _ in range(20):
        w.pools["spot-b"] = priced(0.5)
        w.run(290, 5)
        w.pools["spot-b"] = priced(1.0)
        w.run(10, 5)
    assert in_pool(w, "spot-b") == 1


def test_a_difference_that_changes_is_added_up_as_it_was() -> None:
    w = settled()
    w.pools["spot-b"] = priced(0.9)
    w.run(600, 5)
    before = regret.of(w.status.move)
    assert before is not None
    w.pools["spot-b"] = priced(0.4)
    w.run(5)
    after = regret.of(w.status.move)
    assert after is not None
    assert after.per_hour > 4 * before.per_hour
    assert after.overpaid == pytest.approx(before.overpaid_at(after.at), abs=2)


def test_a_replica_that_waits_for_a_node_costs_nothing_that_could_be_saved() -> None:
    w = settled(b=0.5)
    w.capacity = {Market("spot-a", zone): 1 for zone in ("zone-1", "zone-2")}
    w.pools |= {"spot-a": priced(0.5), "spot-b": priced(1.0)}
    w.capacity |= {Market("spot-b", zone): 0 for zone in ("zone-1", "zone-2")}
    w.edit(replicas=4)
    for _ in range(120):
        w.step(5)
        assert w.status.move is None


def test_nothing_moves_into_a_market_that_has_just_refused() -> None:
    w = settled()
    spot_b = [Market("spot-b", zone) for zone in ("zone-1", "zone-2")]
    w.capacity = dict.fromkeys(spot_b, 0)
    w.pools["spot-b"] = priced(0.2)
    tries = []
    for second in range(0, 4 * 3600, 5):
        before = in_pool(w, "spot-b")
        w.step(5)
        if in_pool(w, "spot-b") > before:
            tries.append(second)
        assert in_pool(w, "spot-a") == 1
        assert len(w.ready) == 1
    assert 2 <= len(tries) <= 8
    assert all(b - a > 3600 for a, b in zip(tries, tries[2:], strict=False)), "each once per hour"
    w.capacity = {}
    w.run(2 * 3600, 5)
    assert in_pool(w, "spot-b") == 1


def test_no_move_that_takes_the_tier_above_its_hourly_cost() -> None:
    for limit, moved in ((1_400_000, 0), (1_500_000, 1)):
        w = settled(placement={"pools": ["spot-a", "spot-b"], "maxHourlyCost": limit})
        w.pools["spot-b"] = priced(0.5)
        w.run(2 * 3600, 5)
        assert in_pool(w, "spot-b") == moved


def test_while_a_price_is_unknown_nothing_moves() -> None:
    w = settled()
    w.pools["spot-b"] = pool()
    w.run(3600, 5)
    assert in_pool(w, "spot-a") == 1
    assert w.status.move is None


def test_reserved_capacity_that_has_become_free_is_moved_to_whatever_its_price() -> None:
    w = settled(placement={"pools": ["spot-a", "ours"]})
    w.pools["ours"] = priced(3.0, pool(("zone-3",), "reserved"))
    w.run(3600, 5)
    assert w.replicas == {"ours/zone-3": 1}
    w.pools["spot-a"] = priced(0.01)
    w.run(3600, 5)
    assert w.replicas == {"ours/zone-3": 1}, "what is paid for is not left"


def test_the_base_on_demand_stays_and_nothing_moves_to_on_demand() -> None:
    w = settled(
        2,
        placement={"pools": ["spot-a", "spot-b", "steady"], "onDemand": {"base": 0}},
    )
    w.pools["steady"] = priced(0.01, pool(("zone-1",), "on-demand"))
    w.run(3600, 5)
    assert in_pool(w, "steady") == 0
    w.edit(placement={"pools": ["spot-a", "spot-b", "steady"], "onDemand": {"base": 1}})
    w.pools["steady"] = priced(3.0, pool(("zone-1",), "on-demand"))
    w.pools["spot-b"] = priced(0.5)
    w.run(3 * 3600, 5)
    assert w.replicas["steady/zone-1"] == 1
    assert in_pool(w, "spot-b") == 1


def test_at_max_replicas_one_more_starts_and_never_two() -> None:
    w = settled(replicas=3, scaling={"maxReplicas": 3})
    w.pools["spot-b"] = priced(0.4)
    for _ in range(3 * 720):
        w.step(5)
        assert w.total <= 4
        assert len(w.ready) >= 3
    assert in_pool(w, "spot-b") == 3


def test_a_replica_at_work_drains_before_it_goes() -> None:
    w = settled()
    w.streams = 4
    w.pools["spot-b"] = priced(0.4)
    while not any(p.doomed_until for p in w.pods.values()):
        w.step(5)
    leaving = next(p for p in w.pods.values() if p.doomed_until)
    assert leaving.market.pool == "spot-a"
    assert leaving.doomed_reason == "scale-down"
    assert [p.market.pool for p in w.ready if p.doomed_until is None] == ["spot-b"]
    w.run(300, 5)
    assert in_pool(w, "spot-a") == 0
    assert w.total == 1


def test_a_replica_lost_during_the_move_is_replaced_by_the_one_that_starts() -> None:
    w = settled()
    w.pools["spot-b"] = priced(0.4)
    while in_pool(w, "spot-b") == 0:
        w.step(5)
    w.reclaim(w.node_of("spot-a/zone-1"))
    for _ in range(120):
        w.step(5)
        assert w.total <= 1
    assert len(w.ready) == 1
    assert in_pool(w, "spot-b") == 1


def test_a_scale_up_during_the_move_takes_the_new_one_and_the_move_begins_anew() -> None:
    w = settled()
    w.pools["spot-b"] = priced(0.4)
    while in_pool(w, "spot-b") == 0:
        w.step(5)
    w.edit(replicas=2)
    w.run(60)
    assert w.total == 2
    w.run(3600, 5)
    assert in_pool(w, "spot-b") == 2


def test_a_new_replica_that_does_not_become_ready_is_given_up() -> None:
    w = settled()
    w.pools["spot-b"] = priced(0.4)
    while in_pool(w, "spot-b") == 0:
        w.step(5)
    w.load_s, began = 10_000, w.now
    while in_pool(w, "spot-b") == 1:
        w.step(5)
        assert [p.market.pool for p in w.ready] == ["spot-a"]
    assert w.now - began < timedelta(seconds=300)
    assert move_of(w).target is None


def test_the_new_replica_is_no_spare_and_a_spare_is_not_what_is_moved_for() -> None:
    w = settled(2, placement={"pools": ["spot-a", "spot-b"], "overprovision": 1})
    assert len(w.ready) == 3
    w.pools["spot-b"] = priced(0.3)
    events = len(w.events)
    for _ in range(360):
        w.step(5)
        assert 2 <= w.total <= 4
        assert len([p for p in w.ready if p.doomed_until is None]) >= 2
    assert in_pool(w, "spot-b") == w.total
    assert not any("a spare on" in event for event in w.events[events:]), "none is bought anew"


def test_a_large_tier_moves_one_after_the_other() -> None:
    w = settled(replicas=6)
    w.pools["spot-b"] = priced(0.4)
    for _ in range(5 * 720):
        w.step(5)
        assert w.total <= 7
    assert in_pool(w, "spot-b") == 6


def test_a_status_that_somebody_broke_is_no_move() -> None:
    move = {"at": "2026-11-01T12:00:00Z", "overpaidMicroUSD": 1, "microUSDPerHour": 1}
    assert regret.of(parse.parse_status({"status": {"move": move}}).move) is not None
    broken = {"status": {"move": move | {"at": "yesterday"}}}
    assert regret.of(parse.parse_status(broken).move) is None


def test_what_the_status_says_is_what_was_remembered() -> None:
    at = times.parse("2026-11-01T12:00:00Z")
    for value in (
        None,
        regret.Regret(at, 5, -7),
        regret.Regret(at, origin=Market("a", "z-1"), target=Market("b", "z-2")),
    ):
        assert regret.of(regret.written(value)) == value
