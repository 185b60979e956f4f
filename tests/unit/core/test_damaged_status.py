"""A status that a hand, another version or another clock wrote: the tier is decided about all the same."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from spotinference.api import times
from spotinference.api.tier_status import EngineFailureStatus
from spotinference.core.observed import ReplicaView
from tests.support.virtual_cluster import Pod
from tests.support.world import World, world


def serving() -> World:
    w = world()
    w.streams = 1
    w.run(120)
    assert len(w.ready) == 1
    return w


@pytest.mark.fault(24)
def test_a_reason_of_another_version_stops_nothing() -> None:
    w = serving()
    others = [c for c in w.status.conditions if c.type != "CapacityAvailable"]
    known = next(c for c in w.status.conditions if c.type == "CapacityAvailable")
    strange = known.model_copy(update={"status": "False", "reason": "QuotaOfTheFuture"})
    w.status = w.status.model_copy(update={"conditions": [*others, strange]})
    w.edit(replicas=2)
    w.step()
    assert w.condition("CapacityAvailable") == ("False", "NoCapacity")
    w.run(300)
    assert len(w.ready) == 2
    assert w.condition("CapacityAvailable") == ("True", "CapacityFound")


@pytest.mark.fault(24)
@pytest.mark.parametrize(
    "nonsense",
    [
        {"backoff_seconds": 10**15, "refused_at": "2026-11-01T11:00:00Z"},
        {"backoff_seconds": -(10**15), "refused_at": "2026-11-01T11:00:00Z"},
        {"backoff_seconds": 60, "refused_at": "8999-12-31T23:59:59Z"},
        {"failed_launches": -5, "refused_at": "2026-11-01T11:00:00Z"},
        {"calm_since": "8999-12-31T23:59:59Z", "watched_until": "1970-01-01T00:00:00Z"},
    ],
)
def test_what_markets_cannot_have_shown_keeps_no_tier_asleep(nonsense: dict[str, object]) -> None:
    w = world()
    believed = {"calm_since": "2026-11-01T11:00:00Z", **nonsense}
    w.status = w.status.model_copy(
        update={"markets": [m.model_copy(update=believed) for m in w.status.markets]}
    )
    w.demand(1)
    w.run(600)
    assert len(w.ready) == 1


@pytest.mark.fault(17)
def test_a_moment_that_is_yet_to_come_holds_no_replica_back() -> None:
    w = serving()
    ahead = times.to_text(w.now + timedelta(hours=1))
    later = {"over_since": ahead, "step_started_at": ahead, "step_added": 100}
    w.status = w.status.model_copy(update={"scaling": w.status.scaling.model_copy(update=later)})
    w.streams = 20
    w.run(300)
    assert w.total == 3


@pytest.mark.fault(17)
def test_a_moment_that_is_yet_to_come_keeps_no_idle_tier_awake() -> None:
    w = serving()
    w.streams = 0
    w.run(5)
    ahead = {"idle_since": times.to_text(w.now + timedelta(hours=1))}
    w.status = w.status.model_copy(update={"scaling": w.status.scaling.model_copy(update=ahead)})
    w.run(590)
    assert w.total == 1
    w.run(20)
    assert w.total == 0


@pytest.mark.fault(17)
def test_a_pause_longer_than_any_was_written_by_another_clock() -> None:
    w = world()
    late = times.to_text(w.now + timedelta(days=1))
    failure = EngineFailureStatus(failures=1, generation=w.generation, retry_at=late)
    w.status = w.status.model_copy(update={"engine_failure": failure})
    w.demand(1)
    w.run(120)
    assert len(w.ready) == 1


@pytest.mark.fault(18)
def test_a_kubelet_whose_clock_is_ahead_is_not_written_about_at_each_look() -> None:
    class Ahead(World):
        def _view(self, pod: Pod) -> ReplicaView:
            view = super()._view(pod)
            at = view.ready_at
            return replace(view, ready_at=None if at is None else at + timedelta(minutes=5))

    plain = world()
    w = Ahead(spec=plain.spec, pools=plain.pools)
    w.settle()
    w.streams = 1
    w.run(120)
    w.streams = 0
    w.run(5)
    w.writes.clear()
    w.run(120)
    assert w.writes == []
