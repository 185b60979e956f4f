"""What the sizing policy learns, when it trusts it, and what it never does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spotinference.core import capacity, forecast, idle, sizing
from spotinference.core.sizing import Memory, Reading, Rules, Size

RULES = Rules(cold_start_s=480, least=1, most=100)
MINUTE = 60.0


def reading(at_s: float, rate: float = 2.0, **fields: object) -> Reading:
    """Ten seconds of a tier whose replicas serve 2 requests/s when full."""
    base = Reading(
        at_s=at_s,
        arrived=rate * 10,
        finished=rate * 10,
        tokens=rate * 1000,
        busy_s=rate * 10 / 2,
        up_s=20,
        waiting=0,
        running=rate,
        ready=2,
        starting=0,
    )
    return replace(base, **fields)  # type: ignore[arg-type]  # a test's own fields


def lived(seconds: float, rate: float = 2.0, **fields: object) -> tuple[Memory, float]:
    memory, at = Memory(), 0.0
    while at < seconds:
        at += 10
        memory = sizing.learn(memory, reading(at, rate, **fields), RULES)
    return memory, at


def wanted(memory: Memory, now: Reading, rules: Rules = RULES) -> Size:
    return sizing.size(sizing.learn(memory, now, rules), now, rules)


def test_before_anything_is_learned_the_number_stays() -> None:
    assert wanted(Memory(), reading(0, ready=3)).wanted == 3


def test_capacity_is_what_full_replicas_served() -> None:
    memory, _ = lived(600)
    assert memory.capacity.requests_per_s == pytest.approx(2.0)
    assert memory.capacity.tokens_per_s == pytest.approx(200)


def test_longer_answers_lower_the_capacity_before_the_request_rate_knows() -> None:
    state = capacity.Capacity()
    for _ in range(400):
        state = capacity.observe(state, capacity.Seen(10, 20, 20, 2000))
    for _ in range(200):
        state = capacity.observe(state, capacity.Seen(10, 20, 10, 2000))  # twice the tokens
    assert state.requests_per_s == pytest.approx(1.0, abs=0.2)
    assert state.by_requests.rate > 1.3


def test_an_idle_replica_teaches_no_capacity() -> None:
    state = capacity.observe(capacity.Capacity(), capacity.Seen(100, 100, 200, 0))
    assert capacity.observe(state, capacity.Seen(0.0, 100, 0.0, 0.0)) == state


def test_the_rate_of_a_full_replica_is_seen_from_half_full_ones() -> None:
    state = capacity.Capacity()
    for step in range(2000):
        u = 0.3 + 0.3 * (step % 100) / 100  # never above 60 % full
        tokens_per_s = u / (0.002 + 0.003 * u)
        state = capacity.observe(
            state, capacity.Seen(10 * u, 10, tokens_per_s / 10, 10 * tokens_per_s)
        )
    assert state.tokens_per_s == pytest.approx(1 / 0.005, rel=0.25)


def test_replicas_that_still_start_count() -> None:
    memory, at = lived(1800)
    jumped, now = memory, at
    for _ in range(12):
        now += 10
        jumped = sizing.learn(jumped, reading(now, rate=20), RULES)
    first = sizing.size(jumped, reading(now, rate=20, waiting=100), RULES)
    assert first.wanted >= 9
    launched = reading(now, rate=20, waiting=100, starting=first.wanted - 2)
    assert sizing.size(jumped, launched, RULES).wanted == first.wanted
    without = replace(RULES, pending=False)
    assert sizing.size(jumped, launched, without).wanted > first.wanted


def test_a_queue_that_is_gone_before_a_replica_could_be_ready_adds_none() -> None:
    memory, at = lived(1800)
    assert wanted(memory, reading(at + 10, waiting=400)).wanted == 2
    assert wanted(memory, reading(at + 10, waiting=4000)).wanted > 2


def step_down(rate: float, ready: int = 7) -> tuple[float, int]:
    """After an hour at 10 requests/s: seconds at `rate` until the step down, and to how many."""
    memory, began = lived(3600, rate=10, ready=ready)
    at = began
    while at < began + 4 * 3600:
        at += 10
        memory = sizing.learn(memory, reading(at, rate, ready=ready), RULES)
        size = sizing.size(memory, reading(at, rate, ready=ready), RULES)
        if size.wanted < ready:
            return at - began, size.wanted
    return at - began, ready


def test_down_only_to_what_the_last_two_cold_starts_needed() -> None:
    after, to = step_down(rate=1.0)
    assert after >= 2 * RULES.cold_start_s
    assert to < 7


def test_few_replicas_too_many_are_given_back_later_than_many() -> None:
    many, _ = step_down(rate=1.0, ready=6)
    few, to = step_down(rate=8.5, ready=6)
    assert to == 5
    assert few >= sizing.SPARE_S * 6 > many, "one of six for 36 minutes"


def test_what_was_spare_is_forgotten_as_soon_as_it_is_needed() -> None:
    memory, at = lived(3600, rate=2)
    for _ in range(30):
        at += 10
        memory = sizing.learn(memory, reading(at, ready=7), RULES)
    assert memory.spare_s == pytest.approx(300 * 5 / 7)
    assert sizing.learn(memory, reading(at + 10, ready=2), RULES).spare_s == 0


def test_a_job_of_every_day_is_expected_from_the_second_day_on() -> None:
    memory, at = Memory(), 0.0
    before_the_job = []
    while at < 5 * 86_400:
        at += 60
        hour = at % 86_400 / 3600
        rate = 30.0 if 9 <= hour < 10 else 3.0
        memory = sizing.learn(
            memory, reading(at, rate, arrived=rate * 60, ready=20, starting=0), RULES
        )
        if 8.9 <= hour < 8.9 + 1 / 60:
            before_the_job.append(sizing.size(memory, reading(at, rate, ready=2), RULES).wanted)
    assert before_the_job[0] < 6
    assert before_the_job[-1] >= 15


def test_a_pattern_that_no_longer_holds_loses_its_voice() -> None:
    state, at = forecast.Forecaster(), 0.0

    def day(job: bool) -> forecast.Forecaster:
        nonlocal at
        now = state
        for _ in range(1440):
            at += MINUTE
            hour = at % 86_400 / 3600
            now = forecast.observe(now, at, 30.0 if job and 9 <= hour < 10 else 3.0, 540)
        return now

    for _ in range(4):
        state = day(job=True)
    trusted = state.skills[forecast.DAILY].loss
    assert trusted is not None
    assert trusted < (state.skills[forecast.USUAL].loss or 0)
    for _ in range(6):
        state = day(job=False)
    assert forecast.outlook(state, at, 540).upper < 5
    nine = at + 8.9 * 3600
    assert forecast.outlook(state, nine, 540).upper < 6


def test_idle_times_are_learned_across_sleep_but_not_through_silence() -> None:
    def lives(*readings: Reading, rules: Rules = RULES) -> idle.IdleTimes:
        memory = Memory()
        for now in readings:
            memory = sizing.learn(memory, now, rules)
        return memory.idle_times

    busy, again = reading(0), reading(900)
    calm = reading(10, rate=0.0)
    asleep = replace(reading(500, rate=0.0), ready=0, up_s=0)
    silent = replace(reading(500, rate=0.0), unknown=1)
    assert sum(lives(busy, calm, asleep, again).sums_s) == 890
    assert lives(busy, calm, silent, again) == idle.IdleTimes()
    asked_not = replace(RULES, learn_idle=False)
    assert lives(busy, calm, asleep, again, rules=asked_not) == idle.IdleTimes()


def test_without_experience_the_ski_rental_waits_one_wake() -> None:
    assert idle.sleep_after_s(idle.IdleTimes(), 480, 3600) == 480
    assert idle.sleep_after_s(idle.IdleTimes(), 480, 60) == 60


def test_long_idle_times_teach_to_sleep_soon_and_short_ones_to_stay() -> None:
    nights, pauses = idle.IdleTimes(), idle.IdleTimes()
    for _ in range(20):
        nights = idle.observe(nights, 30_000)
        pauses = idle.observe(pauses, 300)
    assert idle.sleep_after_s(nights, 480, 600) == idle.SHORTEST_S
    assert 300 < idle.sleep_after_s(pauses, 480, 600) <= 600


@settings(max_examples=100)
@given(
    gaps=st.lists(st.floats(0, 1e6), max_size=60),
    cost=st.floats(1, 3600),
    bound=st.floats(0.5, 1e5),
)
def test_the_wait_never_exceeds_the_idle_timeout(
    gaps: list[float], cost: float, bound: float
) -> None:
    state = idle.IdleTimes()
    for gap in gaps:
        state = idle.observe(state, gap)
    wait = idle.sleep_after_s(state, cost, bound)
    assert min(bound, idle.SHORTEST_S) <= wait <= bound


@settings(max_examples=60, deadline=None)
@given(
    rates=st.lists(st.floats(0, 1e4), min_size=1, max_size=80),
    least=st.integers(0, 3),
    most=st.integers(3, 50),
)
def test_whatever_arrives_the_size_is_within_bounds_and_finite(
    rates: list[float], least: int, most: int
) -> None:
    rules = Rules(cold_start_s=300, least=least, most=most)
    memory, at, current = Memory(), 0.0, least
    for rate in rates:
        at += 30
        now = reading(at, rate, ready=current, waiting=rate)
        memory = sizing.learn(memory, now, rules)
        size = sizing.size(memory, now, rules)
        assert least <= size.wanted <= most
        current = size.wanted
        for skill in memory.forecaster.skills:
            assert 1.0 <= skill.margin <= forecast.MARGIN_MOST
