"""Which tiers there are, sleeping ones included, and the names clients ask for them by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog
from pydantic import ValidationError

from spotinference.api import durations, parse, times
from spotinference.api.keys import ApiKey
from spotinference.api.kinds import Json
from spotinference.api.tier import TierSpec
from spotinference.core import eta
from spotinference.core.eta import Profile, Wake
from spotinference.core.observed import TierRef
from spotinference.gateway import errors
from spotinference.gateway.errors import GatewayError

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
    wake: Wake | None
    """the one under way, or the last"""
    last_wake_s: int | None
    revision: str | None
    reasoning: bool
    """the engine shapes chat answers with a reasoning parser"""
    context_window: int | None = None
    """tokens, as the spec states it or else as the operator read it from an engine; None: not known"""
    profile: Profile | None = None
    """how long the stages of its wakes usually take; None before one was seen to end"""
    names: tuple[str, ...] = field(init=False)
    """the model's, the first of which is its own"""

    def __post_init__(self) -> None:
        model = self.spec.model
        object.__setattr__(self, "names", (model.served_name or self.ref.name, *model.aliases))

    def opened_by(self, key: ApiKey) -> bool:
        return key.namespace == self.ref.namespace and key.opens((self.ref.name, *self.names))

    def eta_seconds(self, now: datetime, waited_s: float) -> int:
        """Seconds until a replica is expected, from the tier's own earlier wakes if there are any.

        `waited_s`: for how long one has been asked for.
        """
        wake = self.wake
        if self.phase == "Waking" and wake is not None and wake.ready_at is None:
            if self.profile is not None and wake.stages:
                stage, since = wake.stages[-1]
                in_stage_s = max(0.0, (now - since).total_seconds())
                return round(eta.remaining_s(self.profile, stage, in_stage_s))
            if self.eta is not None:
                return max(0, round((self.eta - now).total_seconds()))
        if self.profile is not None:
            expected_s = eta.total_s(self.profile)
        else:
            expected_s = self.last_wake_s if self.last_wake_s is not None else self.budget_s
        return max(0, round(expected_s - waited_s))


@dataclass(frozen=True, slots=True)
class Invalid:
    """A tier whose spec this version does not understand: a value that another version's CRD allows."""

    ref: TierRef
    names: tuple[str, ...]
    problem: str
    """the field and what is wrong with it"""

    def opened_by(self, key: ApiKey) -> bool:
        return key.namespace == self.ref.namespace and key.opens((self.ref.name, *self.names))


class Catalogue:
    """Fed by a reflector; `on_change` hears of tiers that went or changed."""

    def __init__(self) -> None:
        self._tiers: dict[TierRef, Tier] = {}
        self._invalid: dict[TierRef, Invalid] = {}
        self._names: dict[tuple[str, str], Tier] = {}
        self._wakes: dict[TierRef, tuple[datetime, Profile]] = {}
        """the end of the last wake that was learned from, and what is usual since"""
        self.on_change: Callable[[TierRef, Tier | None], None] | None = None

    def changed(self, before: Json | None, after: Json | None) -> None:
        body = after or before
        assert body is not None
        ref = TierRef(body["metadata"]["namespace"], body["metadata"]["name"])
        there = after is not None and "deletionTimestamp" not in after["metadata"]
        found = _parse(ref, body) if there else None
        self._tiers.pop(ref, None)
        self._invalid.pop(ref, None)
        tier: Tier | None = None
        match found:
            case Tier() as tier:
                tier = self._tiers[ref] = self._with_profile(tier)
            case Invalid():
                self._invalid[ref] = found
        self._index(ref.namespace)
        if after is None:
            self._wakes.pop(ref, None)
        if self.on_change is not None:
            self.on_change(ref, tier)

    def _with_profile(self, tier: Tier) -> Tier:
        """Learns from a wake that has ended since."""
        known = self._wakes.get(tier.ref)
        wake = tier.wake
        ended_at = wake.ready_at if wake is not None and wake.stages else None
        if wake is not None and ended_at is not None and (known is None or known[0] != ended_at):
            usual = eta.learned(known[1] if known else None, eta.measured(wake))
            known = self._wakes[tier.ref] = (ended_at, usual)
        return replace(tier, profile=known[1]) if known is not None else tier

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

    def invalid(self, namespace: str, model: str) -> Invalid | None:
        """The tier of that name that cannot be read; asked for when `find` has none."""
        for invalid in self._invalid.values():
            if invalid.ref.namespace == namespace and model in invalid.names:
                return invalid
        return None

    def gone(self, tier: Tier) -> GatewayError:
        """Why a tier that was there is not any more."""
        invalid = self._invalid.get(tier.ref)
        if invalid is not None:
            return errors.tier_invalid(tier.names[0], invalid.problem)
        return errors.tier_deleted(tier.names[0])


def _parse(ref: TierRef, body: Json) -> Tier | Invalid:
    try:
        spec = parse.stored(TierSpec, body.get("spec") or {})
        status = body.get("status") or {}
        wake = parse.parse_wake(body)
        return Tier(
            ref=ref,
            uid=body["metadata"]["uid"],
            created=int(times.parse(body["metadata"]["creationTimestamp"]).timestamp()),
            spec=spec,
            cap_s=durations.seconds(spec.wake.cap),
            budget_s=durations.seconds(spec.wake.budget),
            phase=status.get("phase") or "",
            eta=times.parse(wake.eta) if wake is not None and wake.eta else None,
            wake=Wake.of(wake) if wake is not None else None,
            last_wake_s=status.get("lastWakeSeconds"),
            revision=(status.get("weights") or {}).get("revision"),
            reasoning=spec.engine.reasoning_parser is not None
            or any("reasoning" in arg and "parser" in arg for arg in spec.engine.extra_args),
            context_window=spec.engine.max_model_len
            or (status.get("engine") or {}).get("contextWindow"),
        )
    except (ValidationError, KeyError, ValueError) as error:
        log.warning("catalogue.tier_ignored", tier=str(ref), error=str(error)[:500])
        return Invalid(ref, _names_in(ref, body), _problem(error))


def _names_in(ref: TierRef, body: Json) -> tuple[str, ...]:
    """What clients would ask for it by, as far as that can be read."""
    spec = body.get("spec")
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict):
        return (ref.name,)
    served, aliases = model.get("servedName"), model.get("aliases")
    names = [served or ref.name, *(aliases if isinstance(aliases, list) else ())]
    return tuple(name for name in names if isinstance(name, str))


def _problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"its object is not whole ({type(error).__name__})"
    first = error.errors(include_input=False, include_url=False)[0]
    return f"spec.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
