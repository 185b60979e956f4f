"""A sick replica goes, not a sick tier; retries stay a share of the requests."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spotinference.core.ejection import STRIKES, RetryBudget, may_eject, opens, pause_s


@given(st.integers(0, 50))
def test_at_least_half_of_the_ready_replicas_stay(ready: int) -> None:
    ejected = 0
    while may_eject(ready, ejected):
        ejected += 1
    assert ready - ejected >= ready / 2
    assert ejected == ready // 2


def test_one_failure_is_not_yet_a_sick_replica() -> None:
    assert not opens(STRIKES - 1, ready=2, ejected=0)
    assert opens(STRIKES, ready=2, ejected=0)
    assert not opens(STRIKES, ready=1, ejected=0), "the only one stays"


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_double_to_the_maximum_and_are_spread_over_half(times: int, luck: float) -> None:
    whole = min(0.5 * 2.0 ** (times - 1), 10.0) if times < 100 else 10.0
    assert whole / 2 <= pause_s(times, 0.5, 10.0, luck) <= whole


@given(st.lists(st.sampled_from(["asked", "retried", "later"]), max_size=400))
def test_retries_never_exceed_the_share_the_trickle_and_the_reserve(events: list[str]) -> None:
    budget = RetryBudget(share=0.2, per_s=1.0, most=10.0, balance=10.0, at=0.0)
    now, asked, retried = 0.0, 0, 0
    for event in events:
        match event:
            case "asked":
                asked += 1
                budget = budget.asked()
            case "later":
                now += 0.5
            case _:
                left = budget.retried(now)
                if left is not None:
                    retried += 1
                    budget = left
        assert retried <= 10 + now + 0.2 * asked + 1e-6
