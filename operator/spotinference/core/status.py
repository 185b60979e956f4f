"""The tier's status and events, made from the decision, so that condition, event and log never
disagree. Messages carry no number that changes while nothing else does: each would be a write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

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
from spotinference.core import learned, lifecycle, outlook, spending
from spotinference.core.autoscale import Count, Load
from spotinference.core.failures import Verdict
from spotinference.core.fleet import VOLUME_ELSEWHERE, Fleet, Replica, Standing
from spotinference.core.observed import Observed
from spotinference.core.placement import Placement
from spotinference.core.plan import EventNote, EventType
from spotinference.core.weights import Weights

MESSAGE_LIMIT = 1024
FIRST_SCRAPE_S = 15.0
"""A replica that has just become ready is not yet missed by the scraper."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition's verdict."""

    status: bool
    reason: Reason
    message: str
    blocking: bool = False
    """nothing can be started before it is resolved"""


@dataclass(frozen=True, slots=True)
class Decision:
    """All partial decisions about one tier."""

    fleet: Fleet
    weights: Weights
    load: Load
    verdict: Verdict
    count: Count
    placement: Placement


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
            "last_wake_seconds": lifecycle.last_wake_s(observed.status, wake),
            "scaling": d.count.scaling,
            "learned": _learned(observed),
            "last_decision": _decision(observed, d.count),
            "last_placement": _placement(observed, d.placement),
            "weights": d.weights.status,
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


def troubles(d: Decision) -> list[Finding]:
    """What keeps the tier from serving until somebody acts, the most basic first."""
    found = []
    fleet, weights = d.fleet, d.weights
    if fleet.missing_pools:
        missing = ", ".join(fleet.missing_pools)
        found.append(
            Finding(
                True,
                Reason.POOL_NOT_FOUND,
                f"spec.placement.pools names {missing}, but there is no such GPUPool; create it "
                "or name an existing one (kubectl get gpool)",
                blocking=d.placement.nowhere,
            )
        )
    elif not fleet.places:
        found.append(
            Finding(
                True,
                Reason.NO_MARKET,
                "no pool of spec.placement.pools has a zone; give the GPUPool a zone in spec.zones",
                blocking=True,
            )
        )
    elif d.placement.nowhere:
        cordoned = ", ".join(dict.fromkeys(p.market.pool for p in fleet.places if p.pool.cordoned))
        found.append(
            Finding(
                True,
                Reason.POOLS_CORDONED,
                f"no replica can be added: GPUPool {cordoned} has spec.cordoned set; uncordon it, "
                "or name another pool in spec.placement.pools",
                blocking=True,
            )
        )
    if weights.failure is not None and not weights.usable:
        found.append(
            Finding(
                True,
                Reason.CACHE_FAILED,
                f"the cache job fails: {weights.failure}; correct spec.model or its token Secret, "
                "it is tried again every few minutes",
                blocking=True,
            )
        )
    failing = [r for r in fleet.replicas if r.view.failure and not r.view.ready]
    if d.verdict.status is not None:
        text = d.verdict.status
        found.append(
            Finding(
                True,
                Reason.ENGINE_FAILED,
                f"the engine did not start ({text.failures} wakes in a row): {text.message}; "
                f"correct spec.engine or spec.resources; no replica is tried before {text.retry_at}",
                blocking=d.verdict.hold_until is not None,
            )
        )
    elif failing:
        view = failing[0].view
        found.append(
            Finding(
                True,
                Reason.ENGINE_FAILED,
                f"replica {view.name}: {view.failure}; see its log, "
                "then correct spec.engine or spec.resources",
            )
        )
    return found


def findings(
    observed: Observed, d: Decision, phase: Phase, trouble: list[Finding]
) -> dict[ConditionType, Finding]:
    """Every condition of a tier that is being reconciled."""
    return {
        ConditionType.READY: _ready(observed, d, phase, trouble),
        ConditionType.PROGRESSING: _progressing(d, phase),
        ConditionType.DEGRADED: trouble[0]
        if trouble
        else Finding(False, Reason.HEALTHY, "nothing is wrong"),
        ConditionType.CAPACITY_AVAILABLE: _capacity(observed, d),
        ConditionType.CACHE_READY: _cache(d.weights),
        ConditionType.METRICS_AVAILABLE: _metrics(observed, d),
        ConditionType.INTERRUPTED: _interrupted(d.fleet),
    }


