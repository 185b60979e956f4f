"""`placement.maxHourlyCost`: no launch takes the tier above it, and the tier says so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference import errors
from spotinference.api import parse
from spotinference.api.pool import PoolSpec, PriceSpec
from spotinference.core.observed import Market
from tests.support.world import World, pool, tier, world

MILLION = 1_000_000


def priced(micro_usd: int, base: PoolSpec) -> PoolSpec:
    price = PriceSpec.model_validate({"microUSDPerHour": micro_usd})
    return base.model_copy(update={"price": price})


def limited(micro_usd: int, **placement: object) -> World:
    """Spot at $1 in two zones, on-demand at $3."""
    names = ["spot-a", "steady"]
    w = world(
        placement={"pools": names, "maxHourlyCost": micro_usd, **placement},
        scaling={"maxReplicas": 6},
    )
    w.pools |= {
        "spot-a": priced(MILLION, pool()),
        "steady": priced(3 * MILLION, pool(("zone-1",), "on-demand")),
    }
    return w


def cost(w: World) -> float:
    prices = {"spot-a": 1.0, "steady": 3.0}
    return sum(n * prices[m.split("/")[0]] for m, n in w.replicas.items())


def without_spot(w: World) -> None:
    w.capacity |= dict.fromkeys((Market("spot-a", "zone-1"), Market("spot-a", "zone-2")), 0)


def test_as_many_replicas_as_the_limit_pays_for_and_the_condition_says_why_not_more() -> None:
    w = limited(2 * MILLION + 999_999)
    w.edit(replicas=4)
    w.run(300)
    assert cost(w) == 2
    assert w.status.phase == "Ready"
    assert w.condition("CapacityAvailable") == ("False", "MaxHourlyCost")
    assert "$2.999999 per hour" in w.message("CapacityAvailable")
    assert "spot-a/zone-1 at $1" in w.message("CapacityAvailable")
    assert any("MaxHourlyCost" in event for event in w.events)


def test_what_stands_in_a_market_that_the_tier_names_no_more_counts_until_it_is_gone() -> None:
    w = limited(3 * MILLION)
    w.pools["old"] = priced(2 * MILLION, pool())
    w.edit(placement={"pools": ["old"], "maxHourlyCost": 3 * MILLION}, replicas=1)
    w.settle()
    assert sum(w.replicas.values()) == 1
    w.edit(placement={"pools": ["steady"], "maxHourlyCost": 3 * MILLION})
    w.run(600)
    assert set(w.replicas) <= {"old/zone-1", "old/zone-2"}, "both would cost $5"
    assert len(w.ready) == 1
    assert "maxHourlyCost" in w.message("Progressing")
    w.settle()
    w.edit(placement={"pools": ["spot-a"], "maxHourlyCost": 3 * MILLION})
    w.run(300)
    assert {m.split("/")[0] for m in w.replicas} == {"spot-a"}


def test_what_costs_exactly_the_limit_is_launched() -> None:
    w = limited(2 * MILLION)
    w.edit(replicas=2)
    w.run(300)
    assert cost(w) == 2
    assert w.condition("CapacityAvailable") == ("True", "CapacityFound")


def test_a_limit_that_is_reached_is_no_reason_to_write_anything() -> None:
    w = limited(2 * MILLION)
    w.edit(replicas=4)
    w.settle()
    w.writes.clear()
    w.run(300)
    assert w.writes == []


def test_on_demand_above_the_limit_does_not_even_bridge_the_first_wake() -> None:
    w = limited(2 * MILLION)
    without_spot(w)
    w.demand(1)
    for _ in range(600):
        w.step()
        assert "steady/zone-1" not in w.replicas
    assert w.condition("CapacityAvailable") == ("False", "MaxHourlyCost")
    assert "steady/zone-1 at $3" in w.message("CapacityAvailable")
    assert w.total == 1, "spot is probed meanwhile"


def test_on_demand_within_the_limit_bridges_as_ever() -> None:
    w = limited(3 * MILLION)
    without_spot(w)
    w.demand(1)
    w.run(600)
    assert w.replicas == {"steady/zone-1": 1}


def test_the_replacement_of_a_replica_under_notice_does_not_wait_for_its_end() -> None:
    w = limited(MILLION)
    w.edit(replicas=1)
    w.run(300)
    where = next(iter(w.replicas))
    w.notice(w.node_of(where), 120)
    w.step()
    assert w.plans[-1][1].scales
    assert any(m != where for m in w.replicas)


def test_a_lower_limit_takes_nothing_away_and_replaces_nothing() -> None:
    w = limited(2 * MILLION)
    w.edit(replicas=2)
    w.run(300)
    w.edit(placement={"pools": ["spot-a", "steady"], "maxHourlyCost": MILLION})
    w.run(300)
    assert cost(w) == 2
    w.reclaim(w.node_of("spot-a/zone-1"))
    w.run(600)
    assert w.replicas == {"spot-a/zone-2": 1}


def test_a_pool_without_a_price_is_not_used_under_a_limit() -> None:
    w = limited(10 * MILLION)
    w.pools["spot-a"] = pool()
    w.edit(replicas=2)
    w.run(300)
    assert w.replicas == {"steady/zone-1": 2}


@given(st.integers(1, 12), st.integers(1, 6), st.lists(st.booleans(), min_size=3, max_size=3))
def test_whatever_happens_the_limit_holds_at_every_step(
    most: int, wanted: int, spot_is_there: list[bool]
) -> None:
    w = limited(most * MILLION)
    w.edit(replicas=wanted)
    for there in spot_is_there:
        size = 3 if there else 0
        w.capacity |= {Market("spot-a", zone): size for zone in ("zone-1", "zone-2")}
        for _ in range(12):
            w.step(20)
            assert cost(w) <= most


def test_a_limit_of_nothing_is_refused() -> None:
    body = {
        "metadata": {"name": "chat"},
        "spec": {
            **tier().model_dump(by_alias=True, exclude_none=True),
            "placement": {"pools": ["spot"], "maxHourlyCost": 0},
        },
    }
    with pytest.raises(errors.SpecInvalid, match="maxHourlyCost"):
        parse.parse_tier(body)
