"""A pod's status from the states of its containers: pure, as the kubelet computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from spotinference.api import times
from spotinference.api.kinds import Json
from spotinference.devcluster.containerstate import (
    ContainerStatus,
    Running,
    State,
    Terminated,
    Waiting,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The kubelet's own words about a whole pod: why it was failed (eviction, node shutdown)."""

    reason: str
    message: str


def build(
    pod: Json,
    *,
    init: Sequence[ContainerStatus],
    main: Sequence[ContainerStatus],
    ip: str | None,
    host_ip: str,
    started_at: datetime,
    now: datetime,
    verdict: Verdict | None = None,
) -> Json:
    """The status fields and conditions that a kubelet owns, for a server-side apply."""
    policy = pod["spec"].get("restartPolicy", "Always")
    phase = phase_of(init, main, policy)
    if verdict is not None and all(isinstance(c.state, Terminated) for c in main):
        phase = "Failed"
    initialized = len([c for c in init if _succeeded(c.state)]) == len(init)
    finished = phase in ("Succeeded", "Failed")
    ready = not finished and bool(main) and all(c.ready for c in main)
    unready = [c.name for c in main if not c.ready]
    why = "PodCompleted" if phase == "Succeeded" else "PodFailed" if phase == "Failed" else None
    not_ready = (why or "ContainersNotReady", f"containers with unready status: {unready}")
    conditions = [
        _condition("ContainersReady", ready, *(("", "") if ready else not_ready)),
        _condition("Initialized", initialized, *_not_initialized(init, initialized)),
        _condition("PodReadyToStartContainers", ip is not None and not finished),
        _condition("Ready", ready, *(("", "") if ready else not_ready)),
    ]
    if verdict is not None:
        conditions.insert(
            1, _condition("DisruptionTarget", True, "TerminationByKubelet", verdict.message)
        )
    _keep_transitions(conditions, pod, now)
    status: Json = {
        "phase": phase,
        "conditions": conditions,
        "hostIP": host_ip,
        "hostIPs": [{"ip": host_ip}],
        "startTime": times.to_text(started_at),
        "containerStatuses": [_container(c) for c in main],
    }
    if init:
        status["initContainerStatuses"] = [_container(c, init=True) for c in init]
    if ip is not None:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    if verdict is not None:
        status |= {"reason": verdict.reason, "message": verdict.message}
    return status


def phase_of(init: Sequence[ContainerStatus], main: Sequence[ContainerStatus], policy: str) -> str:
    for container in init:
        match container.state:
            case Terminated(exit_code=0):
                continue
            case Terminated() if policy == "Never":
                return "Failed"
            case _:
                return "Pending"
    states = [c.state for c in main]
    if all(isinstance(s, Terminated) for s in states) and policy != "Always":
        codes = [s.exit_code for s in states if isinstance(s, Terminated)]
        if all(code == 0 for code in codes):
            return "Succeeded"
        if policy == "Never":
            return "Failed"
    never_ran = all(isinstance(c.state, Waiting) and c.last is None for c in main)
    return "Pending" if never_ran else "Running"


def _succeeded(state: State) -> bool:
    return isinstance(state, Terminated) and state.exit_code == 0


def _not_initialized(init: Sequence[ContainerStatus], initialized: bool) -> tuple[str, str]:
    if initialized:
        return "", ""
    names = [c.name for c in init if not _succeeded(c.state)]
    return "ContainersNotInitialized", f"containers with incomplete status: {names}"


def _condition(kind: str, value: bool, reason: str = "", message: str = "") -> Json:
    condition: Json = {"type": kind, "status": "True" if value else "False"}
    if reason:
        condition |= {"reason": reason, "message": message}
    return condition


def _keep_transitions(conditions: list[Json], pod: Json, now: datetime) -> None:
    """LastTransitionTime moves only when the status does."""
    current = {c["type"]: c for c in (pod.get("status") or {}).get("conditions") or []}
    for condition in conditions:
        was = current.get(condition["type"])
        same = was is not None and was["status"] == condition["status"]
        kept = was.get("lastTransitionTime") if was is not None and same else None
        condition["lastTransitionTime"] = kept or times.to_text(now)


def _container(status: ContainerStatus, *, init: bool = False) -> Json:
    done = init and _succeeded(status.state)
    return {
        "name": status.name,
        "image": status.image,
        "imageID": "",
        "containerID": status.container_id,
        "ready": status.ready or done,
        "started": status.started,
        "restartCount": status.restarts,
        "state": _state(status.state, status.container_id),
        "lastState": _state(status.last, "") if status.last else {},
    }


def _state(state: State, container_id: str) -> Json:
    match state:
        case Waiting(reason, message):
            return {"waiting": {"reason": reason} | ({"message": message} if message else {})}
        case Running(started_at):
            return {"running": {"startedAt": times.to_text(started_at)}}
        case Terminated():
            ended: Json = {
                "exitCode": state.exit_code,
                "reason": state.reason,
                "finishedAt": times.to_text(state.finished_at),
                "startedAt": times.to_text(state.started_at or state.finished_at),
            }
            if state.message:
                ended["message"] = state.message
            if container_id:
                ended["containerID"] = container_id
            return {"terminated": ended}
        case _:
            assert_never(state)