def _ready(observed: Observed, d: Decision, phase: Phase, trouble: list[Finding]) -> Finding:
    if phase is Phase.READY:
        return Finding(True, Reason.SERVING, "at least one replica serves")
    if phase is Phase.DEGRADED:
        first = next(t for t in trouble if t.blocking)
        return Finding(False, first.reason, first.message)
    if observed.spec.paused:
        return Finding(True, Reason.PAUSED, "paused by spec.paused; requests are refused")
    if phase is Phase.WAKING:
        stage = lifecycle.stage_of(d.fleet, d.weights)
        short = (
            "" if _capacity(observed, d).status else "; no market has a node, see CapacityAvailable"
        )
        return Finding(False, Reason.WAKING, f"no replica is ready yet; stage: {stage}{short}")
    return Finding(True, Reason.ASLEEP, "at zero replicas; the first request wakes the tier")


def _progressing(d: Decision, phase: Phase) -> Finding:
    if phase is Phase.WAKING:
        return Finding(True, Reason.WAKING, "a replica is being started")
    if phase is Phase.DRAINING or any(r.draining for r in d.fleet.every):
        return Finding(True, Reason.DRAINING, "replicas finish their running requests")
    if d.placement.unplaced > 0 and d.placement.too_dear and phase is Phase.READY:
        return Finding(
            True, Reason.SCALING, "more replicas are wanted than placement.maxHourlyCost allows"
        )
    if d.placement.unplaced > 0 and phase is Phase.READY:
        return Finding(
            True,
            Reason.SCALING,
            f"{d.placement.unplaced} more replicas are wanted than there are zones with a complete "
            "cache; with accessMode ReadWriteOnce each zone takes one",
        )
    spare = min(d.fleet.kept - d.count.desired, d.placement.spares)
    steady = range(d.count.desired, d.count.desired + max(0, spare) + 1)
    if len(d.fleet.ready) not in steady and phase is Phase.READY:
        return Finding(True, Reason.SCALING, f"going to {d.count.desired} replicas")
    return Finding(False, Reason.STEADY, "as many replicas as wanted")


def _capacity(observed: Observed, d: Decision) -> Finding:
    """False from the first refusal until as many replicas as wanted have a node.

    A waiting replica that has just moved on to the next market is not refused there yet; that is
    not capacity found.
    """
    refused = [p for p in d.fleet.places if p.having(Standing.REFUSED)]
    placed = [r for r in d.fleet.replicas if r.counts and r.view.node is not None]
    if len(placed) >= d.count.desired:
        return Finding(True, Reason.CAPACITY_FOUND, "no launch is being refused")
    if d.placement.too_dear:
        return _too_dear(observed, d)
    if not refused:
        kind = str(ConditionType.CAPACITY_AVAILABLE)
        before = next((c for c in observed.status.conditions if c.type == kind), None)
        if before is not None and before.status == "False":
            return Finding(False, Reason(before.reason), before.message)
        return Finding(True, Reason.CAPACITY_FOUND, "no launch is being refused")
    if elsewhere := [r for p in refused for r in p.replicas if r.volume_elsewhere]:
        return _volume_elsewhere(elsewhere[0])
    quoted = refused[0].having(Standing.REFUSED)[0].view.unschedulable_message.rstrip(". ")
    known = d.placement.outlook
    markets = [p.market for p in d.fleet.places if p in refused or known.refused_at(p.market)]
    tried = sorted(str(market) for market in markets)
    return Finding(
        False,
        Reason.NO_CAPACITY,
        f"no node found; tried {', '.join(tried)}. The scheduler says: {quoted or 'nothing'}. "
        "Retried in turn; add pools or zones to spec.placement.pools, or allow "
        "placement.onDemand.burst with an on-demand pool",
    )


def _too_dear(observed: Observed, d: Decision) -> Finding:
    most = observed.spec.placement.max_hourly_cost
    assert most is not None
    markets = ", ".join(spending.said(p) for p in d.placement.too_dear)
    return Finding(
        False,
        Reason.MAX_HOURLY_COST,
        f"one more replica would take the tier above {spending.dollars(most)} per hour "
        f"(spec.placement.maxHourlyCost): {markets}; raise it, name a cheaper pool, or give the pool "
        "a price; markets within it are tried in turn",
    )


