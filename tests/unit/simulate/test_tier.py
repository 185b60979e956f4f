"""A tier replayed whole: the operator decides, the bill adds up, and nothing is left out of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from spotinference.api.kinds import DEPLOYMENT
from spotinference.api.pool import PoolSpec
from spotinference.api.tier import TierSpec
from spotinference.core.observed import Market
from spotinference.core.reconcile import decide
from spotinference.simulate import autoscale_policies, rivals, tier
from spotinference.simulate.autoscale_service import ConstantRate
from spotinference.simulate.autoscale_workload import Arrivals
from spotinference.simulate.machines import Machines
from spotinference.simulate.operated import Operated
from spotinference.simulate.tier import Outcome, Setup
from spotinference.simulate.traces import Zone
from spotinference.simulate.traffic import Traffic

TICK_S = 10.0
HOUR = 360
"""ticks"""


def setup(
    requests: list[float],
    *,
    capacity: dict[str, list[int]] | None = None,
    scaling: dict[str, object] | None = None,
    notice_s: int = 0,
    speed: float = 1.0,
) -> Setup:
    """Two spot zones at $1 and an on-demand pool at $3 an hour; `capacity` in steps of 300 s."""
    pools = {
        "spot": PoolSpec.model_validate(
            {
                "capacityType": "spot",
                "zones": ["a", "b"],
                "noticeSeconds": notice_s,
                "price": {"microUSDPerHour": 1_000_000},
            }
        ),
        "steady": PoolSpec.model_validate(
            {
                "capacityType": "on-demand",
                "zones": ["a"],
                "price": {"microUSDPerHour": 3_000_000},
            }
        ),
    }
    spec = TierSpec.model_validate(
        {
            "model": {"source": "hf://acme/tiny"},
            "placement": {"pools": ["spot", "steady"]},
            "scaling": {"maxReplicas": 4, "idleTimeout": "5m", **(scaling or {})},
        }
    )
    traces = {
        Market("spot", zone): Zone(zone, 300.0, tuple(values))
        for zone, values in (capacity or {}).items()
    }
    arrivals = Arrivals(TICK_S, requests, [100 * r for r in requests], [50 * r for r in requests])
    return Setup(
        spec, pools, traces, arrivals, ConstantRate(1.0, 20.0), boot_s=60, load_s=60, speed=speed
    )


def ours(s: Setup) -> Outcome:
    return tier.replay(s, Operated(s.spec, s.pools))


def test_a_tier_that_nobody_asks_costs_nothing() -> None:
    outcome = ours(setup([0.0] * HOUR))
    assert (outcome.usd, outcome.launches, outcome.wakes) == (0, 0, 0)


def test_a_request_wakes_it_and_it_falls_asleep_again() -> None:
    outcome = ours(setup([0.0] * 10 + [3.0] + [0.0] * (2 * HOUR)))
    assert outcome.wakes == 1
    assert outcome.tally.begun == outcome.tally.parked == 3
    assert 0 < outcome.paid_s < 1200  # the wake, five idle minutes, the node's last minute
    assert outcome.timeline[-1].ready == {}


def test_a_tier_that_loses_all_its_replicas_does_not_wake() -> None:
    s = setup([1.0] * HOUR, capacity={"a": [1, 1, 0] * 4, "b": [0] * 12})
    outcome = ours(s)
    assert outcome.reclaims >= 3
    assert outcome.wakes == 1
    static, hedge = (tier.replay(s, rival) for rival in rivals.of(s))
    assert (static.wakes, hedge.wakes) == (0, 0)


def test_who_waits_too_long_at_the_end_is_late_although_never_begun() -> None:
    s = setup([50.0] * 30, scaling={"maxReplicas": 1})
    outcome = tier.replay(s, rivals.OnDemandStatic(Market("steady", "a"), 1))
    t = outcome.tally
    assert t.begun + t.refused < t.requests
    waited = t.requests - t.begun - t.refused
    assert t.late >= waited - 50, "all but those of the last tick or two"


def test_the_peak_is_found_with_ticks_of_minutes() -> None:
    s = setup([600.0] * 20)
    s = replace(s, arrivals=replace(s.arrivals, tick_s=120.0))
    assert rivals.peak(s) == 7  # 5 replicas' work per second, a fifth of them free


def test_every_dollar_has_a_line_and_a_capacity_type() -> None:
    s = setup(
        [8.0] * HOUR,
        capacity={
            "a": [2, 2, 0, 1, 2, 0, 2, 2, 0, 2, 2, 2],
            "b": [1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1],
        },
        scaling={"minReplicas": 1},
    )
    outcome = ours(s)
    assert outcome.reclaims > 0
    assert outcome.usd == pytest.approx(sum(outcome.by_capacity_type.values()))
    hours = outcome.by_capacity_type["spot"] / 1 + outcome.by_capacity_type.get("on-demand", 0) / 3
    assert outcome.paid_s / 3600 == pytest.approx(hours)
    assert all(usd >= 0 for usd in outcome.bill.values())
    assert outcome.bill["interruption"] > 0


def test_every_request_meets_its_end() -> None:
    s = setup([5.0] * HOUR + [0.0] * HOUR, capacity={"a": [1, 0] * 12, "b": [0, 1] * 12})
    t = ours(s).tally
    assert t.requests == 5 * HOUR
    assert t.begun + t.refused == pytest.approx(t.requests)
    assert t.continued > 0


def test_the_same_seed_gives_the_same_run() -> None:
    s = setup([5.0] * HOUR, capacity={"a": [2, 1] * 6, "b": [1, 2] * 6})
    first, second = ours(s), ours(s)
    assert first == second


def test_a_lost_replica_is_replaced_where_there_is_capacity() -> None:
    s = setup(
        [1.0] * HOUR,
        capacity={"a": [1] * 6 + [0] * 6, "b": [0] * 6 + [1] * 6},
        scaling={"minReplicas": 1, "maxReplicas": 1},
    )
    last = ours(s).timeline[-1]
    assert last.ready in ({Market("spot", "b"): 1}, {Market("steady", "a"): 1})


def test_faster_traces_are_as_good_as_shorter_gaps() -> None:
    steps = {"a": [1, 0, 1, 1, 0, 1], "b": [0, 1, 1, 0, 1, 0]}
    fast = setup([1.0] * 90, capacity=steps, scaling={"minReplicas": 1}, speed=2.0)
    outcome = ours(fast)
    short = setup([1.0] * 90, scaling={"minReplicas": 1})
    zones = {Market("spot", z): Zone(z, 150.0, tuple(v)) for z, v in steps.items()}
    again = ours(replace(short, capacity=zones))
    assert (outcome.usd, outcome.reclaims) == (again.usd, again.reclaims)
    assert outcome.reclaims > 0


class Checked(Operated):
    """Also asks the operator's whole `decide`, manifests and all, at each step."""

    asked = 0

    def act(self, now: float, machines: Machines, traffic: Traffic) -> None:
        self._learn(now, machines, traffic)
        plan = decide(self.observe(now, machines, traffic))
        super().act(now, machines, traffic)
        rendered = {
            Market(
                a.manifest["metadata"]["labels"]["spotinference.dev/pool"],
                a.manifest["metadata"]["labels"]["spotinference.dev/zone"],
            ): a.manifest["spec"]["replicas"]
            for a in (*plan.scales, *plan.applies)
            if a.kind is DEPLOYMENT
        }
        assert rendered.items() <= machines.sizes.items()
        if plan.status is not None:
            assert plan.status == self.status
        self.asked += len(rendered)


