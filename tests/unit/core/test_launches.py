"""A launch that finds a node and never becomes ready: given up, replaced elsewhere, ever more rarely
tried; but the tier's only chance is not given up for being slow."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from spotinference.api import times
from spotinference.api.tier_status import MarketStatus
from spotinference.core.launches import LEAST_S, MOST_TRIED
from spotinference.core.observed import Market
from tests.support.world import World, world

A1, A2 = Market("spot-a", "zone-1"), Market("spot-a", "zone-2")
B1, B2 = Market("spot-b", "zone-1"), Market("spot-b", "zone-2")
NO_GPU = "CUDA error: no device"
BY_BOOT_S = 25


def of(w: World, market: Market) -> MarketStatus:
    return next(m for m in w.status.markets if (m.pool, m.zone) == (market.pool, market.zone))


def tier_in(*pools: str, **scaling: object) -> World:
    """Asleep; its last wake took a minute."""
    w = world(placement={"pools": list(pools)}, scaling={"maxReplicas": 3, **scaling})
    w.status = w.status.model_copy(update={"last_wake_seconds": 60})
    return w


def tries(w: World, market: Market, seconds: int) -> int:
    """Pods that found a node there within the next seconds."""
    seen = {p.name for p in w.pods.values() if p.market == market and p.node}
    before = len(seen)
    for _ in range(seconds // 5):
        w.step(5)
        seen |= {p.name for p in w.pods.values() if p.market == market and p.node}
    return len(seen) - before


def test_a_replica_that_crashes_in_one_market_is_replaced_in_another_at_once() -> None:
    w = tier_in("spot-a")
    w.broken = {A1: NO_GPU}
    w.demand(1)
    w.run(60)
    assert w.replicas == {str(A2): 1}
    assert (of(w, A1).failed_launches, of(w, A1).backoff_seconds) == (1, 300)
    w.run(60)
    assert w.status.phase == "Ready"
    assert w.status.engine_failure is None
    said = [e for e in w.events if e.startswith("LaunchFailed")]
    assert len(said) == 1
    assert NO_GPU in said[0]
    assert str(A1) in said[0]


def test_an_engine_that_never_answers_is_late_after_three_of_the_tiers_wakes() -> None:
    w = tier_in("spot-a")
    w.status = w.status.model_copy(update={"last_wake_seconds": 150})
    w.broken = {A1: None}
    w.demand(1)
    w.run(BY_BOOT_S + 445)
    assert w.replicas == {str(A1): 1}
    w.run(15)
    assert w.replicas == {str(A2): 1}
    w.run(60)
    assert w.status.phase == "Ready"


def test_before_any_wake_was_measured_the_owners_own_bound_counts_and_an_image_pull() -> None:
    w = world(placement={"pools": ["spot-a"]}, engine={"startup": "8m"})
    w.broken = {A1: None}
    w.demand(1)
    w.run(BY_BOOT_S + 480 + LEAST_S - 10, 5)
    assert w.replicas == {str(A1): 1}
    w.run(20)
    assert w.replicas == {str(A2): 1}


def test_a_slow_engine_is_not_given_up_where_no_other_market_is_left() -> None:
    w = tier_in("steady")
    w.load_s = 1000
    w.demand(1)
    w.run(1100, 5)
    assert w.status.phase == "Ready"
    assert [e for e in w.events if e.startswith("LaunchFailed")] == []


def test_slow_engines_everywhere_are_left_alone_after_three_markets() -> None:
    w = tier_in("spot-a", "spot-b")
    w.load_s = 2000
    w.demand(1)
    w.run(1200, 5)
    standing = dict(w.replicas)
    assert len(standing) == 1
    assert sum(m.failed_launches for m in w.status.markets) == MOST_TRIED - 1
    w.run(1500, 5)
    assert w.replicas == standing
    assert w.status.phase == "Ready"


def test_when_three_markets_fail_alike_it_is_the_tiers_own_fault_and_nodes_are_spared() -> None:
    w = tier_in("spot-a", "spot-b")
    w.crash = "unknown option --no"
    w.demand(1)
    w.run(190)
    assert w.total == 0
    assert w.condition("Ready") == ("False", "EngineFailed")
    assert "alike, so it is hardly the nodes" in w.message("Degraded")
    assert "correct spec.engine" in w.message("Degraded")
    launched = {p.name for p in w.pods.values()}
    for _ in range(3600 // 10):
        w.step(10)
        launched |= {p.name for p in w.pods.values()}
    assert len(launched) <= 6, "after 60 s, doubled each time"


def test_a_broken_market_is_tried_ever_more_rarely_beside_replicas_that_serve() -> None:
    w = tier_in("spot-a")
    w.capacity = {A2: 2}
    w.broken = {A1: NO_GPU}
    w.edit(replicas=3)
    w.run(600, 5)
    assert len(w.ready) == 2
    first_hour = tries(w, A1, 3600)
    assert 1 <= first_hour <= 6
    assert tries(w, A1, 6 * 3600) <= 4, "each pause is twice the last one"
    assert of(w, A1).failed_launches > 1
    w.broken = {}
    w.run(7 * 3600, 10)
    assert len(w.ready) == 3
    assert (of(w, A1).failed_launches, of(w, A1).backoff_seconds) == (0, 0)


def test_a_condition_says_which_markets_keep_a_tier_from_its_size() -> None:
    w = tier_in("spot-a")
    w.capacity = {A2: 1}
    w.broken = {A1: NO_GPU}
    w.edit(replicas=2)
    w.run(400, 5)
    assert w.status.phase == "Ready"
    tried = [w.condition("CapacityAvailable")]
    for _ in range(120):
        w.step(5)
        tried.append(w.condition("CapacityAvailable"))
    assert {("False", "LaunchFailed"), ("False", "NoCapacity")} & set(tried)
    assert ("True", "CapacityFound") not in tried[60:]


def test_a_node_alone_does_not_end_the_pause_a_ready_replica_does() -> None:
    w = tier_in("steady")
    market = Market("steady", "zone-1")
    w.broken = {market: NO_GPU}
    w.demand(1)
    w.run(60)
    assert of(w, market).failed_launches == 1
    w.run(110)
    assert of(w, market).failed_launches == 2, "it found a node again meanwhile"
    w.broken = {}
    w.run(300)
    assert w.status.phase == "Ready"
    assert (of(w, market).failed_launches, of(w, market).refused_at) == (0, None)


def test_an_edit_of_the_tier_lifts_the_pause() -> None:
    w = tier_in("spot-a")
    w.broken = {A1: NO_GPU}
    w.demand(1)
    w.run(150)
    assert of(w, A1).failed_launches == 1
    w.broken = {}
    w.edit(engine={"maxModelLen": 1024})
    w.step()
    assert (of(w, A1).failed_launches, of(w, A1).refused_at) == (0, None)


def test_an_engine_that_crashed_after_serving_is_given_time_to_load_again() -> None:
    w = tier_in("spot-a", minReplicas=1)
    w.run(4000, 10)
    pod = w.ready[0]
    pod.ready_at, pod.running_at, pod.loaded = None, w.now, False
    pod.restarts, pod.failure, pod.unready_since = 3, "Terminated: OOMKilled", w.now
    w.load_s = 200
    w.run(150)
    assert [p.name for p in w.pods.values()] == [pod.name]
    w.run(60)
    assert pod.ready_at is not None
    assert of(w, pod.market).failed_launches == 0


def test_a_replica_that_falls_silent_is_no_failed_launch() -> None:
    w = tier_in("spot-a", minReplicas=1)
    w.run(4000, 10)
    pod = w.ready[0]
    w.hang(pod.name)
    w.run(3600, 10)
    assert [p.name for p in w.pods.values()] == [pod.name]
    assert all(m.failed_launches == 0 for m in w.status.markets)


@settings(max_examples=6, deadline=None)
@given(
    broken=st.sets(st.sampled_from([A1, A2, B1, B2]), max_size=3),
    silent=st.booleans(),
    replicas=st.integers(1, 3),
)
def test_while_one_market_works_all_stand_there_and_nodes_elsewhere_are_ever_fewer(
    broken: set[Market], silent: bool, replicas: int
) -> None:
    w = tier_in("spot-a", "spot-b")
    w.broken = dict.fromkeys(broken, None if silent else NO_GPU)
    w.edit(replicas=replicas)
    w.run(3 * 3600, 20)
    assert len(w.ready) == replicas
    assert not {str(m) for m in broken} & set(w.replicas)
    written = len(w.writes)
    w.run(1200, 20)
    assert w.writes[written:] == []
    for m in w.status.markets:
        if m.refused_at is not None and m.failed_launches:
            assert m.backoff_seconds >= 300
            assert times.parse(m.refused_at) < w.now - timedelta(hours=1)
