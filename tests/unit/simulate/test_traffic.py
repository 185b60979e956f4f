"""The fluid of requests: nothing is lost or made, first come is first served, bounds hold."""

from __future__ import annotations

import pytest

from spotinference.simulate.autoscale_service import ConstantRate
from spotinference.simulate.traffic import REREAD, Rules, Traffic

STEP_S = 10.0


def traffic(*, rate: float = 2.0, answer_s: float = 30.0, **rules: float) -> Traffic:
    chosen = {"cap_s": 600.0, "max_parked": 1000, "late_after_s": 10.0, **rules}
    return Traffic(
        ConstantRate(rate, rate * answer_s),
        Rules(chosen["cap_s"], int(chosen["max_parked"]), chosen["late_after_s"]),
    )


def arrive(t: Traffic, now: float, count: float, *, awake: bool = True) -> None:
    t.arrive(now, count, 100 * count, 50 * count, awake=awake)


def whole(t: Traffic) -> float:
    """Requests that have met some end, or still wait."""
    waiting = sum(w.count for w in t.waiting if not w.cut)
    return t.tally.begun + t.tally.refused + waiting


def test_a_replica_begins_what_its_rate_allows_and_the_rest_waits() -> None:
    t = traffic()
    arrive(t, 0, 50)
    t.step(0, STEP_S, ["a"], ["a"])
    assert t.tally.begun == 20
    assert t.queued == 30
    t.step(10, STEP_S, ["a"], ["a"])
    t.step(20, STEP_S, ["a"], ["a"])
    assert t.tally.begun == 50
    assert t.tally.late == 10  # those that waited 20 s; 10 s is not late
    assert t.tally.output_tokens == pytest.approx(50 * 50)


def test_an_idle_replica_saves_up_nothing() -> None:
    t = traffic()
    for now in range(0, 100, 10):
        t.step(now, STEP_S, ["a"], ["a"])
    arrive(t, 100, 100)
    t.step(100, STEP_S, ["a"], ["a"])
    assert t.tally.begun == 20


def test_a_request_longer_than_a_step_is_paid_off_later() -> None:
    t = traffic(rate=0.05, answer_s=20)  # one request takes 20 s of the replica
    arrive(t, 0, 3)
    begun = []
    for now in range(0, 60, 10):
        t.step(now, STEP_S, ["a"], ["a"])
        begun.append(t.tally.begun)
    assert begun == [1, 1, 2, 2, 3, 3]


def test_two_replicas_share_the_work() -> None:
    t = traffic()
    arrive(t, 0, 40)
    t.step(0, STEP_S, ["a", "b"], ["a", "b"])
    assert t.running("a") == t.running("b") == 20


def test_without_a_replica_requests_are_parked_up_to_the_bound_and_to_the_cap() -> None:
    t = traffic(max_parked=30, cap_s=60)
    arrive(t, 0, 50, awake=False)
    t.step(0, STEP_S, [], [])
    assert (t.tally.parked, t.tally.refused, t.queued) == (30, 20, 30)
    t.step(60, STEP_S, [], [])
    assert (t.tally.refused, t.queued) == (50, 0)
    assert whole(t) == t.tally.requests


def test_the_answers_of_a_lost_replica_go_on_first_elsewhere() -> None:
    t = traffic()
    arrive(t, 0, 20)
    t.step(0, STEP_S, ["a"], ["a"])
    arrive(t, 10, 20)
    t.step(10, STEP_S, ["b"], ["b"])
    assert t.tally.continued == 20
    assert t.tally.begun == 20 + 18  # reading them again took a tenth of 20 requests' work
    assert t.shares("b") == pytest.approx((1 - REREAD, REREAD))
    assert t.running("b") == 38


def test_an_answer_that_finds_no_replica_before_the_cap_is_cut() -> None:
    t = traffic(cap_s=60)
    arrive(t, 0, 20)
    t.step(0, STEP_S, ["a"], ["a"])
    t.step(10, STEP_S, [], [])
    t.step(70, STEP_S, [], [])
    assert (t.tally.cut, t.tally.refused, t.queued) == (20, 0, 0)


@pytest.mark.parametrize("answer_s", [4.0, 10.0, 15.0, 30.0, 47.0])
def test_as_many_run_as_come_in_the_time_of_an_answer(answer_s: float) -> None:
    t = traffic(answer_s=answer_s)
    for now in range(0, 600, 10):
        arrive(t, now, 10)
        t.step(now, STEP_S, ["a"], ["a"])
    assert t.running("a") == pytest.approx(1.0 * answer_s)
    assert t.tally.finished + t.running("a") == pytest.approx(t.tally.begun)


def test_a_doomed_replica_finishes_what_it_has_and_gets_nothing_new() -> None:
    t = traffic()
    arrive(t, 0, 20)
    t.step(0, STEP_S, ["a", "b"], ["a", "b"])
    arrive(t, 10, 10)
    t.step(10, STEP_S, ["b"], ["a", "b"])
    assert (t.running("a"), t.running("b")) == (10, 20)
    t.step(50, STEP_S, ["b"], ["a", "b"])
    assert t.running("a") == 0
    assert t.tally.continued == 0
