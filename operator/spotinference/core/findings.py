"""What each condition of a tier says, and what keeps it from serving. Messages carry no number that
changes while nothing else does: each would be a write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from spotinference.api import times
from spotinference.api.conditions import ConditionType, Phase, Reason
from spotinference.core import failures, launches, lifecycle, spending
from spotinference.core.autoscale import Count, Load
from spotinference.core.failures import Verdict
from spotinference.core.fleet import VOLUME_ELSEWHERE, Fleet, Replica, Standing
from spotinference.core.observed import Observed
from spotinference.core.placement import Placement
from spotinference.core.plan import EventNote, EventType
from spotinference.core.weights import Weights

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


def troubles(d: Decision) -> list[Finding]:
    """What keeps the tier from serving until somebody acts, the most basic first."""
    found = [_pool_trouble(d), _weights_trouble(d.weights), _engine_trouble(d)]
    return [finding for finding in found if finding is not None]


def _pool_trouble(d: Decision) -> Finding | None:
    fleet = d.fleet
    if fleet.missing_pools:
        missing = ", ".join(fleet.missing_pools)
        return Finding(
            True,
            Reason.POOL_NOT_FOUND,
            f"spec.placement.pools names {missing}, but there is no such GPUPool; create it "
            "or name an existing one (kubectl get gpool)",
            blocking=d.placement.nowhere,
        )
    if not fleet.places:
        return Finding(
            True,
            Reason.NO_MARKET,
            "no pool of spec.placement.pools has a zone; give the GPUPool a zone in spec.zones",
            blocking=True,
        )
    if d.placement.nowhere:
        cordoned = ", ".join(dict.fromkeys(p.market.pool for p in fleet.places if p.pool.cordoned))
        return Finding(
            True,
            Reason.POOLS_CORDONED,
            f"no replica can be added: GPUPool {cordoned} has spec.cordoned set; uncordon it, "
            "or name another pool in spec.placement.pools",
            blocking=True,
        )
    return None


def _weights_trouble(weights: Weights) -> Finding | None:
    if weights.failure is None or weights.usable:
        return None
    return Finding(
        True,
        Reason.CACHE_FAILED,
        f"the cache job fails: {weights.failure}; correct spec.model or its token Secret, "
        "it is tried again every few minutes",
        blocking=True,
    )


def _engine_trouble(d: Decision) -> Finding | None:
    if (seen := d.verdict.status) is not None:
        return Finding(
            True,
            Reason.ENGINE_FAILED,
            f"the engine did not start ({seen.failures} wakes in a row{_alike(d)}): {seen.message}; "
            f"correct spec.engine or spec.resources; no replica is tried before {seen.retry_at}",
            blocking=d.verdict.hold_until is not None,
        )
    failing = next((r.view for r in d.fleet.replicas if r.view.failure and not r.view.ready), None)
    if failing is None:
        return None
    return Finding(
        True,
        Reason.ENGINE_FAILED,
        f"replica {failing.name}: {failing.failure}; see its log, "
        "then correct spec.engine or spec.resources",
    )


def failed_launches(observed: Observed, d: Decision) -> list[EventNote]:
    """One event for each market whose launch was given up in this round."""
    before = {(m.pool, m.zone): m.failed_launches for m in observed.status.markets}
    view, notes = d.placement.outlook, []
    for p in d.fleet.places:
        failed = p.having(Standing.FAILED)
        until = view.opens_at(p.market)
        known = before.get((p.market.pool, p.market.zone), 0)
        if not failed or until is None or view.failed(p.market) <= known:
            continue
        why = failed[0].view.failure or (
            f"not ready within {launches.ready_within_s(observed):.0f} s"
            if failed[0].view.running
            else failures.STUCK
        )
        node = failed[0].view.node
        text = (
            f"{p.market}: replica {failed[0].view.name} on node {node.name if node else '?'} was given "
            f"up ({why}); no launch there before {times.to_text(until)}. Look at the node (driver, "
            "image, volume) and the replica's log; an edit of the tier lifts the pause"
        )
        notes.append(EventNote(EventType.WARNING, Reason.LAUNCH_FAILED, text[:1000]))
    return notes


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
    if d.placement.unplaced > 0 and phase is Phase.READY and _failing(d):
        return Finding(
            True, Reason.SCALING, "more replicas are wanted, see the condition CapacityAvailable"
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


def _alike(d: Decision) -> str:
    """Where, when it is more than one market: then it is hardly the nodes'."""
    markets = _failing(d)
    return (
        f"; {', '.join(markets[:5])} alike, so it is hardly the nodes" if len(markets) > 1 else ""
    )


def _failing(d: Decision) -> list[str]:
    """Markets whose last launch found a node and was never ready."""
    view = d.placement.outlook
    return sorted(str(p.market) for p in d.fleet.places if view.failed(p.market))


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
    if not refused and d.placement.unplaced and (failing := _failing(d)):
        return Finding(
            False,
            Reason.LAUNCH_FAILED,
            f"more replicas are wanted, but launches in {', '.join(failing[:10])} found nodes and were "
            "never ready; these markets are tried again ever more rarely (status.markets). Look at "
            "their nodes, or add pools or zones to spec.placement.pools; an edit of the tier tries anew",
        )
    if not refused:
        kind = str(ConditionType.CAPACITY_AVAILABLE)
        before = next((c for c in observed.status.conditions if c.type == kind), None)
        if before is not None and before.status == "False":
            return Finding(False, _known(before.reason), before.message)
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


def _known(reason: str) -> Reason:
    """A reason that stands in the status; another version may have had others."""
    try:
        return Reason(reason)
    except ValueError:
        return Reason.NO_CAPACITY


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
