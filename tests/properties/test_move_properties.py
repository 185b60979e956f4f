"""Moves between markets whatever prices do: they end, they cost little, and nothing is missing meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.api.pool import PoolSpec, PriceSpec
from spotinference.core import moves
from spotinference.core.bridge import PROVEN_S
from spotinference.core.choice import Draft, Terms
from spotinference.core.fleet import Fleet, Place, Replica, Standing
from spotinference.core.markets import Belief, Beliefs
from spotinference.core.observed import Market, NodeHealth, NodeView, ReplicaView
from spotinference.core.outlook import Outlook
from spotinference.core.regret import Regret
from spotinference.core.spares import NONE
from tests.properties.test_decide_properties import thorough
from tests.support.world import pool, world

START = datetime(2026, 11, 1, tzinfo=UTC)
COLD_START_S, DRAIN_S, STEP_S = 300.0, 30.0, 60.0
BOTH_S = COLD_START_S + PROVEN_S + DRAIN_S
MARKETS = [Market(f"spot-{p}", f"region-{r}{z}") for p in "abc" for r in "12" for z in "ab"]


def priced(dollars: float, zones: tuple[str, ...]) -> PoolSpec:
    price = PriceSpec.model_validate({"microUSDPerHour": round(dollars * 1e6)})
    return pool(zones).model_copy(update={"price": price})


def drafted(
    counts: dict[Market, int], prices: dict[Market, float], ages_s: dict[Market, float], wanted: int
) -> Draft:
    """A tier at rest: so many ready replicas in each market, which has been calm for so long."""
    now_s = START.timestamp()
    beliefs = {m: Belief(now_s - age, None if counts[m] else now_s) for m, age in ages_s.items()}
    places = tuple(
        Place(m, priced(prices[m], (m.zone,)), i, None, _ready(m, counts[m]))
        for i, m in enumerate(prices)
    )
    terms = Terms(
        wanted=wanted,
        now=START,
        drain_s=DRAIN_S,
        burst=False,
        exclusive=False,
        open_zones=None,
        limit=wanted,
        cold_start_s=COLD_START_S,
    )
    return Draft(terms, places, dict(counts), Outlook(Beliefs(beliefs), START))


def _ready(market: Market, count: int) -> tuple[Replica, ...]:
    node = NodeView("node", NodeHealth.HEALTHY)
    views = (
        ReplicaView(f"{market}-{i}", "uid", market, START, node, True, True, False, ready_at=START)
        for i in range(count)
    )
    return tuple(Replica(v, Standing.READY) for v in views)


@thorough
@given(
    counts=st.lists(st.integers(0, 3), min_size=12, max_size=12).filter(any),
    prices=st.lists(st.sampled_from([0.5, 0.7, 1.0, 2.0]), min_size=12, max_size=12),
    ages_h=st.lists(st.floats(0, 60), min_size=12, max_size=12),
)
def test_with_unchanged_inputs_moves_come_to_an_end(
    counts: list[int], prices: list[float], ages_h: list[float]
) -> None:
    standing = dict(zip(MARKETS, counts, strict=True))
    price_of = dict(zip(MARKETS, prices, strict=True))
    ages_s = {m: 3600 * h for m, h in zip(MARKETS, ages_h, strict=True)}
    dollars_per_h = sum(n * price_of[m] for m, n in standing.items())
    for _ in range(200):
        move = moves.best(drafted(standing, price_of, ages_s, sum(counts)))
        if move is None or move.saves <= 0:
            return
        standing[move.origin] -= 1
        standing[move.target.market] += 1
        after = sum(n * price_of[m] for m, n in standing.items())
        assert after < dollars_per_h, "no move without a lower price"
        dollars_per_h = after
    raise AssertionError("it goes on and on")


@dataclass
class Rent:
    """One replica and two markets that have been calm for ever; only prices change."""

    stands: Market = MARKETS[0]
    regret: Regret | None = None
    now: datetime = START
    paid: float = 0.0
    stayed: float = 0.0
    moved: int = 0
    dearest: float = 0.0
    _until: datetime = field(default=START)

    def step(self, a: float, b: float) -> None:
        prices = {MARKETS[0]: a, MARKETS[4]: b}
        self.dearest = max(self.dearest, a, b)
        hours = STEP_S / 3600
        self.stayed += a * hours
        self.paid += prices[self.stands] * hours
        self.now += timedelta(seconds=STEP_S)
        if self.now <= self._until:
            old = next(m for m in prices if m != self.stands)
            self.paid += prices[old] * hours  # both are paid for
            return
        counts = {m: int(m == self.stands) for m in prices}
        draft = drafted(counts, prices, dict.fromkeys(prices, 1e12), 1)
        draft.terms = replace(draft.terms, now=self.now, regret=self.regret)
        step = moves.consider(draft, Fleet(draft.places), NONE)
        self.regret = step.regret
        if step.launch is not None:
            self.stands, self.regret = step.launch.market, None
            self._until = self.now + timedelta(seconds=BOTH_S)
            self.moved += 1


def always_dear(swing: float, hours: int, first: Market = MARKETS[0]) -> Rent:
    """The prices of an adversary: where the replica stands it is dear, elsewhere it is not."""
    rent = Rent()
    for _ in range(round(hours * 3600 / STEP_S)):
        here = rent.stands == first
        rent.step(*((swing, 1.0) if here else (1.0, swing)))
    return rent


@given(swing=st.floats(1.05, 30), hours=st.integers(4, 24))
@thorough
def test_where_it_stands_is_always_dear_and_it_pays_at_most_twice_what_staying_would(
    swing: float, hours: int
) -> None:
    rent = always_dear(swing, hours)
    assert rent.paid <= 2 * rent.stayed + rent.dearest * BOTH_S / 3600


@pytest.mark.parametrize("swing", [1.5, 2.0, 3.0])
def test_prices_that_alternate_within_bounds_cost_at_most_three_quarters_more(swing: float) -> None:
    rent = always_dear(swing, 24)
    assert rent.moved > 10
    assert rent.paid <= 1.75 * rent.stayed


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1.0, 1.4, 2.0, 3.0]),
            st.sampled_from([1.0, 1.4, 2.0, 3.0]),
            st.integers(1, 90),
        ),
        max_size=30,
    )
)
@thorough
def test_no_prices_cost_more_than_twice_what_staying_would(
    story: list[tuple[float, float, int]],
) -> None:
    rent = Rent()
    for a, b, minutes in story:
        for _ in range(minutes):
            rent.step(a, b)
    assert rent.paid <= 2 * rent.stayed + 2 * rent.dearest * BOTH_S / 3600


@given(dear=st.floats(1.1, 20), hours=st.integers(1, 200))
@thorough
def test_when_a_market_becomes_cheaper_for_good_no_more_than_two_moves_are_lost(
    dear: float, hours: int
) -> None:
    """One in waiting and one in moving, and a step of time."""
    rent = Rent()
    for _ in range(round(hours * 3600 / STEP_S)):
        rent.step(dear, 1.0)
    move = dear * BOTH_S / 3600
    assert rent.paid - 1.0 * hours <= 2 * move + 2 * dear * STEP_S / 3600 + 0.01
    assert rent.moved <= 1


@thorough
@given(
    story=st.lists(
        st.tuples(st.sampled_from(["spot-a", "spot-b"]), st.integers(2, 9), st.integers(1, 60)),
        max_size=8,
    ),
    wanted=st.integers(1, 3),
)
def test_while_prices_change_as_many_as_wanted_serve_and_one_more_at_most_stands(
    story: list[tuple[str, int, int]], wanted: int
) -> None:
    w = world(scaling={"maxReplicas": wanted})
    zones = ("zone-1", "zone-2")
    w.pools |= {"spot-a": priced(0.5, zones), "spot-b": priced(0.5, zones)}
    w.edit(replicas=wanted)
    w.run(300, 10)
    for name, tenths, minutes in story:
        w.pools[name] = priced(tenths / 10, zones)
        for _ in range(6 * minutes):
            w.step(10)
            assert len([p for p in w.ready if p.doomed_until is None]) >= wanted
            assert w.total <= wanted + 1
    w.run(8 * 3600, 30)
    w.writes.clear()
    w.run(1800, 30)
    assert w.writes == [], "at rest"
