"""The autoscale simulator: exact lateness, what is paid, and the baselines in their known order."""

from __future__ import annotations

import math
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spotinference import errors
from spotinference.simulate import autoscale_service, autoscale_workload
from spotinference.simulate.autoscale import (
    Action,
    Outcome,
    Setup,
    Signals,
    flaps,
    late_requests,
    replay,
)
from spotinference.simulate.autoscale_policies import Hpa, Planned
from spotinference.simulate.autoscale_run import POLICIES, run
from spotinference.simulate.autoscale_service import ConstantRate
from spotinference.simulate.autoscale_workload import Arrivals, Bin, spread

TICK = 5.0
SETUP = Setup(ConstantRate(2.0), cold_start_s=480.0)


def steady(rate: float, seconds: float) -> Arrivals:
    n = round(seconds / TICK)
    return Arrivals(TICK, [rate * TICK] * n, [0.0] * n, [0.0] * n)


class Held:
    """Always the same number."""

    every_s = 15.0

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted

    def decide(self, signals: Signals) -> int:
        return self.wanted


def by_day(days: int = 2, seed: int = 1) -> Arrivals:
    """A day's wave between 2 and 22 requests/s with noise."""
    rng = random.Random(seed)
    n = round(days * 86_400 / TICK)
    counts = []
    for i in range(n):
        rate = 12 + 10 * math.sin(2 * math.pi * i * TICK / 86_400)
        mean = rate * TICK
        counts.append(float(max(0, round(rng.gauss(mean, 1.5 * mean**0.5)))))
    return Arrivals(TICK, counts, [0.0] * n, [0.0] * n)


def test_a_replica_is_paid_from_its_launch_and_serves_one_cold_start_later() -> None:
    line = replay(steady(1.0, 1200), replace(SETUP, least=3), Held(3))
    assert (line.paid[0], line.ready[0]) == (3, 3)
    line = replay(steady(1.0, 1200), SETUP, Held(4))
    assert line.paid[0] == 4
    assert line.ready[0] == 1
    assert line.ready[round(480 / TICK) - 1] == 1
    assert line.ready[round(480 / TICK)] == 4


def test_launches_are_called_off_from_the_newest_on() -> None:
    plan = Planned([1, 4, 9, 6, 2], every_s=TICK)
    line = replay(steady(1.0, 60), replace(SETUP, cold_start_s=30.0), plan)
    assert line.paid == [1, 4, 9, 6, 2, 2, 2, 2, 2, 2, 2, 2]
    assert line.ready == [1] * 7 + [2] * 5  # one of those launched at 5 s


def test_a_million_launched_at_once_take_no_memory() -> None:
    arrivals = steady(1.0, 60)
    tracemalloc.start()
    line = replay(arrivals, replace(SETUP, cold_start_s=30.0), Held(1_000_000))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line.ready[-1] == 1_000_000
    assert most < 1_000_000


def test_those_that_wait_exactly_longer_than_allowed_are_late() -> None:
    # 4 requests/s for 100 s on 2 requests/s: the wait grows as fast as time passes, so what
    # arrives in the first 10 s waits no more than 10 s; then the backlog of 200 drains.
    burst = Arrivals(TICK, [20.0] * 20 + [0.0] * 40, [0.0] * 60, [0.0] * 60)
    line = replay(burst, replace(SETUP, most=1), Held(1))
    assert sum(line.late) == pytest.approx(4 * 90)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    size=st.integers(1, 4),
    late_after=st.floats(1.0, 60.0),
)
def test_fluid_lateness_equals_following_each_drop(
    counts: list[int], size: int, late_after: float
) -> None:
    works = [count / 2 for count in counts]
    work_in, work_out = [0.0], [0.0]
    for work in [*works, *[0.0] * 100]:
        work_in.append(work_in[-1] + work)
        work_out.append(min(work_in[-1], work_out[-1] + size * TICK))
    late = late_requests([float(c) for c in counts], work_in, work_out, late_after / TICK)
    drops = 400
    for i, count in enumerate(counts):
        found = 0
        for k in range(drops):
            at = i + (k + 0.5) / drops
            arrived = work_in[i] + (at - i) * (work_in[i + 1] - work_in[i])
            due = at + late_after / TICK
            whole = int(due)
            served = work_out[whole] + (due - whole) * (work_out[whole + 1] - work_out[whole])
            found += served < arrived - 1e-9
        assert late[i] == pytest.approx(count * found / drops, abs=0.02 * count + 1e-6)


