"""What a cloud's metadata service announces about its own machine, and the node condition that says
so. Called by `spotinference node-watch`; the operator reads the condition through `core.providers`.

Sources: AWS EC2 user guide (spot/instance-action, events/recommendations/rebalance), Google Compute
Engine (instance/preempted, instance/maintenance-event), Azure Scheduled Events 2020-07-01.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from spotinference.api import times
from spotinference.api.kinds import Json
from spotinference.core.notices import time_in
from spotinference.core.providers import AT_RISK, INTERRUPTION, RECLAIM

CONFIRMATIONS = 3
"""So many answers in a row must announce less before a standing condition is taken down a step."""
CLEAR = "NothingAnnounced"
_AZURE_FIRM = frozenset({"Preempt", "Terminate"})
_AZURE_WEAK = frozenset({"Reboot", "Redeploy"})


@dataclass(frozen=True, slots=True)
class Announcement:
    """The machine goes (RECLAIM), or may go (AT_RISK)."""

    reason: str
    words: str
    """the same for as long as the announcement stands; without a time in it"""
    deadline: datetime | None = None
    """the end that the cloud states; only where the machine goes"""


def of_aws(instance_action: str | None, rebalance: str | None) -> Announcement | None:
    """From the bodies of the two documents, None where the service answered 404.

    `ValueError` for a body that is not what AWS documents.
    """
    if instance_action is not None:
        body = _object(instance_action)
        action = body.get("action")
        if not isinstance(action, str):
            raise ValueError("spot/instance-action names no action")
        at = time_in(str(body.get("time", "")))
        return Announcement(RECLAIM, f"aws: spot instance will {action}", at)
    if rebalance is not None:
        _object(rebalance)
        return Announcement(AT_RISK, "aws: rebalance recommendation")
    return None


def of_gcp(preempted: str, maintenance: str) -> Announcement | None:
    """From the two values; `ValueError` when `preempted` is neither TRUE nor FALSE.

    Maintenance that ends a machine (those with GPUs) is announced up to an hour before.
    """
    if preempted.strip().upper() == "TRUE":
        return Announcement(RECLAIM, "gcp: preempted")
    if preempted.strip().upper() != "FALSE":
        raise ValueError("instance/preempted is neither TRUE nor FALSE")
    if maintenance.strip() == "TERMINATE_ON_HOST_MAINTENANCE":
        return Announcement(AT_RISK, "gcp: host maintenance will end the machine")
    return None


def of_azure(document: str, machine: str) -> Announcement | None:
    """From Scheduled Events, which list those of all machines of a scale set: ours are picked.

    `ValueError` for a document that is not what Azure documents.
    """
    events = _object(document).get("Events")
    if not isinstance(events, list):
        raise ValueError("scheduled events have no list of Events")  # noqa: TRY004  # of the text
    weak: Announcement | None = None
    for event in events:
        if not isinstance(event, dict):
            raise ValueError("a scheduled event is no object")  # noqa: TRY004  # of the text
        resources = [str(name).lower() for name in event.get("Resources") or ()]
        kind = event.get("EventType")
        if machine.lower() not in resources or event.get("EventStatus") in {
            "Completed",
            "Canceled",
        }:
            continue
        if kind in _AZURE_FIRM:
            at = time_in(str(event.get("NotBefore") or ""))
            return Announcement(RECLAIM, f"azure: {kind}", at)
        if kind in _AZURE_WEAK:
            weak = Announcement(AT_RISK, f"azure: {kind}")
    return weak


@dataclass(frozen=True, slots=True)
class Standing:
    """What the condition on the node says now."""

    reason: str = CLEAR
    message: str = ""

    @classmethod
    def of(cls, condition: Json | None) -> Standing:
        if condition is None or condition.get("status") != "True":
            return cls()
        return cls(str(condition.get("reason", "")), str(condition.get("message", "")))


def settled(announced: Announcement | None, standing: Standing, in_a_row: int) -> bool:
    """Whether an answer is to be believed: more than what stands at once, less only when repeated.

    `in_a_row`: how often this very answer came, one after the other, this one included; an answer
    that failed breaks the row.
    """
    return _weight(announced.reason if announced else CLEAR) >= _weight(standing.reason) or (
        in_a_row >= CONFIRMATIONS
    )


def condition_for(
    announced: Announcement | None, standing: Standing, now: datetime, notice_s: float
) -> Json | None:
    """The condition to write, None when what stands says it already.

    A reclaim without a stated end ends `notice_s` after it was first seen; what stands keeps its
    end, also over a restart of ours.
    """
    if announced is None:
        if standing.reason == CLEAR:
            return None
        return _condition("False", CLEAR, "the metadata service announces nothing", now)
    message = announced.words
    if announced.reason == RECLAIM:
        kept = None
        if standing.reason == RECLAIM and standing.message.startswith(f"{announced.words}, "):
            kept = time_in(standing.message)
        until = announced.deadline or kept or now + timedelta(seconds=notice_s)
        message = f"{announced.words}, until {times.to_text(until)}"
    if (announced.reason, message) == (standing.reason, standing.message):
        return None
    return _condition("True", announced.reason, message, now)


def _condition(status: str, reason: str, message: str, now: datetime) -> Json:
    at = times.to_text(now)
    return {
        "type": INTERRUPTION,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": at,
        "lastHeartbeatTime": at,
    }


def _weight(reason: str) -> int:
    return {RECLAIM: 2, AT_RISK: 1}.get(reason, 0)


def _object(text: str) -> Json:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise ValueError("the metadata service answered something that is no JSON") from error
    if not isinstance(body, dict):
        raise ValueError("the metadata service answered no JSON object")  # noqa: TRY004
    return body
