"""From asleep to ready and back, in a simulated cluster on a virtual clock."""

from __future__ import annotations

from datetime import timedelta

from spotinference.api import times
from spotinference.api.pool import PoolSpec
from tests.support.world import World, pool, tier, world


def test_a_new_tier_makes_its_children_fills_its_cache_and_sleeps() -> None:
    w = World(spec=tier(), pools={"spot-a": pool(), "spot-b": pool()})
    w.step()
    kinds = sorted({kind for kind, _ in w.children})
    assert kinds == [
        "Job",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    ]
    assert w.condition("CacheReady") == ("False", "CacheFilling")
    w.settle()
    deployments = [body for (kind, _), body in w.children.items() if kind == "Deployment"]
    assert [d["spec"]["replicas"] for d in deployments] == [0, 0, 0, 0]
    assert w.status.phase == "Asleep"
    assert w.condition("Ready") == ("True", "Asleep")
    assert w.condition("CacheReady") == ("True", "CacheComplete")
    assert w.status.weights is not None
    assert w.status.weights.revision == w.commit


def test_a_wake_is_one_scale_write_of_one_deployment() -> None:
    w = world()
    w.writes.clear()
    w.demand(5)
    w.run(30)
    assert [x.what for x in w.writes if "Deployment" in x.what] == [
        "apply Deployment chat-spot-a-zone-1 1"
    ]
    assert w.status.phase == "Waking"
    assert w.condition("Ready") == ("False", "Waking")


def test_many_parked_requests_wake_as_many_replicas_as_their_target_needs() -> None:
    w = world()
    w.demand(17)
    w.step()
    assert w.total == 3  # 17 requests, targetRunning 8
    assert w.status.last_decision is not None
    assert w.status.last_decision.reason == "wake: 17 requests parked, 0 replicas"


def test_the_stages_of_a_wake_are_kept_with_their_times() -> None:
    w = world()
    w.demand(1)
    w.run(5)
    assert w.status.wake is not None
    assert w.status.wake.eta is not None
    w.streams = 1
    w.run(60)
    wake = w.status.wake
    assert wake is not None
    assert [s.name for s in wake.stages] == ["scheduling", "starting", "loading", "ready"]
    began = [times.parse(s.started_at) for s in wake.stages]
    assert began == sorted(began)
    assert wake.ready_at is not None
    assert w.status.last_wake_seconds == 54
    assert w.status.phase == "Ready"
    assert w.status.ready_summary == "1/1"


def test_the_next_wake_expects_to_take_as_long_as_the_last_one() -> None:
    w = world()
    w.demand(1)
    w.run(60)
    w.run(700)
    assert w.total == 0
    w.demand(1)
    w.step()
    assert w.status.wake is not None
    assert w.status.wake.eta == times.to_text(w.now + timedelta(seconds=54))


def test_a_replica_that_falls_silent_for_a_moment_is_not_taken_for_a_wake_of_a_moment() -> None:
    w = world()
    w.boot_s = 400
    w.streams = 1
    w.run(500)
    before = w.status.last_wake_seconds
    wake = w.status.wake
    assert before is not None
    assert before > 400
    pod = w.ready[0]
    w.hang(pod.name)
    w.run(6)
    assert w.condition("Ready") == ("False", "Waking")
    pod.hangs = False
    w.run(20)
    assert w.status.phase == "Ready"
    assert w.status.last_wake_seconds == before
    assert w.status.wake == wake


def test_an_idle_replica_that_misses_a_probe_is_not_put_to_sleep_as_a_wake_called_off() -> None:
    w = world(scaling={"maxReplicas": 1, "idleTimeout": "2m"})
    w.streams = 1
    w.run(60)
    w.streams = 0
    w.run(30)
    pod = w.ready[0]
    pod.misses_probes, pod.ready_at = True, None
    w.run(20)
    assert w.total == 1
    pod.misses_probes = False
    w.run(10)
    assert len(w.ready) == 1
    w.run(120)
    assert w.total == 0
    assert not any("called off" in event for event in w.events)


