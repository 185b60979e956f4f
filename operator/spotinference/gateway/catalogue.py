"""Which tiers there are, sleeping ones included, and the names clients ask for them by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog
from pydantic import ValidationError

from spotinference.api import durations, times
from spotinference.api.keys import ApiKey
from spotinference.api.kinds import Json
from spotinference.api.tier import TierSpec
from spotinference.core.observed import TierRef

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Tier:
    """What the gateway needs to know of an InferenceTier."""

    ref: TierRef
    uid: str
    created: int
    """seconds since the epoch, as /v1/models shows it"""
    spec: TierSpec
    cap_s: float
    budget_s: float
    phase: str
    eta: datetime | None
    last_wake_s: int | None
    revision: str | None
    reasoning: bool
    """the engine shapes chat answers with a reasoning parser"""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.spec.model.served_name or self.ref.name, *self.spec.model.aliases)

    def opened_by(self, key: ApiKey) -> bool:
        return key.namespace == self.ref.namespace and key.opens((self.ref.name, *self.names))

    def eta_seconds(self, now: datetime, waited_s: float) -> int:
        """Seconds until a replica is expected, from measured wakes where there are any."""
        if self.eta is not None and self.phase == "Waking":
            return max(0, round((self.eta - now).total_seconds()))
        expected_s = self.last_wake_s if self.last_wake_s is not None else self.budget_s
        return max(0, round(expected_s - waited_s))


class Catalogue:
    """Fed by a reflector; `on_change` hears of tiers that went or changed."""

    def __init__(self) -> None:
        self._tiers: dict[TierRef, Tier] = {}
        self._names: dict[tuple[str, str], Tier] = {}
        self.on_change: Callable[[TierRef, Tier | None], None] | None = None

    def changed(self, before: Json | None, after: Json | None) -> None:
        body = after or before
        assert body is not None
        ref = TierRef(body["metadata"]["namespace"], body["metadata"]["name"])
        tier = _parse(ref, after) if after is not None else None
        if tier is not None and after is not None and "deletionTimestamp" in after["metadata"]:
            tier = None
        if tier is None:
            self._tiers.pop(ref, None)
        else:
            self._tiers[ref] = tier
        self._index(ref.namespace)
        if self.on_change is not None:
            self.on_change(ref, tier)

    def _index(self, namespace: str) -> None:
        """Names of one namespace; of two tiers with one name the older has it."""
        for key in [key for key in self._names if key[0] == namespace]:
            del self._names[key]
        for tier in sorted(self.of(namespace), key=lambda t: (t.created, t.ref), reverse=True):
            for name in tier.names:
                self._names[namespace, name] = tier

    def of(self, namespace: str) -> list[Tier]:
        return [tier for tier in self._tiers.values() if tier.ref.namespace == namespace]

    def find(self, namespace: str, model: str) -> Tier | None:
        return self._names.get((namespace, model))

    def get(self, ref: TierRef) -> Tier | None:
        return self._tiers.get(ref)


def _parse(ref: TierRef, body: Json) -> Tier | None:
    try:
        spec = TierSpec.model_validate(body.get("spec") or {})
        status = body.get("status") or {}
        wake = status.get("wake") or {}
        eta = wake.get("eta")
        return Tier(
            ref=ref,
            uid=body["metadata"]["uid"],
            created=int(times.parse(body["metadata"]["creationTimestamp"]).timestamp()),
            spec=spec,
            cap_s=durations.seconds(spec.wake.cap),
            budget_s=durations.seconds(spec.wake.budget),
            phase=status.get("phase") or "",
            eta=times.parse(eta) if eta else None,
            last_wake_s=status.get("lastWakeSeconds"),
            revision=(status.get("weights") or {}).get("revision"),
            reasoning=spec.engine.reasoning_parser is not None
            or any("reasoning" in arg and "parser" in arg for arg in spec.engine.extra_args),
        )
    except (ValidationError, KeyError, ValueError) as error:
        log.warning("catalogue.tier_ignored", tier=str(ref), error=str(error)[:500])
        return None