def test_what_was_replayed_is_what_the_operator_would_write() -> None:
    s = setup([6.0] * 60 + [0.0] * 60, capacity={"a": [2, 0, 1, 2], "b": [1, 2, 0, 1]})
    controller = Checked(s.spec, s.pools)
    tier.replay(s, controller)
    assert controller.asked > 0


def test_the_static_rival_has_the_peak_on_demand_all_the_time() -> None:
    s = setup([0.0] * 100 + [25.0] * 12 + [0.0] * 100)
    static = rivals.of(s)[0]
    outcome = tier.replay(s, static)
    assert rivals.peak(s) == math.ceil(2.5 / autoscale_policies.ORACLE_UTILISATION)
    assert outcome.by_capacity_type.keys() == {"on-demand"}
    assert outcome.usd == pytest.approx(4 * 3 * outcome.hours, rel=0.01)  # it acts after one tick
    assert outcome.tally.late == 0


def test_the_hedging_rival_holds_a_spare_on_spot_and_bridges_on_demand() -> None:
    s = setup([0.5] * HOUR, capacity={"a": [2] * 6 + [0] * 6, "b": [2] * 6 + [0] * 6})
    hedge = rivals.of(s)[1]
    outcome = tier.replay(s, hedge)
    middle = outcome.timeline[150].ready
    assert sum(n for m, n in middle.items() if m.pool == "spot") == 2
    assert outcome.timeline[-1].ready == {Market("steady", "a"): 1}


