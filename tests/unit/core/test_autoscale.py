"""How many replicas: targets, stabilisation, steps, and what unknown metrics may not cause."""

from __future__ import annotations

from datetime import timedelta

import pytest

from spotinference.core.autoscale import UNKNOWN_HOLD_S
from spotinference.core.observed import Market
from spotinference.core.reconcile import decide
from tests.support.world import World, world


def serving(streams: int = 1, **scaling: object) -> World:
    rules = {"maxReplicas": 4, "targetRunning": 8, "targetWaiting": 2, **scaling}
    w = world(scaling=rules)
    w.streams = streams
    w.run(60)
    assert w.status.phase == "Ready"
    return w


def test_load_over_target_adds_replicas_only_after_the_stabilisation_time() -> None:
    w = serving()
    w.streams = 20
    w.run(58)
    assert w.total == 1
    w.run(4)
    assert w.total == 3
    assert w.status.last_decision is not None
    assert "20 running" in w.status.last_decision.reason


def test_replicas_that_still_start_count_and_no_further_ones_are_launched() -> None:
    w = serving(maxReplicas=10)
    w.load_s = 400
    w.streams = 20
    w.run(390)
    assert w.total == 3


def test_at_most_max_step_replicas_are_added_per_period() -> None:
    w = serving(maxReplicas=10, scaleUp={"maxStep": 2})
    w.streams = 80
    w.run(64)
    assert w.total == 3
    w.run(100)
    assert w.total == 3
    w.run(30)
    assert w.total == 5


def test_waiting_requests_alone_add_replicas() -> None:
    w = serving()
    w.per_replica = 1
    w.streams = 5
    w.run(65)
    assert w.total == 2  # four waiting, targetWaiting 2


def test_load_under_target_takes_one_replica_at_a_time() -> None:
    w = serving(streams=20)
    w.run(120)
    assert w.total == 3
    w.streams = 1
    w.run(298)
    assert w.total == 3
    w.run(40)
    assert w.total == 2
    w.run(330)
    assert w.total == 1


def test_an_idle_replica_goes_before_a_busy_one() -> None:
    w = serving(streams=20)
    w.run(120)
    w.streams = 1
    busy = {p.name for p in w.ready if p.running}
    w.run(700)
    assert w.total == 1
    assert busy & {p.name for p in w.ready}


def test_a_busy_replica_drains_before_it_goes() -> None:
    w = serving(streams=20)
    w.run(120)
    w.streams = 3  # one on each
    for _ in range(400):
        w.step()
        gone = [p for p in w.pods.values() if p.deleting_until]
        marked = [p for p in w.pods.values() if p.doomed_until]
        if marked:
            break
    assert marked
    assert not gone
    assert w.total == 3
    w.run(5)
    assert w.total == 2


def test_load_that_returns_while_a_replica_drains_keeps_it() -> None:
    w = serving(streams=20)
    w.run(120)
    pods = list(w.pods.values())
    w.streams = 3
    while not any(p.doomed_until for p in pods):
        w.step()
    # its requests run on: nothing may be taken from it before the drain is over
    marked = next(p for p in pods if p.doomed_until)
    marked.running = 1
    w.edit(scaling={"minReplicas": 3, "maxReplicas": 4, "targetRunning": 8, "targetWaiting": 2})
    w.step()
    assert marked.doomed_until is None
    assert w.total == 3


@pytest.mark.fault(51, 52)
def test_missing_metrics_freeze_the_number_and_say_so() -> None:
    w = serving(streams=20)
    w.run(120)
    w.streams = 0
    w.metrics = False
    w.run(UNKNOWN_HOLD_S - 10)
    assert w.total == 3
    assert w.condition("MetricsAvailable") == ("False", "MetricsUnknown")
    w.metrics = True
    w.run(700)
    assert w.total == 0