def _volume_elsewhere(replica: Replica) -> Finding:
    """Nothing that is launched in this market would help."""
    view = replica.view
    return Finding(
        False,
        Reason.VOLUME_ZONE_MISMATCH,
        f"replica {view.name} cannot start in {view.market}: a volume of it lies "
        f"{'in ' + ', '.join(sorted(view.volume_zones)) if view.volume_zones else 'elsewhere'}. The "
        f"scheduler says: {view.unschedulable_message.rstrip('. ')}. Other markets are tried; name "
        "pools in the volume's zone, use a ReadWriteMany class, or delete the cache claim of this "
        "zone while the tier sleeps (it is filled again)",
    )


def _cache(weights: Weights) -> Finding:
    if weights.failure is not None and weights.complete < weights.total:
        return Finding(False, Reason.CACHE_FAILED, f"the cache job fails: {weights.failure}")
    if weights.complete >= weights.total:
        return Finding(True, Reason.CACHE_COMPLETE, "the weights are on every cache volume")
    if weights.pending is not None:
        return Finding(
            False,
            Reason.VOLUME_PENDING,
            f"a cache claim is not bound: {weights.pending}; check spec.cache.storageClassName",
        )
    if VOLUME_ELSEWHERE in (weights.nodeless or ""):
        return Finding(
            False,
            Reason.VOLUME_ZONE_MISMATCH,
            "the cache job cannot start: its volume lies where no node of the pool's zone can "
            f"mount it. The scheduler says: {(weights.nodeless or '').rstrip('. ')}; delete the "
            "claim (it is made and filled again), or use a class with WaitForFirstConsumer",
        )
    return Finding(
        False,
        Reason.CACHE_FILLING,
        f"{weights.complete} of {weights.total} cache volumes are complete"
        + (
            f"; no node takes the cache job: {weights.nodeless.rstrip('. ')}; it needs no GPU, "
            "but a node without taints (in its zone)"
            if weights.nodeless
            else ""
        ),
    )


def _metrics(observed: Observed, d: Decision) -> Finding:
    since = observed.now - timedelta(seconds=FIRST_SCRAPE_S)
    unknown = [
        r.view.name
        for r in d.fleet.ready
        if r.view.sample is None and (r.view.ready_at is None or r.view.ready_at <= since)
    ]
    if unknown:
        return Finding(
            False,
            Reason.METRICS_UNKNOWN,
            f"no fresh metrics from {', '.join(sorted(unknown)[:5])}; the tier is not made smaller "
            "meanwhile, but for one of which nothing is known for half an hour: it goes back to "
            "minReplicas (never to zero)",
        )
    return Finding(True, Reason.METRICS_FRESH, "every ready replica was scraped")


def _interrupted(fleet: Fleet) -> Finding:
    gone = {Standing.SILENT, Standing.LEAVING, Standing.LOST}
    hit = [r for r in fleet.every if r.standing in gone and not r.view.deleting]
    hinted = [r for r in fleet.every if r.hinted and not r.view.deleting]
    held = [r for r in fleet.every if r.view.node is not None and r.view.node.held]
    if not hit and held:
        return Finding(False, Reason.NODES_HELD, _list_of(held))
    if not hit and hinted:
        return Finding(False, Reason.AT_RISK, _list_of(hinted))
    if not hit:
        return Finding(False, Reason.UNDISTURBED, "no node of a replica is being reclaimed")
    noticed = [r for r in hit if r.view.node is not None and r.view.node.notice is not None]
    if noticed:
        return Finding(True, Reason.NOTICE, _list_of(noticed))
    return Finding(True, Reason.NODE_LOST, _list_of(hit))


def _list_of(replicas: Sequence[Replica]) -> str:
    parts = []
    for replica in replicas[:5]:
        node = replica.view.node
        if node is None:
            continue
        sign = node.notice or node.hint
        why = sign.source if sign is not None else f"node is {node.health}"
        if node.held:
            why = "its kubelet is silent, as many are; the engine answers"
        if replica.view.ended:
            why = replica.view.failure or "ended by the kubelet"
        parts.append(f"{replica.view.name} on node {node.name} in {replica.view.market}: {why}")
    return "; ".join(parts)


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
