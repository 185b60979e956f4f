"""What is to be done about one tier: values, carried out by `controller/act.py` in this order."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from spotinference.api.conditions import Reason
from spotinference.api.kinds import Json, Kind
from spotinference.api.tier_status import TierStatus


class DoomReason(StrEnum):
    """Value of the annotation doomed-reason: why a replica gets no new work."""

    NOTICE = "notice"
    NODE_LOST = "node-lost"
    SCALE_DOWN = "scale-down"


DOOMED_DELETION_COST = -1000
"""Doomed pods are the ones their ReplicaSet removes first; others have cost 0."""


@dataclass(frozen=True, slots=True)
class Doom:
    """Mark an engine pod: gateways send it nothing new, and it must be gone by `until`.

    Written as annotations `doomed-until`, `doomed-reason` and (so that the right pod goes when its
    Deployment shrinks) `controller.kubernetes.io/pod-deletion-cost`, in one patch with the uid.
    """

    pod: str
    uid: str
    until: datetime
    reason: DoomReason
    deletion_cost: int = DOOMED_DELETION_COST


@dataclass(frozen=True, slots=True)
class Pardon:
    """Take the three annotations of a Doom away again: the node came back, or the load did."""

    pod: str
    uid: str


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of a whole child.

    A Deployment that exists carries `metadata.resourceVersion`: a scale decided on stale state
    must lose (Conflict), not overwrite.
    """

    kind: Kind
    manifest: Json


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a child, guarded by its uid; `grace_s=0` removes a pod whose node is gone.

    Send `propagationPolicy: Background`: the server's default for a Job orphans its pods.
    """

    kind: Kind
    name: str
    uid: str
    grace_s: int | None = None


class EventType(StrEnum):
    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class EventNote:
    """An event on the tier; deduplicated by (reason, message) when written."""

    type: EventType
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Empty in steady state: then nothing at all is written."""

    dooms: tuple[Doom, ...] = ()
    scales: tuple[Apply, ...] = ()
    """Deployments whose replica count changes: first, they are what a waiting client needs"""
    applies: tuple[Apply, ...] = ()
    deletes: tuple[Delete, ...] = ()
    """after the scales, so that a replacement starts in the market just scaled up"""
    pardons: tuple[Pardon, ...] = ()
    """order against the others does not matter"""
    status: TierStatus | None = None
    """None: unchanged"""
    events: tuple[EventNote, ...] = ()
    requeue_after_s: float | None = None
    """look again after this long even if nothing happens (a timer runs out)"""

    @property
    def empty(self) -> bool:
        return not (
            self.dooms
            or self.scales
            or self.applies
            or self.deletes
            or self.pardons
            or self.status
            or self.events
        )
