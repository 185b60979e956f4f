"""Kubernetes events on tiers, for people: `kubectl describe itier`.

The name of an event is a function of what it says, so a repetition is a higher count of the same
object, also after a restart. Written at most every `REPEAT_S` per event and within a budget per
tier: a controller in a loop must not flood the API server. Losing an event is harmless, so
failures are logged and forgotten.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from spotinference import errors
from spotinference.api import names, times
from spotinference.api.kinds import EVENT, TIER, Json
from spotinference.clients.clock import Clock
from spotinference.controller.metrics import Metrics
from spotinference.controller.writer import Writer
from spotinference.core.observed import TierRef
from spotinference.core.plan import EventNote

log = structlog.get_logger(__name__)

REPEAT_S = 60.0
MAX_REMEMBERED = 4096
BURST = 25
REFILL_S = 15.0
"""one more event per tier after this long"""
MAX_MESSAGE = 1000


@dataclass(slots=True)
class _Posted:
    count: int
    at: float


@dataclass(slots=True)
class _Budget:
    tokens: float
    at: float


class EventPoster:
    def __init__(self, writer: Writer, metrics: Metrics, clock: Clock, identity: str) -> None:
        self._writer = writer
        self._metrics = metrics
        self._clock = clock
        self._identity = identity
        self._posted: OrderedDict[str, _Posted] = OrderedDict()
        self._budgets: OrderedDict[str, _Budget] = OrderedDict()

    async def post(self, ref: TierRef, uid: str, note: EventNote) -> None:
        """Writes or counts up an event; never raises but for lost leadership."""
        name = event_name(ref, uid, note)
        now = self._clock.monotonic()
        posted = self._posted.get(name)
        if posted is not None and now - posted.at < REPEAT_S:
            posted.count += 1
            self._metrics.suppressed_events.inc()
            return
        if not self._within_budget(uid, now):
            self._metrics.suppressed_events.inc()
            return
        count = posted.count + 1 if posted else 1
        self._remember(name, _Posted(count, now))
        try:
            await self._write(name, ref, uid, note, count)
        except errors.NotLeader:
            raise
        except errors.SpotinferenceError as error:
            log.warning("event.lost", tier=str(ref), reason=note.reason, error=str(error))

    async def _write(self, name: str, ref: TierRef, uid: str, note: EventNote, count: int) -> None:
        now = times.to_text(self._clock.now())
        if count > 1:
            try:
                patch = {"count": count, "lastTimestamp": now}
                await self._writer.merge_patch(EVENT, name, ref.namespace, patch)
            except errors.NotFound:
                count = 1  # the API server forgets events after an hour
            else:
                return
        try:
            await self._writer.create(EVENT, self._body(name, ref, uid, note, now))
        except errors.Conflict:
            # Posted by a former process: its count is unknown and not worth a read.
            await self._writer.merge_patch(EVENT, name, ref.namespace, {"lastTimestamp": now})

    def _body(self, name: str, ref: TierRef, uid: str, note: EventNote, now: str) -> Json:
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": name, "namespace": ref.namespace},
            "involvedObject": {
                "apiVersion": TIER.api_version,
                "kind": TIER.kind,
                "namespace": ref.namespace,
                "name": ref.name,
                "uid": uid,
            },
            "type": note.type.value,
            "reason": note.reason.value,
            "message": note.message[:MAX_MESSAGE],
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": names.FIELD_MANAGER},
            "reportingComponent": names.FIELD_MANAGER,
            "reportingInstance": self._identity[:128],
        }

    def _remember(self, name: str, posted: _Posted) -> None:
        self._posted[name] = posted
        self._posted.move_to_end(name)
        if len(self._posted) > MAX_REMEMBERED:
            self._posted.popitem(last=False)

    def _within_budget(self, uid: str, now: float) -> bool:
        budget = self._budgets.pop(uid, None) or _Budget(BURST, now)
        budget.tokens = min(BURST, budget.tokens + (now - budget.at) / REFILL_S)
        budget.at = now
        allowed = budget.tokens >= 1
        if allowed:
            budget.tokens -= 1
        self._budgets[uid] = budget
        if len(self._budgets) > MAX_REMEMBERED:
            self._budgets.popitem(last=False)
        return allowed


def event_name(ref: TierRef, uid: str, note: EventNote) -> str:
    said = f"{uid}|{note.type.value}|{note.reason.value}|{note.message}"
    return f"{ref.name}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"