def test_the_hpa_of_the_hedging_rival_does_not_scale_by_launches_that_were_refused() -> None:
    s = setup([7.0] * HOUR, capacity={"a": [0] * 12, "b": [0] * 12})
    outcome = tier.replay(s, rivals.of(s)[1])
    # 70 % of one replica is what an HPA holds, once the first queue is gone.
    assert {sum(p.ready.values()) for p in outcome.timeline[HOUR // 2 :]} == {1}


def test_the_hourly_limit_of_a_tier_holds_in_its_replay() -> None:
    s = setup([8.0] * HOUR, capacity={"a": [1] * 12, "b": [1] * 12})
    limited = s.spec.placement.model_copy(update={"max_hourly_cost": 2_000_000})
    free = ours(s)
    outcome = ours(replace(s, spec=s.spec.model_copy(update={"placement": limited})))
    assert max(p.usd_per_h for p in free.timeline) > 2
    assert max(p.usd_per_h for p in outcome.timeline) == 2


def with_reserved(s: Setup) -> Setup:
    """A reserved pool at $1.80 beside the tier's own, for the comparison only."""
    body = {
        "capacityType": "reserved",
        "zones": ["a"],
        "price": {"microUSDPerHour": 1_800_000},
    }
    return replace(s, pools={**s.pools, "owned": PoolSpec.model_validate(body)})


def test_the_mixed_rival_stands_on_reserved_and_spot_and_follows_lost_nodes() -> None:
    s = with_reserved(
        setup([25.0] * HOUR, capacity={"a": [1] * 6 + [0] * 6, "b": [1] * 4 + [2] * 8})
    )
    mix = rivals.of(s)[2]
    outcome = tier.replay(s, mix)
    first, last = outcome.timeline[100].ready, outcome.timeline[-1].ready
    assert rivals.peak(s) == 4
    assert first == {Market("owned", "a"): 3, Market("spot", "a"): 1}
    assert last == {Market("owned", "a"): 3, Market("spot", "b"): 1}
    assert outcome.reclaims == 1


def test_the_mixed_rival_uses_on_demand_only_while_more_than_fifty_wait() -> None:
    jammed = [25.0] * 60 + [0.0] * (HOUR - 60)
    s = with_reserved(setup(jammed, capacity={"a": [0] * 12, "b": [0] * 12}))
    outcome = tier.replay(s, rivals.of(s)[2])
    steady = Market("steady", "a")
    helped = [p for p in outcome.timeline if p.ready.get(steady)]
    assert helped
    queued = [p.queued for p in outcome.timeline if p.at_s < helped[0].at_s]
    assert max(queued) > 50
    assert steady not in outcome.timeline[-1].ready
    calm = with_reserved(setup([2.0] * HOUR))
    assert "on-demand" not in tier.replay(calm, rivals.of(calm)[2]).by_capacity_type


def test_a_reserved_pool_for_comparison_is_not_used_by_ours() -> None:
    s = with_reserved(setup([8.0] * HOUR))
    assert "reserved" not in ours(s).by_capacity_type


def test_without_an_on_demand_pool_there_is_nobody_to_compare_with() -> None:
    s = setup([1.0])
    pools = {"spot": s.pools["spot"]}
    assert rivals.of(replace(s, pools=pools)) == []
