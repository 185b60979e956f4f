"""What is believed of markets: calm that grows, reclaims that end it, refusals that are not repeated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.core import markets
from spotinference.core.markets import NOTHING_KNOWN, Beliefs, Seen
from spotinference.core.observed import Market

A, B = Market("spot", "us-east-1a"), Market("spot", "us-east-1b")
C = Market("spot", "us-east-1c")
FAR = Market("spot", "us-west-2a")
HOUR = 3600.0


def standing(now_s: float, *where: Market, beliefs: Beliefs = NOTHING_KNOWN) -> Beliefs:
    return markets.learn(beliefs, Seen(now_s, dict.fromkeys(where, 1), {}))


def reclaims_per_h(beliefs: Beliefs, market: Market, now_s: float) -> float:
    return beliefs.of(market, now_s).reclaims_per_h(now_s, 300)


def test_the_longer_a_market_is_calm_the_longer_it_will_be() -> None:
    beliefs = standing(0, A)
    rates = [reclaims_per_h(beliefs, A, hours * HOUR) for hours in (0, 1, 4, 24, 100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(0.6 / 2.7, rel=0.05)  # as at a random moment
    assert rates[-1] == pytest.approx(0.6 / 102.7, rel=0.05)


def test_time_passing_changes_no_belief_so_a_status_is_not_written() -> None:
    beliefs = standing(0, A, FAR)
    assert standing(HOUR, A, FAR, beliefs=beliefs) is beliefs


def test_a_reclaim_ends_the_calm_and_closes_the_market_for_a_while() -> None:
    beliefs = standing(0, A)
    after = markets.learn(beliefs, Seen(20 * HOUR, {}, {A: 1}))
    assert reclaims_per_h(after, A, 20 * HOUR) > 10 * reclaims_per_h(beliefs, A, 20 * HOUR)
    assert not after.open(A, 20 * HOUR + 59)
    assert after.open(A, 20 * HOUR + 60)


def test_survivors_of_a_reclaim_are_in_the_greatest_danger() -> None:
    beliefs = markets.learn(standing(0, A), Seen(10 * HOUR, {A: 2}, {A: 1}))
    fresh = markets.learn(standing(0, A), Seen(10 * HOUR, {}, {A: 1}))
    assert reclaims_per_h(beliefs, A, 10 * HOUR) > reclaims_per_h(fresh, A, 10 * HOUR)


def test_each_refusal_doubles_the_pause_up_to_a_bound_and_an_accepted_launch_ends_it() -> None:
    beliefs, now_s, pauses = NOTHING_KNOWN, 0.0, []
    for _ in range(7):
        beliefs = markets.learn(beliefs, Seen(now_s, {}, {}, refused=frozenset({A})))
        pauses.append(beliefs.of(A, now_s).closed_until_s - now_s)
        now_s += pauses[-1]
    assert pauses == [60, 120, 240, 480, 900, 900, 900]
    beliefs = markets.learn(beliefs, Seen(now_s, {A: 1}, {}, accepted=frozenset({A})))
    assert beliefs.open(A, now_s)


def test_a_full_market_that_refuses_one_more_is_no_more_dangerous() -> None:
    beliefs = standing(0, A)
    after = markets.learn(beliefs, Seen(HOUR, {A: 1}, {}, refused=frozenset({A})))
    assert reclaims_per_h(after, A, HOUR) == reclaims_per_h(beliefs, A, HOUR)
    assert not after.open(A, HOUR)


def test_a_reclaim_next_door_unsettles_the_region_and_nobody_else() -> None:
    beliefs = standing(0, A, B, FAR)
    after = markets.learn(beliefs, Seen(10 * HOUR, {B: 1, FAR: 1}, {A: 1}))
    assert reclaims_per_h(after, B, 10 * HOUR) > reclaims_per_h(beliefs, B, 10 * HOUR)
    assert reclaims_per_h(after, FAR, 10 * HOUR) == reclaims_per_h(beliefs, FAR, 10 * HOUR)


def test_losses_that_come_together_are_remembered() -> None:
    beliefs = standing(0, A, B)
    after = markets.learn(beliefs, Seen(HOUR, {}, {A: 1, B: 2}))
    assert after.joint.mean > beliefs.joint.mean
    assert after.whole.mean > beliefs.whole.mean


def test_what_is_not_spot_says_nothing_of_how_spot_goes_together() -> None:
    beliefs = standing(0, A, B)
    sure = frozenset({B})
    after = markets.learn(beliefs, Seen(HOUR, {B: 1}, {A: 1}, sure=sure))
    assert after.joint == beliefs.joint
    after = markets.learn(beliefs, Seen(HOUR, {A: 1}, {B: 1}, sure=sure))
    assert (after.joint, after.whole) == (beliefs.joint, beliefs.whole)


@given(
    stood=st.dictionaries(st.sampled_from([A, B, C, FAR]), st.integers(1, 3), min_size=1),
    data=st.data(),
)
def test_one_event_teaches_the_same_at_once_or_piece_by_piece(
    stood: dict[Market, int], data: st.DataObject
) -> None:
    """Notices of one event come seconds apart: first one replica of each market, then the rest."""
    order = data.draw(st.permutations(sorted(stood)))
    order = order[: data.draw(st.integers(1, len(order)))]
    lost = {m: data.draw(st.integers(1, stood[m])) for m in order}
    left = {m: n - lost.get(m, 0) for m, n in stood.items() if n > lost.get(m, 0)}
    before = markets.learn(NOTHING_KNOWN, Seen(0, stood, {}))
    whole = markets.learn(before, Seen(HOUR, left, lost))
    pieces, now_s, there = before, HOUR, dict(stood)
    for market in order:
        there[market] -= 1
        stands = {m: n for m, n in there.items() if n}
        pieces = markets.learn(pieces, Seen(now_s, stands, {market: 1}))
        now_s += 5
    pieces = markets.learn(pieces, Seen(now_s, left, {}))
    pieces = markets.learn(pieces, Seen(now_s + 1, left, {}))
    assert pieces.joint == whole.joint
    assert pieces.whole.mean == pytest.approx(whole.whole.mean)


@pytest.mark.parametrize(
    ("zone", "region"),
    [
        ("us-east-1a", "us-east-1"),
        ("europe-west4-b", "europe-west4"),
        ("zone-a", "zone-a"),
        ("westeurope-1", "westeurope-1"),
    ],
)
def test_the_region_of_a_zone(zone: str, region: str) -> None:
    assert markets.region(zone) == region


@given(
    st.lists(
        st.tuples(
            st.floats(1, 5000),
            st.dictionaries(st.sampled_from([A, B, FAR]), st.integers(1, 3)),
            st.dictionaries(st.sampled_from([A, B, FAR]), st.integers(1, 3)),
            st.frozensets(st.sampled_from([A, B, FAR])),
        ),
        max_size=30,
    )
)
def test_whatever_is_seen_rates_stay_within_bounds(
    looks: list[tuple[float, dict[Market, int], dict[Market, int], frozenset[Market]]],
) -> None:
    beliefs, now_s = NOTHING_KNOWN, 0.0
    for pause_s, stands, lost, refused in looks:
        now_s += pause_s
        beliefs = markets.learn(beliefs, Seen(now_s, stands, lost, refused))
        for belief in beliefs.markets.values():
            assert belief.calm_since_s <= now_s
            assert 0 < belief.reclaims_per_h(now_s, 120) <= 3
            assert belief.closed_until_s <= now_s + markets.LONGEST_PAUSE_S
        assert 0 < beliefs.joint.mean <= 1
        assert 0 < beliefs.whole.mean <= 1
