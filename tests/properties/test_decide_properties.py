"""Random edits, reclaims, refusals, samples and demand against `decide` in a simulated cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spotinference.api.pool import PriceSpec
from spotinference.core.observed import Market
from spotinference.core.plan import Plan
from tests.support.world import World, world

STEP_S = 5
EXAMPLES = int(os.environ.get("SPOTINFERENCE_TEST_EXAMPLES", "15"))
MARKETS = [
    Market("spot-a", "zone-1"),
    Market("spot-a", "zone-2"),
    Market("spot-b", "zone-1"),
    Market("spot-b", "zone-2"),
    Market("steady", "zone-1"),
]
thorough = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Act:
    """One thing that happens to the world, and how long the world then goes on."""

    what: str
    number: int
    steps: int

    def happen(self, w: World) -> None:
        nodes = sorted(w.nodes)
        match self.what:
            case "demand":
                w.demand(self.number % 20)
            case "streams":
                w.streams = self.number % 30
            case "per replica":
                w.per_replica = 1 + self.number % 10
            case "reclaim" if nodes:
                w.reclaim(nodes[self.number % len(nodes)])
            case "notice" if nodes:
                w.notice(nodes[self.number % len(nodes)], 10 + self.number % 120)
            case "silent" if nodes:
                node = w.nodes[nodes[self.number % len(nodes)]]
                node.silent = not node.silent
            case "capacity":
                w.capacity[MARKETS[self.number % len(MARKETS)]] = self.number % 3
            case "metrics":
                w.metrics = bool(self.number % 2)
            case "crash":
                w.crash = "CUDA out of memory" if self.number % 2 else None
            case "pause":
                w.edit(paused=bool(self.number % 2))
            case "scale":
                w.edit(replicas=self.number % (w.spec.scaling.max_replicas + 1))
            case "limits":
                least = self.number % 3
                rules = w.spec.scaling.model_dump(by_alias=True)
                w.edit(
                    scaling={**rules, "minReplicas": least, "maxReplicas": least + 2}, replicas=None
                )
            case "engine":
                w.edit(engine={"maxModelLen": 1024 + self.number % 5})
            case "pools":
                names = [["spot-a", "spot-b"], ["spot-b"], ["spot-a", "steady"], ["no-such-pool"]]
                w.edit(placement={"pools": names[self.number % len(names)]})
            case "prices":
                for place, name in enumerate(sorted(w.pools)):
                    dollars = 1 + (self.number >> place) % 3
                    price = PriceSpec.model_validate({"microUSDPerHour": dollars * 500_000})
                    w.pools[name] = w.pools[name].model_copy(update={"price": price})
            case "spares":
                rules = w.spec.placement.model_dump(by_alias=True)
                w.edit(placement={**rules, "overprovision": self.number % 4})
            case "hand":
                live = [c for (kind, _), c in w.children.items() if kind == "Deployment"]
                if live:
                    body = live[self.number % len(live)]
                    body["spec"]["replicas"] = self.number % 3
                    body["metadata"]["generation"] += 1


acts = st.lists(
    st.builds(
        Act,
        what=st.sampled_from(
            [
                "demand",
                "streams",
                "per replica",
                "reclaim",
                "notice",
                "silent",
                "capacity",
                "metrics",
                "crash",
                "pause",
                "scale",
                "limits",
                "engine",
                "pools",
                "spares",
                "prices",
                "hand",
            ]
        ),
        number=st.integers(0, 1000),
        steps=st.integers(1, 40),
    ),
    max_size=14,
)
modes = st.sampled_from(["ReadWriteMany", "ReadWriteOnce"])


def play(w: World, story: list[Act], check: Callable[[World, int, Plan], None]) -> None:
    for act in story:
        act.happen(w)
        for _ in range(act.steps):
            before = w.total
            check(w, before, w.step(STEP_S))


def calm(w: World) -> None:
    """The faults stop; the spec stays, but for spares and prices: those act as time passes."""
    w.pools = {n: p.model_copy(update={"price": None}) for n, p in w.pools.items()}
    w.edit(placement={**w.spec.placement.model_dump(by_alias=True), "overprovision": 0})
    w.capacity.clear()
    w.metrics, w.crash = True, None
    for node in w.nodes.values():
        node.silent = False
    w.streams = 0
    w.demand(0)


@thorough
@given(story=acts, mode=modes)
def test_once_the_faults_stop_a_fixpoint_is_reached_and_then_nothing_is_written(
    story: list[Act], mode: str
) -> None:
    w = world(cache={"accessMode": mode})
    play(w, story, lambda *_: None)
    calm(w)
    w.run(2 * 3600 + 1800, 4 * STEP_S)
    written = len(w.writes)
    w.run(600, 2 * STEP_S)
    assert w.writes[written:] == []
    if "no-such-pool" not in w.spec.placement.pools:
        wanted = _resting_size(w)
        assert w.total == wanted
        assert len(w.ready) == wanted
        assert w.condition("Ready")[0] == "True"
    assert w.status.observed_generation == w.generation


def _resting_size(w: World) -> int:
    limit = w.spec.scaling.max_replicas
    if w.spec.cache.access_mode == "ReadWriteOnce":
        limit = min(limit, len({z for n in w.spec.placement.pools for z in w.pools[n].zones}))
    if w.spec.paused or w.spec.replicas == 0:
        return 0
    return min(w.spec.replicas or w.spec.scaling.min_replicas, limit)


@thorough
@given(story=acts, mode=modes)
def test_never_more_replicas_than_max_but_for_those_that_go_and_one_that_relieves(
    story: list[Act], mode: str
) -> None:
    def check(w: World, _before: int, _plan: Plan) -> None:
        going = {n.name for n in w.nodes.values() if n.silent or n.notice_deadline is not None}
        held = sum(p.node in going and p.deleting_until is None for p in w.pods.values())
        busy_over_a_lowered_max = any(p.doomed_reason == "scale-down" for p in w.pods.values())
        moving = w.status.move is not None and w.status.move.target is not None
        relieved = moving or any(m.startswith("steady/") for m in w.replicas)
        limit = w.spec.scaling.max_replicas + held + relieved
        assert busy_over_a_lowered_max or w.total <= limit

    # A missing pool's Deployments are left as they are, so this story keeps its pools.
    story = [a for a in story if a.what != "pools"]
    play(world(cache={"accessMode": mode}), story, check)


@thorough
@given(story=acts)
def test_a_request_held_for_a_sleeping_tier_starts_a_replica_in_that_very_plan(
    story: list[Act],
) -> None:
    def check(w: World, before: int, plan: Plan) -> None:
        failing = w.status.engine_failure is not None
        if w.parked and before == 0 and not w.spec.paused and not failing:
            ups = [s for s in plan.scales if s.manifest["spec"]["replicas"] > 0]
            assert ups, f"{w.status.last_decision}"

    story = [a for a in story if a.what != "pools"]
    play(world(), story, check)


@pytest.mark.fault(51)
@thorough
@given(story=acts)
def test_missing_metrics_never_put_a_tier_to_sleep(story: list[Act]) -> None:
    def check(w: World, before: int, _plan: Plan) -> None:
        staying = {n.name for n in w.nodes.values() if not n.silent and n.notice_deadline is None}
        serving = [p for p in w.ready if p.node in staying]
        if before > 0 and serving and not w.metrics and not w.spec.paused:
            assert w.total > 0, f"{w.status.last_decision}"

    story = [a for a in story if a.what not in {"pools", "pause", "scale", "hand"}]
    play(world(), story, check)


@pytest.mark.fault(53)
@thorough
@given(
    high=st.integers(0, 40),
    low=st.integers(0, 40),
    half_period_s=st.integers(5, 900),
)
def test_a_square_wave_of_load_causes_a_bounded_number_of_scale_changes(
    high: int, low: int, half_period_s: int
) -> None:
    w = world()
    w.streams = max(high, low, 1)
    w.run(120, STEP_S)
    w.writes.clear()
    for second in range(0, 2 * 3600, STEP_S):
        w.streams = high if (second // half_period_s) % 2 else low
        w.step(STEP_S)
    scales = [x for x in w.writes if x.what.startswith("apply Deployment")]
    # One down per 300 s at most, as many up again, and one sleep and wake per idle timeout.
    assert len(scales) <= 2 * (2 * 3600 / 300) + 3


@thorough
@given(story=acts, mode=modes)
def test_the_same_observation_gives_the_same_plan(story: list[Act], mode: str) -> None:
    one, two = world(cache={"accessMode": mode}), world(cache={"accessMode": mode})
    play(one, story, lambda *_: None)
    play(two, story, lambda *_: None)
    assert one.plans == two.plans
    assert all(a[0] <= b[0] for a, b in pairwise(one.plans))