def test_a_replica_that_was_starting_when_the_last_one_went_is_not_taken_for_a_quick_wake() -> None:
    w = world()
    w.load_s = 300
    w.streams = 1
    w.run(400)
    before, first = w.status.last_wake_seconds, w.status.wake
    assert before is not None
    w.streams = 20
    w.run(300)
    assert len(w.ready) == 1
    assert w.total == 3
    w.reclaim(w.ready[0].node or "")
    w.run(100)
    assert w.status.wake is not None
    assert w.status.wake.ready_at is not None
    assert w.status.wake != first
    assert w.status.last_wake_seconds == before


def test_a_fraction_of_a_second_does_not_shorten_the_idle_time() -> None:
    w = world(scaling={"maxReplicas": 1, "idleTimeout": "2s"})
    w.streams = 2
    w.run(60)
    w.step(0.5)
    w.streams = 0
    idle_from = w.now
    while w.total:
        w.step(0.25)
    assert w.now - idle_from >= timedelta(seconds=2)


def test_an_idle_tier_falls_asleep_after_its_idle_timeout_and_not_before() -> None:
    w = world(scaling={"maxReplicas": 1, "idleTimeout": "2m"})
    w.streams = 1
    w.run(60)
    assert len(w.ready) == 1
    w.streams = 0
    w.run(118)
    assert w.total == 1
    w.run(4)
    assert w.total == 0
    w.settle()
    assert w.status.phase == "Asleep"
    assert "idle for 120 s" in w.events[-1] + w.events[-2]


def test_a_wake_that_nobody_waits_for_is_called_off() -> None:
    w = world()
    w.demand(1)
    w.run(20)
    w.demand(0)
    w.run(10)
    assert w.total == 0
    assert w.status.wake is None
    assert any(e.startswith("WakeCalledOff") for e in w.events)
    w.settle()
    assert w.status.phase == "Asleep"


def test_a_gap_of_a_moment_between_two_demands_does_not_end_a_wake() -> None:
    w = world()
    w.demand(1)
    w.run(20)
    w.demand(0)
    w.run(3)
    w.demand(1)
    w.run(3)
    assert w.total == 1


def test_a_tier_wakes_only_once_its_weights_are_there() -> None:
    w = World(spec=tier(), pools={"spot-a": pool(), "spot-b": pool()})
    w.demand(1)
    w.run(8)
    assert w.status.wake is not None
    assert w.status.wake.stage == "weights"
    assert w.nodes == {}
    w.run(70)
    assert w.status.phase == "Ready"


def test_a_paused_tier_goes_to_zero_and_stays_there() -> None:
    w = world()
    w.streams = 2
    w.run(60)
    w.edit(paused=True)
    w.run(40)
    assert w.total == 0
    w.streams = 0
    w.demand(5)
    w.run(60)
    assert w.total == 0
    assert w.condition("Ready") == ("True", "Paused")


def test_a_paused_tier_is_not_woken_by_a_reclaim() -> None:
    w = world()
    w.streams = 1
    w.run(60)
    w.edit(paused=True)
    w.step()
    for node in list(w.nodes):
        w.reclaim(node)
    w.run(60)
    assert w.total == 0


def test_kubectl_scale_rules_while_it_is_set() -> None:
    w = world()
    w.edit(replicas=2)
    w.run(90)
    assert len(w.ready) == 2
    w.run(1200)
    assert w.total == 2  # idle, but the number is the user's


def test_a_tier_scaled_to_zero_is_asleep_and_still_wakes_for_a_request() -> None:
    w = world()
    w.edit(replicas=0)
    w.settle()
    assert w.condition("Ready") == ("True", "Asleep")
    w.demand(1)
    w.step()
    assert w.total == 1


def test_a_tier_with_a_minimum_never_sleeps() -> None:
    w = world(scaling={"minReplicas": 1, "maxReplicas": 2, "idleTimeout": "1m"})
    w.run(1200)
    assert w.total == 1
    assert w.status.phase == "Ready"


