"""What is learned survives a restart in the status, is written seldom, and only ever adds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spotinference.api.tier_status import LearnedStatus
from spotinference.core import forecast, idle, learned, sizing, slo
from spotinference.core.autoscale import READING_COUNTS_S
from spotinference.core.observed import Learned
from spotinference.core.sizing import Memory, Reading, Rules
from spotinference.core.slo import Evidence, Objective, Pace
from tests.support.world import World, world

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
RULES = Rules(cold_start_s=60, least=1, most=100)
SLO = Objective(ttft_s=1.0, itl_s=0.033, share=0.95)


def reading(at_s: float, rate: float) -> Reading:
    return Reading(at_s, rate * 10, rate * 10, rate * 1000, rate * 5, 20, 0, rate, 2, 0)


def lived(seconds: float, rate: float, memory: Memory | None = None, at: float = 0) -> Memory:
    memory = memory or Memory()
    for step in range(1, round(seconds / 10) + 1):
        memory = sizing.learn(memory, reading(at + 10 * step, rate), RULES)
    return memory


@pytest.mark.fault(54)
def test_a_restarted_operator_knows_capacity_pattern_and_skills() -> None:
    before = lived(4 * 3600, 3.0)
    after = learned.from_status(learned.to_status(before, NOW))
    assert after.capacity.known
    assert after.capacity.requests_per_s == pytest.approx(before.capacity.requests_per_s, rel=0.01)
    assert after.forecaster.pattern[3] == pytest.approx(3.0, rel=0.01)
    assert [s.margin for s in after.forecaster.skills] == pytest.approx(
        [s.margin for s in before.forecaster.skills], abs=0.006
    )


@pytest.mark.fault(54)
def test_a_restarted_operator_knows_the_idle_times_and_the_one_under_way() -> None:
    seen = idle.IdleTimes()
    for idle_s in (40, 50, 60, 3600, 45, 55, 65, 7200, 50):
        seen = idle.observe(seen, idle_s)
    status = learned.to_status(Memory(idle_times=seen), NOW)
    after = learned.from_status(status, "2026-11-21T11:59:00Z")
    assert idle.sleep_after_s(after.idle_times, 480, 600) == idle.sleep_after_s(seen, 480, 600)
    assert after.idle_since_s == (NOW - timedelta(minutes=1)).timestamp()


def test_one_more_idle_time_like_those_before_is_not_written() -> None:
    def after(*idle_s: float) -> Memory:
        seen = idle.IdleTimes()
        for one in idle_s:
            seen = idle.observe(seen, one)
        return Memory(idle_times=seen)

    status = learned.to_status(after(*[100.0] * 60), NOW)
    soon, later = NOW + timedelta(seconds=299), NOW + timedelta(seconds=300)
    assert not learned.worth_writing(status, after(*[100.0] * 61), later)
    longer = after(*[100.0] * 60, *[2000.0] * 4)
    assert learned.worth_writing(status, longer, later)
    assert not learned.worth_writing(status, longer, soon)


def test_steady_load_is_written_once_and_then_not_again() -> None:
    memory = lived(3600, 3.0)
    assert learned.worth_writing(None, memory, NOW)
    status = learned.to_status(memory, NOW)
    later = lived(3000, 3.0, memory, at=3600)
    # A quarter of an hour of the day is known that was not: the rest of it says nothing new.
    known = status.model_copy(update={"day_milli": learned.to_status(later, NOW).day_milli})
    assert not learned.worth_writing(known, later, NOW + timedelta(hours=1))


def test_a_change_of_a_tenth_is_written_but_not_within_five_minutes() -> None:
    status = learned.to_status(lived(3600, 3.0), NOW)
    slower = status.model_copy(
        update={"requests_per_replica_milli": round(status.requests_per_replica_milli * 0.8)}
    )
    memory = lived(3600, 3.0)
    assert not learned.worth_writing(slower, memory, NOW + timedelta(seconds=299))
    assert learned.worth_writing(slower, memory, NOW + timedelta(seconds=300))
    assert not learned.worth_writing(status, memory, NOW + timedelta(seconds=300))


@settings(max_examples=100)
@given(
    numbers=st.lists(st.integers(-(10**15), 10**15), max_size=96),
    rates=st.tuples(*[st.integers(-5, 10**15)] * 3),
)
def test_whatever_the_status_says_a_memory_comes_of_it(
    numbers: list[int], rates: tuple[int, int, int]
) -> None:
    status = LearnedStatus(
        at="2026-11-21T12:00:00Z",
        requests_per_replica_milli=rates[0],
        tokens_per_replica_milli=rates[1],
        full_in_flight=rates[2],
        idle_milli=numbers[:30],
        day_milli=numbers,
        margins_percent=numbers[:4],
        losses_milli=numbers[4:8],
    )
    memory = learned.from_status(status)
    now = reading(100.0, 1.0)
    size = sizing.size(sizing.learn(memory, now, RULES), now, RULES)
    assert 1 <= size.wanted <= 100


class Tracked(World):
    """A world whose observations carry what was learned."""

    memory: Memory | None = None
    rate = 0.0
    age_s = 0.0

    def observe(self) -> object:  # type: ignore[override]  # the same value, with one field more
        seen = super().observe()
        if self.memory is None:
            return seen
        at = self.now.timestamp() - self.age_s
        return replace(seen, learned=Learned(self.memory, reading(at, self.rate)))


def tracked(**scaling: object) -> Tracked:
    made = world(scaling={"maxReplicas": 6, "targetRunning": 8, **scaling})
    return Tracked(**{k: getattr(made, k) for k in made.__dataclass_fields__})


def test_what_is_foreseen_adds_replicas_before_the_targets_would() -> None:
    w = tracked()
    w.streams = 2
    w.run(120)
    assert w.total == 1
    w.memory, w.rate = lived(7200, 6.0, at=w.now.timestamp() - 7200), 6.0
    w.run(300)
    assert w.total >= 3  # 6 requests/s at 2 each, and a margin
    assert w.status.last_decision is not None
    assert "expected by" in w.status.last_decision.reason
    assert w.status.learned is not None


def test_what_is_foreseen_keeps_a_replica_that_the_targets_would_give_back() -> None:
    w = tracked(minReplicas=0)
    w.streams = 20
    w.run(200)
    assert w.total == 3
    w.memory, w.rate = lived(7200, 5.0, at=w.now.timestamp() - 7200), 5.0
    w.streams = 1
    w.run(1200)
    assert w.total >= 3
    w.memory = None
    w.run(1200)
    assert w.total == 1


def test_an_old_reading_and_an_unjudged_forecast_foresee_nothing() -> None:
    for age_s, memory in (
        (READING_COUNTS_S + 1, lived(7200, 6.0)),
        (0.0, replace(lived(7200, 6.0), forecaster=forecast.Forecaster())),
    ):
        w = tracked()
        w.streams = 2
        w.memory, w.rate, w.age_s = memory, 6.0, age_s
        w.run(300)
        assert w.total == 1


def test_in_steady_load_nothing_is_written_however_long_it_is_learned() -> None:
    w = tracked()
    w.streams = 2
    w.memory, w.rate = lived(7200, 1.0), 1.0
    w.run(400)
    writes = len(w.writes)
    w.run(1800)
    assert w.writes[writes:] == []


def strained(n: float, share: float) -> Evidence:
    """Of an engine that breaks the objective with n requests in flight and keeps it with one."""
    evidence = Evidence()
    for _ in range(60):
        paces = [Pace(1, 10, 1.0, max(share, 0.9)), Pace(n, 10, 1.0, share)]
        evidence = slo.observe(evidence, paces, 10, SLO)
    return evidence


def test_an_objective_that_is_broken_adds_replicas_and_the_status_says_where() -> None:
    w = tracked(slo={}, targetRunning=64)
    w.streams = 30
    w.memory, w.rate = replace(lived(7200, 1.0), evidence=strained(16, 0.5)), 1.0
    # one in flight breaks it in a tenth of the time: that is hopeless, and adds none
    assert slo.limit(w.memory.evidence).hopeless
    w.run(300)
    assert w.total == 1
    assert w.status.learned is not None
    assert w.status.learned.full_in_flight == learned.HOPELESS
    good = [Pace(1, 10, 1.0, 1.0)] * 200
    w.memory = replace(w.memory, evidence=slo.observe(w.memory.evidence, good, 10, SLO))
    w.run(400)
    assert w.total == 3  # 30 in flight, 11 each
    assert w.status.learned.full_in_flight == 11


def test_without_an_objective_latencies_add_nothing() -> None:
    w = tracked(targetRunning=64)
    w.streams = 30
    evidence = slo.observe(strained(16, 0.5), [Pace(1, 10, 1.0, 1.0)] * 200, 10, SLO)
    w.memory, w.rate = replace(lived(7200, 1.0), evidence=evidence), 1.0
    w.run(300)
    assert w.total == 1


@pytest.mark.parametrize(("asked", "sleeps_after_s"), [("idleTimeout", 600), ("learned", 60)])
def test_a_tier_sleeps_by_its_idle_times_only_if_it_asks_for_that(
    asked: str, sleeps_after_s: float
) -> None:
    w = tracked(sleepAfter=asked)
    long = idle.IdleTimes()
    for _ in range(20):
        long = idle.observe(long, 7200)
    w.memory = Memory(idle_times=long)
    w.streams = 1
    w.run(120)
    assert w.total == 1
    w.streams = 0
    w.run(sleeps_after_s - 35)
    assert w.total == 1
    w.run(45)
    assert w.total == 0


def test_idle_times_never_delay_sleep_beyond_the_idle_timeout() -> None:
    w = tracked(sleepAfter="learned", idleTimeout="100s")
    short = idle.IdleTimes()
    for _ in range(20):
        short = idle.observe(short, 80)
    w.memory = Memory(idle_times=short)
    w.streams = 1
    w.run(120)
    w.streams = 0
    w.run(80)
    assert w.total == 1
    w.run(30)
    assert w.total == 0


def test_a_cache_without_room_adds_a_replica_although_nothing_waits() -> None:
    w = tracked(targetRunning=64)
    w.streams = 20
    w.memory, w.rate = lived(7200, 0.5), 0.5
    w.run(300)
    assert w.total == 1
    evidence = Evidence()
    for _ in range(60):
        paces = [Pace(8, 10, None, None, True), Pace(20, 10, None, None, False)]
        evidence = slo.observe(evidence, paces, 10, None)
    w.memory = replace(w.memory, evidence=evidence)
    w.run(300)
    assert w.total == 2  # 16 each
    assert w.status.learned is not None
    assert w.status.learned.full_in_flight == 16


def test_what_is_foreseen_is_added_at_once_within_the_step_allowed() -> None:
    w = tracked(scaleUp={"maxStep": 2})
    w.streams = 2
    w.run(120)
    w.memory, w.rate = lived(7200, 6.0, at=w.now.timestamp() - 7200), 6.0
    w.run(2)
    assert w.total == 3, "two at once, without waiting a minute"


def test_a_long_queue_asks_for_no_more_while_what_was_foreseen_for_it_starts() -> None:
    w = tracked(maxReplicas=6, targetWaiting=1)
    w.streams = 2
    w.run(120)
    w.memory, w.rate = lived(7200, 2.0, at=w.now.timestamp() - 7200), 2.0
    w.run(60)
    at = w.total
    w.load_s, w.per_replica, w.streams = 400, 1, 2 * at + 1
    w.run(200)
    assert w.total == at + 1, "its length asks once,"
    w.streams = 30
    w.run(180)
    assert w.total == at + 1, "and not again while that one starts"
    w.memory = None
    w.run(70)
    assert w.total == 6, "without experience the targets alone decide"


def test_what_was_spare_for_long_enough_goes_in_one_step() -> None:
    w = tracked()
    w.streams = 40
    w.run(300)
    assert w.total == 5
    memory = lived(7200, 1.0, at=w.now.timestamp() - 7200)
    w.memory, w.rate = replace(memory, spare_s=0.0), 1.0
    w.streams = 1
    w.run(1200)
    assert w.total == 5, "nothing was spare for long enough"
    w.memory = replace(w.memory, spare_s=sizing.SPARE_S)
    w.run(60)
    assert w.total == 1
    assert w.status.last_decision is not None
    assert "down by 4 to 1" in w.status.last_decision.reason
