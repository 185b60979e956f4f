"""A pod's phase and conditions from its containers, as the kubelet computes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from spotinference.api.kinds import Json
from spotinference.devcluster import podstatus
from spotinference.devcluster.containerstate import (
    Backoff,
    ContainerStatus,
    Running,
    State,
    Terminated,
    Waiting,
)
from spotinference.devcluster.podstatus import Verdict

T0 = datetime(2026, 1, 1, tzinfo=UTC)
UP = Running(T0)


def ended(code: int) -> Terminated:
    return Terminated(code, "Error" if code else "Completed", "", T0, T0)


def container(
    state: State, *, ready: bool = False, last: Terminated | None = None
) -> ContainerStatus:
    return ContainerStatus("c", "image", state=state, ready=ready, last=last)


def build(
    *main: ContainerStatus,
    pod: Json | None = None,
    now: datetime = T0,
    verdict: Verdict | None = None,
) -> Json:
    return podstatus.build(
        pod or {"spec": {}},
        init=[],
        main=main,
        ip="127.9.1.1",
        host_ip="127.9.0.1",
        started_at=T0,
        now=now,
        verdict=verdict,
    )


def of_type(status: Json, kind: str) -> Json:
    found: Json = next(c for c in status["conditions"] if c["type"] == kind)
    return found


@pytest.mark.parametrize(
    ("states", "policy", "phase"),
    [
        ([Waiting("ContainerCreating")], "Always", "Pending"),
        ([UP], "Always", "Running"),
        ([ended(1)], "Always", "Running"),
        ([ended(0)], "Never", "Succeeded"),
        ([ended(1)], "Never", "Failed"),
        ([ended(0), ended(2)], "Never", "Failed"),
        ([ended(1)], "OnFailure", "Running"),
        ([ended(0)], "OnFailure", "Succeeded"),
        ([UP, ended(1)], "Never", "Running"),
    ],
)
def test_the_phase_follows_from_the_containers(
    states: list[State], policy: str, phase: str
) -> None:
    assert podstatus.phase_of([], [container(s) for s in states], policy) == phase


def test_a_container_waiting_to_be_restarted_keeps_the_pod_running() -> None:
    waiting = container(Waiting("CrashLoopBackOff"), last=ended(1))
    assert podstatus.phase_of([], [waiting], "Always") == "Running"


@pytest.mark.parametrize(
    ("init", "policy", "phase"),
    [
        (UP, "Always", "Pending"),
        (ended(1), "Always", "Pending"),
        (ended(1), "Never", "Failed"),
        (ended(0), "Always", "Running"),
    ],
)
def test_init_containers_come_first(init: State, policy: str, phase: str) -> None:
    assert podstatus.phase_of([container(init)], [container(UP)], policy) == phase


def test_ready_only_when_every_container_is() -> None:
    both = build(container(UP, ready=True), container(UP))
    assert of_type(both, "Ready")["status"] == "False"
    assert of_type(both, "Ready")["reason"] == "ContainersNotReady"
    assert of_type(build(container(UP, ready=True)), "Ready")["status"] == "True"


def test_a_finished_pod_is_not_ready_because_it_is_complete() -> None:
    status = build(container(ended(0)), pod={"spec": {"restartPolicy": "Never"}})
    assert of_type(status, "Ready")["reason"] == "PodCompleted"


def test_a_transition_time_moves_only_with_the_status() -> None:
    first = build(container(UP, ready=True))
    later = T0 + timedelta(minutes=1)
    pod: Json = {"spec": {}, "status": first}
    same = build(container(UP, ready=True), pod=pod, now=later)
    assert same["conditions"] == first["conditions"]
    changed = build(container(UP), pod=pod, now=later)
    assert of_type(changed, "Ready")["lastTransitionTime"] == "2026-01-01T00:01:00Z"
    assert of_type(changed, "Initialized")["lastTransitionTime"] == "2026-01-01T00:00:00Z"


def test_a_node_shutdown_fails_the_pod_and_says_why() -> None:
    verdict = Verdict("Terminated", "imminent node shutdown")
    status = build(container(ended(0)), verdict=verdict)
    assert (status["phase"], status["reason"]) == ("Failed", "Terminated")
    assert of_type(status, "DisruptionTarget")["reason"] == "TerminationByKubelet"


def test_backoff_starts_at_once_then_doubles_to_its_bound_and_forgets_after_a_long_run() -> None:
    backoff = Backoff(10, 300)
    assert [backoff.after(1) for _ in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert backoff.after(601) == 0