def test_an_engine_that_keeps_crashing_is_given_up_and_tried_ever_more_rarely() -> None:
    w = world()
    w.crash = "CUDA out of memory"
    w.demand(1)
    w.run(170)  # three markets are tried
    assert w.total == 0
    assert w.condition("Ready") == ("False", "EngineFailed")
    assert w.condition("Degraded") == ("True", "EngineFailed")
    assert "CUDA out of memory" in w.message("Degraded")
    assert w.status.phase == "Degraded"
    first = w.status.engine_failure
    assert first is not None
    w.run(200)
    second = w.status.engine_failure
    assert second is not None
    assert second.failures == 2
    waited = times.parse(second.retry_at) - times.parse(first.retry_at)
    assert waited > timedelta(seconds=120)


def test_an_image_that_cannot_be_pulled_ends_the_wake_after_two_minutes() -> None:
    w = world(placement={"pools": ["spot-a"]})
    w.boot_s = 300  # the wait for a node does not count
    patient = {"capacityType": "spot", "zones": ["zone-1"], "refusalAfter": "10m"}
    w.pools["spot-a"] = PoolSpec.model_validate(patient)
    w.pull_failure = "ImagePullBackOff: not found"
    w.demand(1)
    w.run(400)
    assert w.total == 1
    assert w.condition("Degraded") == ("True", "EngineFailed")
    w.run(40)
    assert w.total == 0
    assert "ImagePullBackOff: not found" in w.message("Ready")


def test_a_tier_whose_engine_failed_long_ago_can_be_woken_again() -> None:
    w = world()
    w.crash = "CUDA out of memory"
    w.demand(1)
    w.run(170)  # three markets are tried
    w.demand(0)
    w.crash = None
    w.run(200)
    assert w.condition("Ready") == ("True", "Asleep")
    assert w.condition("Degraded") == ("True", "EngineFailed")
    w.demand(1)
    w.run(60)
    assert w.condition("Ready") == ("True", "Serving")
    assert w.condition("Degraded") == ("False", "Healthy")


def test_an_edit_ends_the_wait_after_a_crash_at_once() -> None:
    w = world()
    w.crash = "CUDA out of memory"
    w.demand(1)
    w.run(170)  # three markets are tried
    assert w.total == 0
    w.crash = None
    w.edit(engine={"maxModelLen": 1024})
    w.run(70)
    assert w.status.phase == "Ready"
    assert w.status.engine_failure is None


def test_a_failing_cache_job_is_quoted_and_tried_again_later() -> None:
    w = World(spec=tier(), pools={"spot-a": pool(), "spot-b": pool()})
    w.hub_failure = "Gated: token required"
    w.run(20)
    assert w.condition("CacheReady") == ("False", "CacheFailed")
    assert w.condition("Ready") == ("False", "CacheFailed")
    assert "Gated: token required" in w.message("Degraded")
    w.hub_failure = None
    w.run(330)
    assert w.condition("CacheReady") == ("True", "CacheComplete")
    assert w.condition("Ready") == ("True", "Asleep")


def test_steady_state_plans_nothing() -> None:
    w = world()
    w.streams = 4
    w.run(120)
    w.settle()
    assert w.step().empty


def test_a_lost_status_drops_nothing_that_serves() -> None:
    w = world()
    w.streams = 4
    w.run(120)
    w.status = type(w.status)()
    w.run(60)
    assert w.total == 1
    assert len(w.ready) == 1


def test_a_volume_that_never_mounts_does_not_keep_a_gpu_forever() -> None:
    w = world(
        placement={"pools": ["steady"]},
        scaling={"minReplicas": 1, "maxReplicas": 1},
        engine={"startup": "5m"},
    )
    w.settle()
    w.stuck_volume = True
    for pod in w.ready:
        w.evict(pod.name)
    w.run(280)
    assert w.total == 1
    w.run(60, step_s=5)
    assert w.total == 0
    assert w.condition("Degraded") == ("True", "EngineFailed")
    assert "no container" in w.message("Degraded")
