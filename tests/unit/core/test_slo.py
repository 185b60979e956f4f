"""How many requests a replica takes at an objective: found, lowered, given up, tried again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotinference.core import sizing, slo
from spotinference.core.sizing import Memory, Reading, Rules
from spotinference.core.slo import Evidence, Objective, Pace

ASKED = Objective(ttft_s=1.0, itl_s=0.033, share=0.95)
TARGET = 64


def seen(at: float, share: float, seconds: float = 600, state: Evidence | None = None) -> Evidence:
    """Evidence after so many seconds of one replica with `at` requests in flight."""
    state = state or Evidence()
    for _ in range(round(seconds / 10)):
        state = slo.observe(state, [Pace(at, 10, 1.0, share)], 10, ASKED)
    return state


def full(state: Evidence) -> float:
    return slo.full(state, ASKED, TARGET)


def test_without_an_objective_or_evidence_the_tiers_own_target_counts() -> None:
    assert slo.full(seen(20, 0.5), None, TARGET) == TARGET
    assert full(Evidence()) == TARGET


def test_an_objective_never_broken_lets_a_replica_take_what_went_well() -> None:
    assert full(seen(20, 1.0)) == TARGET
    assert full(seen(128, 1.0)) == 128


def test_a_broken_level_makes_a_replica_full_one_level_below() -> None:
    state = seen(32, 0.5, state=seen(8, 1.0))
    assert full(state) == pytest.approx(32 / 2**0.5)
    lower = seen(22, 0.5, state=state)
    assert full(lower) == pytest.approx(16)
    assert full(seen(16, 1.0, state=lower)) == pytest.approx(16)


def test_either_latency_breaks_the_objective() -> None:
    state = seen(8, 1.0)
    for _ in range(60):
        state = slo.observe(state, [Pace(32, 10, 0.9, 1.0)], 10, ASKED)
    assert full(state) < 32


def test_a_level_that_keeps_the_objective_above_a_broken_one_shows_that_it_was_chance() -> None:
    assert full(seen(32, 1.0, state=seen(4, 0.5))) == TARGET


@pytest.mark.parametrize("at", [0.4, 1, 1.4])
def test_an_objective_that_one_request_breaks_is_given_up_and_buys_no_replicas(at: float) -> None:
    state = seen(64, 0.1, state=seen(at, 0.5))
    assert slo.limit(state).hopeless
    assert full(state) == TARGET


def test_a_moment_is_no_evidence() -> None:
    assert full(seen(32, 0.0, seconds=slo.ENOUGH_S - 10, state=seen(8, 1.0))) == TARGET


def test_an_engine_that_got_slower_shows_within_minutes() -> None:
    state = seen(32, 1.0, seconds=48 * 3600)
    assert full(seen(32, 0.0, seconds=180, state=state)) < 32


def test_a_broken_level_is_tried_again_after_a_day_or_two() -> None:
    state = seen(32, 0.5, state=seen(8, 1.0))
    assert full(seen(16, 1.0, seconds=3 * 3600, state=state)) == pytest.approx(32 / 2**0.5)
    assert full(seen(16, 1.0, seconds=48 * 3600, state=state)) == TARGET


def test_another_objective_starts_anew() -> None:
    state = seen(32, 0.5, state=seen(8, 1.0))
    lenient = replace(ASKED, itl_s=0.1)
    assert slo.full(state, lenient, TARGET) == TARGET
    assert slo.observe(state, [], 10, lenient).levels == Evidence().levels


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 23, 32, 181])
def test_what_is_restored_is_what_was_known(n: int) -> None:
    state = slo.observe(slo.restored(n), [], 10, ASKED)
    assert full(state) == pytest.approx(n, rel=0.2)
    assert not slo.limit(state).hopeless


def test_the_batch_at_which_an_engine_keeps_the_objective_is_found() -> None:
    """An engine takes 10 ms and 0.5 ms per request in flight for a token: 33 ms at 46."""
    state = Evidence()
    for step in range(4000):
        load = 1 + (step * 7) % 200
        share = 1.0 if 0.010 + 0.0005 * load <= ASKED.itl_s else 0.0
        state = slo.observe(state, [Pace(load, 10, 1.0, share)], 10, ASKED)
    assert 30 <= full(state) <= 46, "half an octave fine"


@given(
    paces=st.lists(
        st.tuples(
            st.floats(0, 1e6),
            st.one_of(st.none(), st.floats(0, 1)),
            st.one_of(st.none(), st.floats(0, 1)),
        ),
        max_size=40,
    )
)
def test_whatever_is_seen_a_replica_takes_at_least_one_request(
    paces: list[tuple[float, float | None, float | None]],
) -> None:
    state = Evidence()
    for n, ttft, itl in paces:
        state = slo.observe(state, [Pace(n, 100, ttft, itl)], 10, ASKED)
    assert full(state) >= 1


def roomy(at: float, preempting: float, state: Evidence | None = None) -> Evidence:
    """Ten minutes of a replica without an objective that preempts in this share of the readings."""
    state = state or Evidence()
    for step in range(60):
        room = step % 20 >= round(20 * preempting)
        state = slo.observe(state, [Pace(at, 10, None, None, room)], 10, None)
    return state


def test_preemptions_from_a_full_cache_make_a_replica_full_whatever_its_target() -> None:
    state = roomy(20, 0.5, roomy(8, 0.0))
    assert slo.full(state, None, TARGET) == pytest.approx(16)
    assert slo.full(state, ASKED, TARGET) == pytest.approx(16), "also where latencies are asked for"
    assert slo.full(state, None, 4) == 4, "never more than the tier allows"


def test_a_rare_preemption_is_cheaper_than_a_replica() -> None:
    assert slo.full(roomy(20, 0.05, roomy(8, 0.0)), None, TARGET) == TARGET


def test_room_alone_does_not_show_that_latencies_are_kept() -> None:
    state = seen(16, 0.5, state=seen(8, 1.0))
    for _ in range(60):
        state = slo.observe(state, [Pace(64, 10, None, None, True)], 10, ASKED)
    assert full(state) == pytest.approx(16 / 2**0.5)


def test_what_a_full_replica_serves_moves_with_what_is_called_full() -> None:
    rules = Rules(cold_start_s=60, target_running=64, objective=ASKED)
    memory = Memory()
    for step in range(400):  # 32 in flight of 64: half full, 2 requests/s
        at = 10.0 * (step + 1)
        now = Reading(
            at, 20, 20, 2000, busy_s=5, up_s=10, waiting=0, running=32, ready=1, starting=0
        )
        memory = sizing.learn(memory, now, rules)
    assert memory.capacity.requests_per_s == pytest.approx(4.0, rel=0.05)
    for _ in range(20):
        paces = [Pace(64, 10, 1.0, 0.2), Pace(32, 10, 1.0, 1.0)]
        memory = sizing.paced(memory, paces, 10, rules)
    assert sizing.full(memory, rules) == pytest.approx(64 / 2**0.5)
    assert memory.capacity.requests_per_s == pytest.approx(4 / 2**0.5, rel=0.1)