def test_scoring_a_part_leaves_out_what_came_before_but_not_what_was_learned() -> None:
    arrivals = steady(3.0, 7200)
    whole, _ = run("static-peak", arrivals, SETUP)
    half, _ = run("static-peak", arrivals, replace(SETUP, first=0.5))
    assert half.requests == pytest.approx(whole.requests / 2)
    assert half.replica_hours == pytest.approx(whole.replica_hours / 2, rel=0.01)
    assert half.scale_actions_per_hour == 0


def test_turning_back_soon_is_a_flap_and_later_is_not() -> None:
    up, down = Action(0, 1, 3), Action(1800, 3, 2)
    assert flaps([up, down]) == 1
    assert flaps([up, replace(down, at_s=1801)]) == 0
    assert flaps([up, Action(60, 3, 4)]) == 0


def test_the_baselines_stand_in_their_published_order() -> None:
    arrivals = by_day()
    found: dict[str, Outcome] = {name: run(name, arrivals, SETUP)[0] for name in POLICIES}
    hours = {name: outcome.replica_hours for name, outcome in found.items()}
    late = {name: outcome.late_fraction for name, outcome in found.items()}
    # Waiting alone runs away when the cold start is long; utilisation does not.
    assert hours["keda-waiting"] > 5 * hours["hpa"]
    assert late["keda-waiting"] > 0.1
    assert late["oracle"] < 0.001
    assert hours["oracle"] < hours["hpa"]
    assert late["static-peak"] < 0.001
    assert hours["static-peak"] > hours["oracle"]


def test_ours_is_late_a_third_as_often_as_hpa_for_no_more_hours_and_with_half_the_changes() -> None:
    arrivals = by_day(days=4, seed=5)
    per_day = round(86_400 / TICK)
    # Every morning at nine the load more than doubles, and falls back an hour later.
    for i in range(len(arrivals.requests)):
        if per_day * 9 // 24 <= i % per_day < per_day * 10 // 24:
            arrivals.requests[i] = round(2.2 * arrivals.requests[i])
    second = replace(SETUP, first=0.5)
    ours, hpa = run("ours", arrivals, second)[0], run("hpa", arrivals, second)[0]
    operator = run("operator", arrivals, second)[0]
    assert operator.late_fraction <= hpa.late_fraction / 2, "within its steps"
    assert operator.replica_hours <= 1.1 * hpa.replica_hours
    assert operator.scale_actions_per_hour <= 0.6 * hpa.scale_actions_per_hour
    assert hpa.late_fraction > 0.01
    assert ours.late_fraction <= hpa.late_fraction / 3
    assert ours.replica_hours <= 1.1 * hpa.replica_hours
    assert ours.scale_actions_per_hour <= 0.6 * hpa.scale_actions_per_hour


def test_no_policy_leaves_the_tiers_bounds() -> None:
    for name in POLICIES:
        line = run(name, by_day(1), replace(SETUP, least=2, most=5))[1]
        assert set(line.paid) <= set(range(2, 6)), name


def test_a_sleeping_tier_is_woken_by_a_request_and_sleeps_again() -> None:
    counts = [0.0] * 2000
    counts[0] = counts[1000] = 1.0
    arrivals = Arrivals(TICK, counts, [0.0] * 2000, [0.0] * 2000)
    outcome, line = run("ours", arrivals, replace(SETUP, least=0))
    assert outcome.wakes == 1
    assert line.paid[-1] == 0
    assert sum(line.late) == 1.0


def test_a_sleeping_tier_is_not_woken_by_a_forecast_that_fades() -> None:
    rates = [5.0] * 720 + [0.0] * 720
    arrivals = Arrivals(TICK, [rate * TICK for rate in rates], [0.0] * 1440, [0.0] * 1440)
    outcome, line = run("ours", arrivals, replace(SETUP, least=0))
    assert outcome.wakes == 0
    assert [a.after for a in line.actions].count(0) == 1
    assert line.paid[-1] == 0


def test_a_replica_that_becomes_ready_after_the_end_still_serves_who_waits() -> None:
    counts = [0.0] * 100
    counts[97] = 1.0  # decided at 490 s, ready at 510 s: it waits 25 s
    arrivals = Arrivals(TICK, counts, [0.0] * 100, [0.0] * 100)
    setup = replace(SETUP, least=0, cold_start_s=20.0, late_after_s=60.0)
    assert run("ours", arrivals, setup)[0].late == 0
    assert run("ours", arrivals, replace(setup, late_after_s=15.0))[0].late == 1


