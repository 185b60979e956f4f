"""The estimate: from the tier's own stages, right for a wake like the last, never negative."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.core import eta
from spotinference.core.eta import DECISION, ORDER, Wake, learned, measured, remaining_s, total_s

START = datetime(2026, 11, 21, 6, 0, tzinfo=UTC)


def wake(*stages: tuple[str, int], ready: int | None = None) -> Wake:
    return Wake(
        started_at=START,
        stages=tuple((name, START + timedelta(seconds=at)) for name, at in stages),
        ready_at=START + timedelta(seconds=ready) if ready is not None else None,
    )


LAST = wake(("scheduling", 2), ("starting", 92), ("loading", 122), ("ready", 182), ready=182)


def test_each_stage_is_measured_to_the_begin_of_the_next() -> None:
    took = measured(LAST)
    assert took == {DECISION: 2, "scheduling": 90, "starting": 30, "loading": 60}
    assert total_s(took) == 182


def test_a_stage_that_came_twice_counts_twice() -> None:
    took = measured(
        wake(("scheduling", 0), ("starting", 10), ("scheduling", 15), ("loading", 40), ready=60)
    )
    assert took["scheduling"] == 35


@given(st.integers(0, 181))
def test_a_wake_like_the_last_is_estimated_to_the_second(at: int) -> None:
    profile = measured(LAST)
    begun = [(DECISION, 0), ("scheduling", 2), ("starting", 92), ("loading", 122)]
    name, since = max((step for step in begun if step[1] <= at), key=lambda step: step[1])
    assert remaining_s(profile, name, at - since) == 182 - at


def test_a_machine_found_at_once_shortens_the_estimate() -> None:
    profile = measured(LAST)
    assert remaining_s(profile, "starting", 0) == 90


def test_a_stage_that_is_late_is_expected_to_be_late_by_as_much_again() -> None:
    profile = measured(LAST)
    assert remaining_s(profile, "loading", 60) == 0
    assert remaining_s(profile, "loading", 80) == 20
    assert remaining_s(profile, "scheduling", 150) == 30 + 60 + 60


def test_the_last_wakes_count_most() -> None:
    usual = learned(None, {"loading": 60.0})
    usual = learned(usual, {"loading": 100.0, "weights": 40.0})
    assert usual == {"loading": 80.0, "weights": 20.0}


@given(
    st.dictionaries(st.sampled_from(ORDER), st.floats(0, 1000), max_size=5),
    st.sampled_from([*ORDER, "unheard of"]),
    st.floats(0, 5000),
)
def test_an_estimate_is_never_negative(
    profile: dict[str, float], stage: str, in_stage_s: float
) -> None:
    assert remaining_s(profile, stage, in_stage_s) >= 0


@pytest.mark.parametrize("stages", [(), (("ready", 30),)])
def test_a_wake_that_was_seen_only_at_its_end_still_gives_a_total(
    stages: tuple[tuple[str, int], ...],
) -> None:
    assert total_s(measured(wake(*stages, ready=30))) == 30
    assert eta.DECISION in measured(wake(*stages, ready=30))