@pytest.mark.fault(52)
def test_after_half_an_hour_without_any_metrics_the_tier_goes_back_to_its_least() -> None:
    w = serving(streams=20, minReplicas=2)
    w.run(120)
    assert w.total == 3
    w.metrics = False
    w.run(UNKNOWN_HOLD_S - 10)
    assert w.total == 3
    w.run(120)
    assert w.total == 2
    assert w.status.last_decision is not None
    assert "no replica could be read for 30 min" in w.status.last_decision.reason
    w.metrics = True
    w.run(130)
    assert w.total == 3, "what is read again counts at once"


@pytest.mark.fault(52)
def test_a_tier_without_metrics_is_never_put_to_sleep_however_long_it_lasts() -> None:
    w = serving(streams=20)
    w.run(120)
    w.metrics = False
    w.run(4 * UNKNOWN_HOLD_S, 5)
    assert w.total == 1


@pytest.mark.fault(52, 54)
def test_the_half_hour_without_metrics_survives_a_restart_and_ends_with_one_sample() -> None:
    w = serving(streams=20)
    w.run(120)
    w.metrics = False
    w.run(UNKNOWN_HOLD_S - 100)
    w.metrics = True
    w.run(5)
    assert w.status.scaling.unknown_since is None
    w.metrics = False
    w.run(UNKNOWN_HOLD_S - 100)
    later = World(**{k: getattr(w, k) for k in w.__dataclass_fields__})
    later.run(90)
    assert later.total == 3
    later.run(130)
    assert later.total == 1


@pytest.mark.fault(52)
def test_parked_requests_keep_replicas_that_cannot_be_read() -> None:
    w = serving(streams=20)
    w.run(120)
    w.metrics = False
    w.run(UNKNOWN_HOLD_S - 10)
    w.now += timedelta(seconds=30)
    w.demand(4)
    status = decide(w.observe()).status
    assert status is not None
    assert status.ready_summary == "3/2"  # targetWaiting 2


@pytest.mark.fault(50)
def test_one_unknown_replica_of_several_does_not_hide_the_load_of_the_others() -> None:
    w = serving(streams=9)
    w.metrics = True
    w.run(130)
    assert w.total == 2


def test_a_wake_is_exempt_from_stabilisation_and_steps() -> None:
    w = world(scaling={"maxReplicas": 6, "targetRunning": 2, "targetWaiting": 2})
    w.demand(12)
    w.step()
    assert w.total == 6


def test_with_exclusive_volumes_a_zone_takes_one_replica() -> None:
    w = world(
        scaling={"maxReplicas": 6, "targetRunning": 2, "targetWaiting": 2},
        cache={"accessMode": "ReadWriteOnce"},
    )
    w.demand(12)
    w.run(100)
    zones = [Market(p.market.pool, p.market.zone).zone for p in w.pods.values()]
    assert sorted(zones) == ["zone-1", "zone-2"]


def test_with_exclusive_volumes_a_full_zone_is_no_way_out_of_a_refusal() -> None:
    w = world(
        scaling={"maxReplicas": 6, "targetRunning": 2, "targetWaiting": 2},
        cache={"accessMode": "ReadWriteOnce"},
    )
    w.capacity = {Market(pool, "zone-2"): 0 for pool in ("spot-a", "spot-b")}
    w.demand(12)
    for _ in range(400):
        w.step()
        in_zone_1 = [n for m, n in w.replicas.items() if m.endswith("zone-1")]
        assert sum(in_zone_1) == 1


@pytest.mark.fault(54)
def test_the_hysteresis_survives_a_restart_because_it_is_in_the_status() -> None:
    w = serving(streams=20)
    w.run(120)
    w.streams = 1
    w.run(200)
    assert w.status.scaling.under_since is not None
    later = World(**{k: getattr(w, k) for k in w.__dataclass_fields__})
    later.run(98)
    assert later.total == 3
    later.run(40)
    assert later.total == 2


def test_a_busy_replica_that_answers_no_probe_and_no_scrape_does_not_put_the_tier_to_sleep() -> (
    None
):
    w = serving(streams=1)
    w.streams = 0  # its client is served already: nothing is parked, nothing is known
    w.hang(w.ready[0].name)
    w.writes.clear()
    w.run(60)
    assert w.total == 1
    assert not [x.what for x in w.writes if "Deployment" in x.what]
