"""Latency histograms: what is believed of them, and what share came in time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.core.latency import MAX_BUCKETS, Histogram, grown, histogram, in_time

INF = math.inf
PLAIN = [(0.01, 10.0), (0.05, 30.0), (INF, 40.0)]


def made(*counts: float) -> Histogram:
    found = histogram(zip((0.01, 0.05, INF), counts, strict=True))
    assert found is not None
    return found


def test_engines_of_one_pod_are_added_up_whatever_their_order() -> None:
    found = histogram([*PLAIN, *reversed(PLAIN)])
    assert found == Histogram((0.01, 0.05, INF), (20, 60, 80))


@pytest.mark.fault(51)
@pytest.mark.parametrize(
    "buckets",
    [
        [],
        [(0.01, 10.0)],
        [(0.01, 10.0), (INF, 4.0)],
        [(0.01, math.nan), (INF, 4.0)],
        [(0.01, -1.0), (INF, 4.0)],
        [(0.01, 1.0), (INF, INF)],
        [(0.01, 1.7e308), (INF, 1.7e308)],
        [(math.nan, 1.0), (INF, 4.0)],
        [*((float(i), 1.0) for i in range(MAX_BUCKETS)), (INF, 4.0)],
    ],
    ids=[
        "empty",
        "no end",
        "falling",
        "NaN",
        "negative",
        "endless",
        "absurd",
        "no bound",
        "too many",
    ],
)
def test_a_lying_histogram_is_unknown(buckets: list[tuple[float, float]]) -> None:
    assert histogram(buckets) is None


def test_what_came_between_two_scrapes_is_what_counts() -> None:
    new = grown(made(10, 30, 40), made(10, 130, 240))
    assert new is not None
    assert in_time(new, 0.05) == pytest.approx(0.5)


@pytest.mark.fault(55)
def test_an_engine_that_began_anew_shows_only_what_it_has_done_since() -> None:
    assert grown(made(10, 30, 40), made(1, 2, 3)) == made(1, 2, 3)


def test_other_buckets_or_none_before_say_nothing() -> None:
    other = histogram([(0.02, 1.0), (INF, 2.0)])
    assert grown(made(1, 2, 3), other) is None
    assert grown(None, made(1, 2, 3)) is None
    assert grown(made(1, 2, 3), None) is None
    assert in_time(made(0, 0, 0), 1.0) is None


def test_within_a_bucket_values_lie_on_a_straight_line() -> None:
    assert in_time(made(0, 100, 100), 0.03) == pytest.approx(0.5)
    assert in_time(made(10, 30, 40), 0.01) == pytest.approx(0.25)
    assert in_time(made(10, 30, 40), 0.05) == pytest.approx(0.75)


def test_beyond_the_last_bound_nobody_knows() -> None:
    assert in_time(made(10, 30, 40), 0.06) is None
    only_a_count = histogram([(INF, 40.0)])
    assert only_a_count is not None
    assert in_time(only_a_count, 1.0) is None


@given(
    counts=st.lists(st.floats(0, 1e9), min_size=3, max_size=3),
    later=st.lists(st.floats(0, 1e9), min_size=3, max_size=3),
    limit_s=st.floats(0, 0.06),
)
def test_whatever_is_scraped_the_share_is_one_or_unknown(
    counts: list[float], later: list[float], limit_s: float
) -> None:
    bounds = (0.01, 0.05, INF)
    before = histogram(zip(bounds, counts, strict=True))
    after = histogram(zip(bounds, later, strict=True))
    new = grown(before, after)
    share = None if new is None else in_time(new, limit_s)
    assert share is None or -1e-9 <= share <= 1 + 1e-9
