"""What is bought and let go: the promise first, then spares as long as they are worth their price."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from spotinference.core import buying, markets
from spotinference.core.buying import Offer, Orders, Risk, Stand, Terms
from spotinference.core.markets import NOTHING_KNOWN, Beliefs, Seen
from spotinference.core.observed import Market

HOUR = 3600.0
ZONES = [Market("spot", f"{r}{z}") for r in ("us-east-1", "us-west-2") for z in "abc"]
BRIDGE = Market("on-demand", "any")
OFFERS = (*(Offer(z, 1.0) for z in ZONES), Offer(BRIDGE, 3.0, spot=False))
TERMS = Terms(need=3, cold_start_s=480, look_every_s=30)


def calm_for(hours: float, now_s: float, *where: Market) -> Beliefs:
    since = now_s - hours * HOUR
    return markets.learn(NOTHING_KNOWN, Seen(since, dict.fromkeys(where, 1), {}))


def stands(*where: Market, ready_in_s: float = 0.0) -> list[Stand]:
    return [Stand(f"{i}-{m}", m, m != BRIDGE, ready_in_s, float(i)) for i, m in enumerate(where)]


def decide(held: list[Stand], beliefs: Beliefs, now_s: float, terms: Terms = TERMS) -> Orders:
    return buying.decide(held, OFFERS, beliefs, terms, now_s)


def launched(orders: Orders) -> Counter[Market]:
    return Counter(o.market for o in orders.launches)


def test_from_nothing_the_promise_is_bought_on_spot_and_bridged_until_it_stands() -> None:
    found = launched(decide([], NOTHING_KNOWN, 0))
    assert found[BRIDGE] == 3
    assert sum(n for m, n in found.items() if m != BRIDGE) >= 3
    assert all(n == 1 for m, n in found.items() if m != BRIDGE), "one zone each"


def test_what_must_stand_is_spread_over_regions() -> None:
    first, second = decide([], NOTHING_KNOWN, 0, Terms(2, 120, 30)).launches[:2]
    assert markets.region(first.market.zone) != markets.region(second.market.zone)


def test_a_spare_is_bought_where_it_is_rough_and_not_where_it_has_been_calm_for_weeks() -> None:
    now_s = 1000 * HOUR
    held = stands(*ZONES[:3])
    rough = decide(held, calm_for(0.5, now_s, *ZONES[:3]), now_s)
    assert rough.launches
    calm = decide(held, calm_for(900, now_s, *ZONES[:3]), now_s)
    assert calm == Orders()


def test_a_spare_that_has_become_pointless_is_let_go_and_never_below_the_promise() -> None:
    now_s = 1000 * HOUR
    orders = decide(stands(*ZONES[:4]), calm_for(900, now_s, *ZONES[:4]), now_s)
    assert len(orders.releases) == 1
    starting = [*stands(*ZONES[:2]), *stands(*ZONES[2:4], ready_in_s=60)]
    released = decide(starting, calm_for(900, now_s, *ZONES[:4]), now_s).releases
    assert not {s.id for s in starting if s.ready_in_s == 0} & set(released)


def test_a_dearer_spare_must_be_worth_more() -> None:
    now_s, held = 1000 * HOUR, stands(*ZONES[:3])
    beliefs = calm_for(24, now_s, *ZONES[:3])
    cheap = buying.decide(held, OFFERS, beliefs, TERMS, now_s)
    dear = tuple(
        Offer(o.market, 100.0 if o.market not in ZONES[:3] else 1.0, o.spot) for o in OFFERS
    )
    assert cheap.launches
    assert not any(
        o.price == 100.0 for o in buying.decide(held, dear, beliefs, TERMS, now_s).launches
    )


def test_a_market_that_refused_is_not_tried_before_its_pause_is_over() -> None:
    beliefs = markets.learn(NOTHING_KNOWN, Seen(0, {}, {}, refused=frozenset(ZONES)))
    assert set(launched(decide([], beliefs, 30))) == {BRIDGE}
    later = launched(decide([], beliefs, 60))
    assert {m: n for m, n in later.items() if m != BRIDGE} == dict.fromkeys(
        later.keys() - {BRIDGE}, 1
    )
    assert len(later) > 3, "one probe in each of several"


def test_on_demand_bridges_what_spot_lacks_and_goes_when_spot_is_ready() -> None:
    now_s = 1000 * HOUR
    beliefs = calm_for(900, now_s, *ZONES[:3])
    short = launched(decide(stands(*ZONES[:2]), beliefs, now_s))
    assert short[BRIDGE] == 1
    bridged = [*stands(*ZONES[:3]), Stand("bridge", BRIDGE, spot=False, ready_in_s=0, since_s=0)]
    assert decide(bridged, beliefs, now_s).releases == ("bridge",)


def test_the_bridge_stays_until_the_spot_replicas_are_ready() -> None:
    now_s = 1000 * HOUR
    beliefs = calm_for(900, now_s, *ZONES[:3])
    held = [
        *stands(*ZONES[:2]),
        *stands(ZONES[2], ready_in_s=200),
        Stand("bridge", BRIDGE, spot=False, ready_in_s=0, since_s=0),
    ]
    assert decide(held, beliefs, now_s).releases == ()


def test_a_bridge_that_would_come_no_sooner_than_spot_is_called_off() -> None:
    now_s = 1000 * HOUR
    beliefs = calm_for(900, now_s, *ZONES[:3])
    held = [
        *stands(*ZONES[:2]),
        *stands(ZONES[2], ready_in_s=200),
        Stand("bridge", BRIDGE, spot=False, ready_in_s=200, since_s=0),
    ]
    assert decide(held, beliefs, now_s).releases == ("bridge",)


@given(
    st.dictionaries(st.sampled_from(ZONES), st.integers(1, 4), max_size=6),
    st.integers(0, 4),
    st.floats(0, 200),
)
def test_the_risk_is_a_probability_and_another_replica_never_makes_it_greater(
    spot: dict[Market, int], sure: int, calm_h: float
) -> None:
    now_s = 1000 * HOUR
    risk = Risk(calm_for(calm_h, now_s, *ZONES), TERMS, now_s)
    shortages = [risk.shortage(spot, sure + more) for more in range(4)]
    assert all(0 <= p <= 1 for p in shortages)
    assert all(b <= a + 1e-12 for a, b in pairwise(shortages))


@given(st.lists(st.sampled_from([*ZONES, BRIDGE]), max_size=8), st.floats(0, 200))
def test_what_is_released_never_leaves_fewer_ready_than_promised(
    where: list[Market], calm_h: float
) -> None:
    now_s = 1000 * HOUR
    held = stands(*where)
    orders = decide(held, calm_for(calm_h, now_s, *ZONES), now_s)
    left = len(held) - len(orders.releases)
    assert not orders.releases or left >= TERMS.need
    assert set(orders.releases) <= {s.id for s in held}


def test_spot_that_costs_no_less_than_on_demand_is_not_bought() -> None:
    for price, bought in ((0.5, {BRIDGE: 3}), (1.0, {BRIDGE: 3})):
        offers = (*OFFERS[:-1], Offer(BRIDGE, price, spot=False))
        assert launched(buying.decide([], offers, NOTHING_KNOWN, TERMS, 0)) == bought
        stand = stands(BRIDGE, BRIDGE, BRIDGE)
        assert buying.decide(stand, offers, NOTHING_KNOWN, TERMS, 0) == Orders()
