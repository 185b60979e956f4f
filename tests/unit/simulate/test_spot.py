"""The spot simulator: its markets and its bill, the baselines, and what `ours` must not know."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import ClassVar

import pytest

from spotinference.simulate import bound, placement
from spotinference.simulate.placement import Question
from spotinference.simulate.spot import ON_DEMAND, Orders, Replay, Rules, View
from spotinference.simulate.traces import Window, Zone, windows

RULES = Rules(replicas=2, cold_start_s=60, on_demand_ratio=3)


def zone(name: str, *capacity: int, gap_s: float = 300) -> Zone:
    return Zone(name, gap_s, capacity)


@dataclass
class Script:
    """Orders by tick; remembers what it was shown."""

    remembers: ClassVar[bool] = False

    orders: dict[int, Orders]
    views: list[View] = field(default_factory=list)

    def decide(self, view: View) -> Orders:
        self.views.append(
            View(view.now_s, [replace(h) for h in view.held], [*view.reclaimed], [*view.failed])
        )
        return self.orders.get(len(self.views) - 1, Orders())


def replay(capacity: list[int], orders: dict[int, Orders]) -> tuple[Replay, Script]:
    script = Script(orders)
    window = Window(0.0, 30.0, tuple((c,) for c in capacity))
    return Replay(RULES, window, script, Random(0)), script


def test_a_replica_is_paid_from_its_launch_and_ready_after_its_cold_start() -> None:
    run, script = replay([1] * 4, {0: Orders([0, ON_DEMAND])})
    tally = run.run()
    assert [h.ready for h in script.views[1].held] == [False, False]
    assert (tally.spot_ticks, tally.on_demand_ticks) == (4, 4)
    assert tally.counted == 2
    assert tally.available == 2
    assert tally.cost(RULES) == pytest.approx((4 + 3 * 4) / (4 * 2 * 3))


def test_a_launch_without_capacity_fails_at_no_cost_and_is_known_a_tick_later() -> None:
    run, script = replay([1, 1], {0: Orders([0, 0])})
    tally = run.run()
    assert (tally.launches, tally.launch_failures, tally.spot_ticks) == (1, 1, 2)
    assert list(script.views[1].failed) == [0]


def test_a_zone_takes_back_its_surplus_and_the_seed_says_which() -> None:
    run, script = replay([3, 3, 1], {0: Orders([0, 0, 0])})
    assert run.run().preemptions == 2
    assert len(script.views[2].reclaimed) == 2
    again, same = replay([3, 3, 1], {0: Orders([0, 0, 0])})
    again.run()
    assert [h.id for h in same.views[2].reclaimed] == [h.id for h in script.views[2].reclaimed]


def test_a_terminated_replica_costs_nothing_more() -> None:
    run, _ = replay([1] * 4, {0: Orders([0]), 2: Orders(terminations=[0])})
    assert run.run().spot_ticks == 2


@pytest.mark.parametrize("policy", placement.POLICIES)
def test_with_capacity_everywhere_for_ever_every_policy_keeps_the_promise(policy: str) -> None:
    zones = [zone(name, *[4] * 40) for name in ("us-east-1a", "us-east-1b", "us-west-2a")]
    result = placement.answer(
        Question(policy, zones, RULES, windows=2, window_hours=1.5, history_hours=1)
    )
    assert result.availability > 0.97
    assert result.cost < 1.2


@pytest.mark.parametrize("policy", [p for p in placement.POLICIES if p != "bound"])
def test_no_policy_knows_the_future(policy: str) -> None:
    """Two traces alike up to an hour: up to there every decision is the same."""
    past = [3, 1, 0, 2, 2, 1, 3, 0, 1, 2, 2, 3]
    bills = []
    for future in ([0] * 12, [4] * 12):
        zones = [zone("us-east-1a", *past, *future), zone("us-west-2a", *past[::-1], *future)]
        question = Question(policy, zones, RULES)
        (window,) = windows(zones, count=1, hours=2, share=(0, 1), tick_s=30)
        run = Replay(RULES, window, placement.policy_of(question), Random(7))
        for _ in range(120):
            run.step()
        bills.append((run.tally, run.held))
    assert bills[0] == bills[1]


def test_the_same_seed_gives_the_same_answer() -> None:
    zones = [zone(n, *([3, 1, 0, 2] * 20)) for n in ("us-east-1a", "us-west-2a")]
    question = Question("ours", zones, RULES, windows=3, window_hours=2, history_hours=1, seed=5)
    assert placement.answer(question).as_json() == placement.answer(question).as_json()


def test_the_history_is_not_counted_and_the_replicas_start_afresh() -> None:
    zones = [zone("us-east-1a", *[4] * 48), zone("us-west-2a", *[4] * 48)]
    (window,) = windows(zones, count=1, hours=1, share=(0.75, 1), tick_s=30, history_hours=2)
    assert (window.history, len(window.capacity)) == (240, 360)
    run = Replay(RULES, window, placement.policy_of(Question("ours", zones, RULES)), Random(0))
    tally = run.run()
    assert tally.ticks == 120
    assert tally.counted == 118


def test_the_bound_pays_spot_where_it_lasts_and_on_demand_where_it_does_not() -> None:
    steady = Window(0.0, 30.0, tuple((2,) for _ in range(100)))
    tally = bound.bound(RULES, steady)
    assert (tally.spot_ticks, tally.on_demand_ticks) == (200, 0)
    flickering = Window(0.0, 30.0, tuple((2 if i % 3 else 0,) for i in range(100)))
    assert bound.bound(RULES, flickering).spot_ticks == 0


def test_the_bound_launches_early_enough_to_hand_over_without_a_gap() -> None:
    capacity = tuple((1 if i < 60 else 0, 1 if i >= 50 else 0) for i in range(100))
    tally = bound.bound(Rules(1, 60, 3), Window(0.0, 30.0, capacity))
    assert (tally.spot_ticks, tally.on_demand_ticks) == (102, 0)


@pytest.mark.parametrize("policy", [p for p in placement.POLICIES if p != "on-demand"])
def test_nobody_is_cheaper_than_the_bound_at_full_availability(policy: str) -> None:
    capacity = [2, 2, 1, 0, 2, 2, 2, 1, 2, 2, 0, 2] * 4
    zones = [zone("us-east-1a", *capacity), zone("us-west-2a", *capacity[3:], *capacity[:3])]
    ask = Question(policy, zones, RULES, windows=1, window_hours=4)
    best = placement.answer(Question("bound", zones, RULES, windows=1, window_hours=4))
    got = placement.answer(ask)
    assert got.availability < 1 or got.cost >= best.cost - 1e-9
