"""The tier's status and events, made from the decision, so that condition, event and log never
disagree; what the conditions say is in `findings`.
"""

from __future__ import annotations

from spotinference.api import names, times
from spotinference.api.conditions import ConditionType, Phase, Reason
from spotinference.api.tier_status import (
    Condition,
    DecisionStatus,
    LearnedStatus,
    MarketStatus,
    PlacementStatus,
    TierStatus,
)
from spotinference.core import learned, lifecycle, outlook, regret, window
from spotinference.core.autoscale import Count
from spotinference.core.findings import Decision, Finding, findings, troubles
from spotinference.core.fleet import Standing
from spotinference.core.observed import Observed
from spotinference.core.placement import Placement
from spotinference.core.plan import EventNote, EventType

MESSAGE_LIMIT = 1024


def status_of(observed: Observed, d: Decision) -> TierStatus:
    """The whole status after this decision."""
    desired = d.count.desired
    trouble = troubles(d)
    phase = lifecycle.phase_of(observed, d.fleet, desired, broken=any(t.blocking for t in trouble))
    wake = lifecycle.wake_of(observed, d.fleet, d.weights, desired)
    ready = len(d.fleet.ready)
    present = sum(not r.view.deleting for r in d.fleet.every)
    return observed.status.model_copy(
        update={
            "observed_generation": observed.generation,
            "phase": str(phase),
            "conditions": conditions(observed, findings(observed, d, phase, trouble)),
            "replicas": present,
            "ready_replicas": ready,
            "ready_summary": f"{ready}/{desired}",
            "selector": selector(observed.ref.name),
            "markets": _markets(d),
            "wake": wake,
            "last_wake_seconds": lifecycle.last_wake_s(observed.status, wake, d.fleet),
            "scaling": d.count.scaling,
            "learned": _learned(observed),
            "last_decision": _decision(observed, d.count),
            "last_placement": _placement(observed, d.placement),
            "losses": outlook.losses(d.placement.outlook),
            "move": regret.written(d.placement.regret),
            "weights": d.weights.status,
            "engine": window.engine_of(observed, d.fleet, d.weights.revision),
            "engine_failure": d.verdict.status,
        }
    )


def refusal(observed: Observed, reason: Reason, message: str) -> TierStatus:
    """The status of a tier that is left alone until a person changes something."""
    found = {
        ConditionType.READY: Finding(False, reason, message),
        ConditionType.DEGRADED: Finding(True, reason, message),
        ConditionType.PROGRESSING: Finding(False, reason, message),
    }
    others = [c for c in observed.status.conditions if c.type not in set(found)]
    mine = conditions(observed, found)
    return observed.status.model_copy(
        update={
            "observed_generation": observed.generation,
            "phase": str(Phase.DEGRADED),
            "conditions": sorted([*others, *mine], key=lambda c: c.type),
            "selector": selector(observed.ref.name),
        }
    )


def selector(tier: str) -> str:
    labels = names.tier_labels(tier, names.ROLE_ENGINE)
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def conditions(observed: Observed, found: dict[ConditionType, Finding]) -> list[Condition]:
    """Sorted by type; the transition time moves only when the status does."""
    before = {c.type: c for c in observed.status.conditions}
    result = []
    for kind, finding in sorted(found.items()):
        status = "True" if finding.status else "False"
        old = before.get(str(kind))
        kept = old is not None and old.status == status
        assert status in {"True", "False"}
        result.append(
            Condition(
                type=str(kind),
                status="True" if finding.status else "False",
                observed_generation=observed.generation,
                last_transition_time=old.last_transition_time
                if kept and old is not None
                else times.to_text(observed.now),
                reason=str(finding.reason),
                message=finding.message[:MESSAGE_LIMIT],
            )
        )
    return result


def _markets(d: Decision) -> list[MarketStatus]:
    return [
        MarketStatus(
            pool=p.market.pool,
            zone=p.market.zone,
            desired=d.placement.counts.get(p.market, 0),
            ready=len(p.having(Standing.READY)),
            doomed=len(p.having(Standing.LEAVING, Standing.SILENT)),
            **outlook.written(d.placement.outlook, p.market),
        )
        for p in d.fleet.places
    ]


def _learned(observed: Observed) -> LearnedStatus | None:
    before = observed.status.learned
    if observed.learned is None:
        return before
    memory = observed.learned.memory
    if not learned.worth_writing(before, memory, observed.now):
        return before
    return learned.to_status(memory, observed.now)


def _decision(observed: Observed, count: Count) -> DecisionStatus:
    before = observed.status.last_decision
    if before is not None and before.desired == count.desired:
        return before
    return DecisionStatus(
        at=times.to_text(observed.now), desired=count.desired, reason=count.reason[:MESSAGE_LIMIT]
    )


def _placement(observed: Observed, placement: Placement) -> PlacementStatus | None:
    if not placement.why:
        return observed.status.last_placement
    return PlacementStatus(at=times.to_text(observed.now), reason=placement.why[:MESSAGE_LIMIT])


_WARNINGS = frozenset(
    {
        Reason.NO_CAPACITY,
        Reason.MAX_HOURLY_COST,
        Reason.VOLUME_ZONE_MISMATCH,
        Reason.POOL_NOT_FOUND,
        Reason.NO_MARKET,
        Reason.POOLS_CORDONED,
        Reason.CACHE_FAILED,
        Reason.VOLUME_PENDING,
        Reason.LAUNCH_FAILED,
        Reason.ENGINE_FAILED,
        Reason.INVALID_SPEC,
        Reason.NAME_CONFLICT,
        Reason.FORBIDDEN,
        Reason.NOTICE,
        Reason.NODE_LOST,
        Reason.NODES_HELD,
        Reason.METRICS_UNKNOWN,
    }
)


def events(before: TierStatus, after: TierStatus) -> list[EventNote]:
    """One for each condition whose reason changed, and one for each new number of replicas."""
    notes = []
    known = {c.type: c.reason for c in before.conditions}
    for condition in after.conditions:
        if known.get(condition.type) == condition.reason:
            continue
        reason = Reason(condition.reason)
        calm = condition.type != ConditionType.READY and reason not in _WARNINGS
        if calm or (condition.type == ConditionType.READY and reason in _WARNINGS):
            continue  # Ready repeats what Degraded says; calm ones are no news
        kind = EventType.WARNING if reason in _WARNINGS else EventType.NORMAL
        notes.append(EventNote(kind, reason, condition.message))
    old, new = before.last_decision, after.last_decision
    if new is not None and new != old and (old is not None or new.desired > 0):
        off = new.reason.startswith("wake called off")
        reason = Reason.WAKE_CALLED_OFF if off else Reason.SCALING
        what = "1 replica" if new.desired == 1 else f"{new.desired} replicas"
        notes.append(EventNote(EventType.NORMAL, reason, f"{what}: {new.reason}"))
    placed = after.last_placement
    if placed is not None and placed != before.last_placement:
        notes.append(EventNote(EventType.NORMAL, Reason.PLACED, placed.reason))
    return notes
