"""Launches that found a node and do not become ready: which are given up, because another market
may do better, and when it is not the markets' fault.

A launch given up counts against its market with a growing pause (`outlook`, `markets`), so that its
replacement goes elsewhere. When `MOST_TRIED` markets did the same and nothing is ready, it is the
tier's own fault: then `failures` stops, and tries again ever more rarely. Called by `reconcile`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from spotinference.api import durations
from spotinference.core import choice, outlook
from spotinference.core.choice import Draft, Terms
from spotinference.core.fleet import Fleet, Place, Replica, Standing
from spotinference.core.observed import Market, Observed, ReplicaView

GIVE_UP_RESTARTS = 3
NEVER_STARTED_S = 120.0
"""An image that cannot be pulled, a container that cannot be made: no restart will be counted."""
LATE = 3.0
"""A launch that takes so many of the tier's usual wakes is late."""
LEAST_S = 300.0
"""No launch is late before this: in a market that is new to it the image has yet to be pulled."""
MOST_TRIED = 3
"""So many markets in which no launch became ready, and none elsewhere: it is the tier's own fault."""
LATELY_S = 3600.0
"""Failures longer ago than this say nothing about this wake."""
SERVED_S = 60.0
"""Not ready only since this long after it was bound: it was ready before, so it is no new launch."""


@dataclass(frozen=True, slots=True)
class Judged:
    """`fleet` with every launch that is given up as `FAILED`; `better`: a market is left for them."""

    fleet: Fleet
    better: bool = False


def judge(observed: Observed, fleet: Fleet, terms: Terms) -> Judged:
    """A hopeless launch is given up, whatever the others do; one that is only late, where a market is
    left that may do better: else it is the tier's only chance.
    """
    doubtful = [r for r in fleet.replicas if _late(r, observed)]
    if not doubtful:
        return Judged(fleet)
    better = bool(_elsewhere(observed, fleet, terms, {r.view.market for r in doubtful}))
    failed = {r.view.uid for r in doubtful if better or hopeless(r, observed)}
    places = tuple(
        replace(p, replicas=tuple(_as_failed(r, failed) for r in p.replicas)) for p in fleet.places
    )
    return Judged(replace(fleet, places=places), better)


def _elsewhere(
    observed: Observed, fleet: Fleet, terms: Terms, late: set[Market]
) -> tuple[Place, ...]:
    """Markets that may do better than those whose launches are late now or failed lately."""
    counts = {p.market: p.kept for p in fleet.places}
    for market in late:
        counts[market] = 0
    draft = Draft(terms, fleet.places, counts, outlook.of(fleet, observed.now))
    if not fleet.ready and _tried(observed, draft, late) >= MOST_TRIED:
        return ()
    return tuple(
        p
        for p in choice.able(draft, fleet.places)
        if p.market not in late
        and choice.takes_launches(draft, p)
        and (fleet.ready or not choice.failed_lately(draft, p))
    )


def hopeless(replica: Replica, observed: Observed) -> bool:
    """It keeps crashing, or its container is not made in time: time alone will not help it."""
    view = replica.view
    if not _starting(replica):
        return False
    begun, started = begun_at(view), view.running or view.restarts > 0
    if view.failure is None and started:
        return False  # it loads; the kubelet restarts it when that takes longer than it may
    served = begun - (view.scheduled_at or begun) > timedelta(seconds=SERVED_S)
    if view.restarts >= GIVE_UP_RESTARTS and not served:
        return True
    # The kubelet gives no reason while volumes are mounted and the image is pulled.
    patient = started or view.failure is None
    limit_s = _startup_s(observed) if patient else NEVER_STARTED_S
    return observed.now - begun > timedelta(seconds=limit_s)


def ready_within_s(observed: Observed) -> float:
    """What a launch may take, from its node on: measured by the tier's last wake, which has the wait
    for a node in it. Before any was measured, its owner's own bound for the load, and an image pull.
    """
    usual_s = observed.status.last_wake_seconds
    allowed_s = _startup_s(observed) + LEAST_S
    if usual_s is None:
        return allowed_s
    return min(max(LEAST_S, LATE * usual_s), LATE * allowed_s)


def begun_at(view: ReplicaView) -> datetime:
    """When it was bound to its node; for one that was ready before: when it ceased to be."""
    begun = view.scheduled_at or view.created_at
    return begun if view.unready_since is None else max(begun, view.unready_since)


def due(observed: Observed, fleet: Fleet) -> list[datetime]:
    """When launches under way become late, or hopeless, although nothing happens."""
    limits = {ready_within_s(observed), _startup_s(observed)}
    return [
        begun_at(r.view) + timedelta(seconds=s)
        for r in fleet.replicas
        if _starting(r)
        for s in (limits if r.view.failure is None else {*limits, NEVER_STARTED_S})
    ]


def _starting(replica: Replica) -> bool:
    """On a node, and not ready since it is there: one that fell silent is its kubelet's matter."""
    view = replica.view
    return replica.standing is Standing.STARTING and view.node is not None and not view.loaded


def _late(replica: Replica, observed: Observed) -> bool:
    if not _starting(replica):
        return False
    passed = observed.now - begun_at(replica.view)
    return passed > timedelta(seconds=ready_within_s(observed)) or hopeless(replica, observed)


def _startup_s(observed: Observed) -> float:
    return durations.seconds(observed.spec.engine.startup)


def _tried(observed: Observed, draft: Draft, late: set[Market]) -> int:
    """Markets in which launches failed in this wake. All, if the tier's own fault was found already."""
    before = observed.status.engine_failure
    if before is not None and before.generation == observed.generation:
        return MOST_TRIED
    since = observed.now - timedelta(seconds=LATELY_S)
    view = draft.outlook
    failed = {
        p.market
        for p in draft.places
        if view.failed(p.market) and (at := view.refused_at(p.market)) is not None and at > since
    }
    return len(failed | late)


def _as_failed(replica: Replica, failed: set[str]) -> Replica:
    if replica.view.uid not in failed:
        return replica
    return replace(replica, standing=Standing.FAILED)