def test_bins_that_were_empty_may_be_left_out(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [(10 * i, rng.randint(1, 60) if rng.random() < 0.1 else 0) for i in range(500)]
    rows = [(0, 5), (10, 5), *rows[2:-1], (4990, 5)]
    found = []
    for name, kept in (("all", rows), ("some", [row for row in rows if row[1]])):
        path = tmp_path / f"{name}.csv"
        lines = [f"{at},{n},{9 * n},{9 * n}" for at, n in kept]
        path.write_text("\n".join(["start_s,requests,prompt_tokens,output_tokens", *lines]))
        found.append(spread(autoscale_workload.load(path), TICK))
    assert found[0].requests == found[1].requests


def test_bins_that_all_differ_end_where_the_next_begins(tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    starts = (0, 50, 110, 180)
    lines = [f"{at},1,1,1" for at in starts]
    path.write_text("\n".join(["start_s,requests,prompt_tokens,output_tokens", *lines]))
    assert [b.end_s for b in autoscale_workload.load(path)] == [50, 110, 170, 240]


def test_an_hpa_without_a_ready_pod_leaves_the_number_as_it_is() -> None:
    hpa = Hpa()
    blind = Signals(0, 0, 0, 0, 0, 0, 0, 9, 0, 8, ready=0, starting=5)
    wanted = {hpa.decide(replace(blind, at_s=15.0 * i)) for i in range(60)}
    assert wanted == {5}


def test_whole_requests_stay_whole_and_none_is_lost() -> None:
    sparse = spread([Bin(0, 600, 3, 300, 30), Bin(600, 1200, 0, 0, 0)], TICK)
    assert sorted(set(sparse.requests)) == [0.0, 1.0]
    assert sum(sparse.requests) == 3
    assert sum(sparse.prompt_tokens) == pytest.approx(300)


@settings(max_examples=50, deadline=None)
@given(
    bins=st.lists(st.floats(0, 1e4), min_size=2, max_size=30),
    width=st.sampled_from([0.7, 1.0, 10.0, 60.0, 601.0]),
)
def test_spreading_keeps_every_request_and_token(bins: list[float], width: float) -> None:
    rows = [Bin(i * width, (i + 1) * width, n, 2 * n, 3 * n) for i, n in enumerate(bins)]
    found = spread(rows, TICK)
    assert sum(found.requests) == pytest.approx(sum(bins))
    assert sum(found.output_tokens) == pytest.approx(3 * sum(bins))
    assert min(found.requests) >= 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "column start_s is missing"),
        ("start_s,requests,prompt_tokens\n0,1,1\n", "column output_tokens is missing"),
        (
            "start_s,requests,prompt_tokens,output_tokens\n0,1,1,1\n",
            "fewer than two bins",
        ),
        (
            "start_s,requests,prompt_tokens,output_tokens\n0,-1,1,1\n9,1,1,1\n",
            "line 2: requests is '-1'",
        ),
        (
            "start_s,requests,prompt_tokens,output_tokens\n0,1,1,nan\n9,1,1,1\n",
            "line 2: output_tokens is 'nan'",
        ),
        (
            "start_s,requests,prompt_tokens,output_tokens\n9,1,1,1\n0,1,1,1\n",
            "line 3: start_s is 0 after 9",
        ),
        (
            f"start_s,requests,prompt_tokens,output_tokens\n0,1,1,{'1' * 200_000}\n9,1,1,1\n",
            "line 2: field larger than field limit",
        ),
    ],
)
def test_a_wrong_workload_file_is_refused_by_its_line_and_column(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "load.csv"
    path.write_text(text)
    with pytest.raises(errors.ConfigInvalid, match=said):
        autoscale_workload.load(path)


HEAD = "model,hardware,prompt_size,batch_size,token_size,prompt_time,token_time,e2e_time,tensor_parallel"


def test_measured_times_in_either_unit_give_the_same_service(tmp_path: Path) -> None:
    seconds, millis = tmp_path / "s.csv", tmp_path / "ms.csv"
    rows = [(512, 1, 0.03, 0.010), (512, 8, 0.03, 0.016), (1024, 1, 0.06, 0.010)]
    for path, unit in ((seconds, 1.0), (millis, 1000.0)):
        lines = [
            f"m,g,{size},{batch},128,{first * unit},{each * unit},{(first + 128 * each) * unit},2"
            for size, batch, first, each in rows
        ]
        path.write_text("\n".join([HEAD, *lines]))
    one, two = autoscale_service.load(seconds), autoscale_service.load(millis, "m/g/2")
    for a, b in ((one.prompt_s, two.prompt_s), (one.token_s, two.token_s)):
        assert [v for p in a for v in p] == pytest.approx([v for p in b for v in p])
    # one request of 512 + 100: its prefill, and its share of a batch of eight
    assert one.work(1, 512, 100) == pytest.approx(0.03 + 100 * 0.016 / 8)
    assert one.running(1.0) == 8
    assert 0 < one.running(0.5) < 8 * 0.5
    with pytest.raises(errors.ConfigInvalid, match="m/g/2"):
        autoscale_service.load(seconds, "m/g/4")
