"""What is to be done about one tier: values, carried out by `controller/act.py` in this order."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from spotinference.api.conditions import Reason
from spotinference.api.kinds import Json, Kind
from spotinference.api.tier import TierStatus


@dataclass(frozen=True, slots=True)
class Doom:
    """Mark an engine pod: gateways send it nothing new, and it must be gone by `until`."""

    pod: str
    uid: str
    until: datetime
    reason: str


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
    """Delete a child, guarded by its uid; `grace_s=0` removes a pod whose node is gone."""

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
    status: TierStatus | None = None
    """None: unchanged"""
    events: tuple[EventNote, ...] = ()
    requeue_after_s: float | None = None
    """look again after this long even if nothing happens (a timer runs out)"""

    @property
    def empty(self) -> bool:
        return not (
            self.dooms or self.scales or self.applies or self.deletes or self.status or self.events
        )
