"""`decide`: from everything observed about one tier to everything that is to be done about it.

The order of the steps is the specification:

1. a tier that is being deleted, or whose children's names are taken, is left alone (and says so;
   a spec that breaks a rule never gets here: `api.parse` refuses it);
2. what is there (`fleet`), which weights are served (`weights`), whether the engine can start at
   all (`failures`);
3. how many replicas (`autoscale`), and where (`placement`);
4. the children as they should be, against the children as they are (`children`);
5. the status and events that follow (`status`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from spotinference.api import times
from spotinference.api.conditions import Reason
from spotinference.api.kinds import POD
from spotinference.api.tier_status import TierStatus
from spotinference.core import (
    autoscale,
    children,
    choice,
    engine_args,
    failures,
    findings,
    launches,
    lifecycle,
    placement,
    regret,
    status,
    weights,
)
from spotinference.core.autoscale import Count, Load
from spotinference.core.failures import Verdict
from spotinference.core.findings import Decision
from spotinference.core.fleet import Fleet, Standing, survey
from spotinference.core.observed import Observed
from spotinference.core.plan import Delete, EventNote, EventType, Plan
from spotinference.core.weights import Weights

SOONEST_S = 0.2
"""A timer that has just run out is looked at after this, not at once: no spinning."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A decision as far as somebody waits for it: the other half is worked out when that is written.

    Where fifty nodes go at once, fifty tiers wait for one thread.
    """

    urgent: Plan
    """dooms and scales"""
    whole: Callable[[], Plan]


def decide(observed: Observed) -> Plan:
    """What to do about one tier now. Deterministic; empty in steady state."""
    return begin(observed).whole()


def begin(observed: Observed) -> Begun:
    """The same, the urgent part first."""
    if observed.deleting:
        return Begun(Plan(), Plan)  # its children go with it; nothing may be made again
    if conflict := children.conflict(observed):
        return Begun(Plan(), lambda: _left_alone(observed, Reason.NAME_CONFLICT, conflict))
    if going := children.predecessor(observed):
        return Begun(Plan(), lambda: _left_alone(observed, Reason.SUPERSEDED, going))
    found = resolve(observed)
    engines = children.deployments(observed, found.fleet, found.weights, found.placement)
    urgent = Plan(dooms=found.placement.dooms, scales=engines.scales)
    return Begun(urgent, lambda: _whole(observed, found, engines))


def _whole(observed: Observed, decision: Decision, engines: children.Deployments) -> Plan:
    where = decision.placement
    changes = children.changes(observed, decision.fleet, decision.weights, engines)
    after = status.status_of(observed, decision)
    return Plan(
        dooms=where.dooms,
        scales=engines.scales,
        applies=changes.applies,
        deletes=(*changes.deletes, *removals(where)),
        pardons=where.pardons,
        status=None if after == observed.status else after,
        events=(
            *status.events(observed.status, after),
            *findings.failed_launches(observed, decision),
            *_reverts(changes),
        ),
        requeue_after_s=_look_again(
            observed.now,
            [*_timers(observed, decision, after), *changes.look_again_at],
        ),
    )


def resolve(observed: Observed) -> Decision:
    """Steps 2 and 3: how many replicas, and where. The simulator replays traces through this."""
    fleet, stock = survey(observed), weights.weigh(observed)
    seen = launches.judge(observed, fleet, _terms(observed, fleet, stock, max(1, fleet.kept)))
    fleet = seen.fleet
    verdict = failures.judge(observed, fleet, elsewhere=seen.better)
    load = autoscale.load_of(observed, fleet)
    count = _count(observed, fleet, load, verdict)
    where = placement.place(fleet, _terms(observed, fleet, stock, count.desired))
    return Decision(fleet, stock, load, verdict, count, where)


def _timers(observed: Observed, decision: Decision, after: TierStatus) -> list[datetime]:
    """When something may have to be done although nothing happens."""
    return [
        *decision.count.look_again_at,
        *decision.placement.look_again_at,
        *_refusals_due(decision.fleet),
        *launches.due(observed, decision.fleet),
        *_failure_due(decision.verdict),
        *_eta_due(after.wake.eta if after.wake is not None else None),
    ]


def _count(observed: Observed, fleet: Fleet, load: Load, verdict: Verdict) -> Count:
    limit = _limit(observed, fleet)
    if verdict.hold_until is not None and not observed.spec.paused:
        text = f"the engine does not start; next try at {times.to_text(verdict.hold_until)}"
        return Count(0, text, observed.status.scaling)
    return autoscale.count(observed, fleet, load, limit)


def _limit(observed: Observed, fleet: Fleet) -> int:
    """maxReplicas, or fewer zones with exclusive volumes; one where none is left: what stands goes on."""
    limit = observed.spec.scaling.max_replicas
    if observed.spec.cache.access_mode == "ReadWriteOnce":
        limit = min(limit, max(1, len({p.market.zone for p in fleet.places if not p.dropped})))
    return limit


def _terms(observed: Observed, fleet: Fleet, stock: Weights, wanted: int) -> choice.Terms:
    usual_s = observed.status.last_wake_seconds
    return choice.Terms(
        limit=_limit(observed, fleet),
        cold_start_s=float(max(30, lifecycle.DEFAULT_WAKE_S if usual_s is None else usual_s)),
        base=min(wanted, observed.spec.placement.on_demand.base),
        wanted=wanted,
        now=observed.now,
        drain_s=engine_args.drain_s(observed.spec),
        overprovision=observed.spec.placement.overprovision,
        max_hourly_cost=observed.spec.placement.max_hourly_cost,
        regret=regret.of(observed.status.move, observed.now),
        losses=observed.status.losses,
        burst=observed.spec.placement.on_demand.burst,
        exclusive=observed.spec.cache.access_mode == "ReadWriteOnce",
        open_zones=stock.open_zones if stock.usable else frozenset(),
    )


def removals(where: placement.Placement) -> tuple[Delete, ...]:
    """Lost pods go at once; one that a living kubelet can still end drains as it always does."""
    return tuple(
        Delete(
            kind=POD,
            name=r.view.name,
            uid=r.view.uid,
            grace_s=0 if r.struck_off else None,
        )
        for r in where.removals
    )


def _reverts(changes: children.Changes) -> tuple[EventNote, ...]:
    return tuple(EventNote(EventType.WARNING, Reason.REVERTED, text) for text in changes.reverted)


def _left_alone(observed: Observed, reason: Reason, message: str) -> Plan:
    after = status.refusal(observed, reason, message)
    return Plan(
        status=None if after == observed.status else after,
        events=tuple(status.events(observed.status, after)),
        requeue_after_s=5.0 if reason is Reason.SUPERSEDED else None,
    )


def _refusals_due(fleet: Fleet) -> list[datetime]:
    """When waiting pods become refused ones."""
    return [
        r.view.unschedulable_since + timedelta(seconds=p.refusal_s)
        for p in fleet.places
        for r in p.having(Standing.STARTING)
        if r.view.node is None and r.view.unschedulable_since is not None
    ]


def _failure_due(verdict: Verdict) -> list[datetime]:
    return [] if verdict.hold_until is None else [verdict.hold_until]


def _eta_due(eta: str | None) -> list[datetime]:
    return [] if eta is None else [times.parse(eta)]


def _look_again(now: datetime, at: list[datetime]) -> float | None:
    later = [(moment - now).total_seconds() for moment in at]
    pending = [max(SOONEST_S, seconds) for seconds in later if seconds > -1]
    return min(pending, default=None)
