"""Phase of a tier and the stages of its wake, with the time each began and the expected end."""

from __future__ import annotations

from datetime import datetime, timedelta

from spotinference.api import durations, times
from spotinference.api.conditions import Phase, WakeStage
from spotinference.api.tier_status import StageStatus, TierStatus, WakeStatus
from spotinference.core.fleet import Fleet, Standing
from spotinference.core.observed import Observed
from spotinference.core.weights import Weights

DEFAULT_WAKE_S = 300.0
"""Expected duration of a first wake; later ones expect what the last one took."""
MAX_STAGES = 16
BEFORE_S = 60.0
"""A replica made so long before a wake began, or longer, was not launched by it. (Less may be clocks.)"""


def phase_of(observed: Observed, fleet: Fleet, desired: int, *, broken: bool) -> Phase:
    """`broken`: something that a person (or a long wait) must resolve, and nothing serves."""
    if fleet.ready and desired > 0:
        return Phase.READY
    if broken:
        return Phase.DEGRADED
    if desired > 0:
        return Phase.WAKING
    return Phase.DRAINING if observed.replicas else Phase.ASLEEP


def stage_of(fleet: Fleet, weights: Weights) -> WakeStage:
    """How far the furthest replica is."""
    if fleet.ready:
        return WakeStage.READY
    starting = [r.view for r in fleet.replicas if r.standing is Standing.STARTING]
    if any(v.running for v in starting):
        return WakeStage.LOADING
    if any(v.node is not None for v in starting):
        return WakeStage.STARTING
    somewhere = weights.open_zones is None or len(weights.open_zones) > 0
    return WakeStage.SCHEDULING if weights.usable and somewhere else WakeStage.WEIGHTS


def wake_of(observed: Observed, fleet: Fleet, weights: Weights, desired: int) -> WakeStatus | None:
    """The wake under way, or the last one; None when the last one was called off."""
    before, now = observed.status.wake, observed.now
    under_way = before is not None and before.ready_at is None
    if desired == 0:
        return None if under_way else before
    if fleet.ready:
        return _finished(before, fleet, now) if before is not None and under_way else before
    stage = stage_of(fleet, weights)
    if before is not None and not under_way and may_answer_again(fleet):
        return before
    if before is None or not under_way:
        return _begun(observed, stage)
    stages = before.stages
    if before.stage != stage:
        stages = [*stages, StageStatus(name=stage, started_at=times.to_text(now))][-MAX_STAGES:]
    overdue = before.eta is not None and now > times.parse(before.eta)
    return before.model_copy(
        update={
            "stage": str(stage),
            "stages": stages,
            "eta": before.deadline if overdue else before.eta,
        }
    )


def last_wake_s(before: TierStatus, wake: WakeStatus | None, fleet: Fleet) -> int | None:
    """Duration of the last wake that ended with a replica launched for it.

    One that ends with a replica which was starting already says nothing of a cold start: launches
    would be given up as late, and loads foreseen, by a time in which none can be ready.
    """
    if wake is None or wake.ready_at is None or wake == before.wake:
        return before.last_wake_seconds
    started_at = times.parse(wake.started_at)
    first = min(fleet.ready, key=lambda r: r.view.ready_at or r.view.created_at, default=None)
    if first is None or first.view.created_at < started_at - timedelta(seconds=BEFORE_S):
        return before.last_wake_seconds
    return max(0, round((times.parse(wake.ready_at) - started_at).total_seconds()))


def may_answer_again(fleet: Fleet) -> bool:
    """A replica that served does not answer its probe: that is no wake, and may be over in a moment."""
    return any(r.standing is Standing.STARTING and r.view.loaded for r in fleet.replicas)


def _begun(observed: Observed, stage: WakeStage) -> WakeStatus:
    # A wake begins when the first request waits, not when we first look.
    oldest = min((d.oldest_parked_at for d in observed.demands), default=observed.now)
    cap_s = durations.seconds(observed.spec.wake.cap)
    started = max(min(oldest, observed.now), observed.now - timedelta(seconds=cap_s))
    usual = observed.status.last_wake_seconds
    expected_s = min(DEFAULT_WAKE_S if usual is None else usual, cap_s)
    text = times.to_text(observed.now)
    return WakeStatus(
        started_at=times.to_text(started),
        deadline=times.to_text(started + timedelta(seconds=cap_s)),
        stage=str(stage),
        stages=[StageStatus(name=str(stage), started_at=text)],
        eta=times.to_text(observed.now + timedelta(seconds=expected_s)),
    )


def _finished(before: WakeStatus, fleet: Fleet, now: datetime) -> WakeStatus:
    known = [r.view.ready_at for r in fleet.ready if r.view.ready_at is not None]
    ready_at = times.to_text(min([*known, now]))
    ready = StageStatus(name=str(WakeStage.READY), started_at=ready_at)
    return before.model_copy(
        update={
            "stage": str(WakeStage.READY),
            "stages": [*before.stages, ready][-MAX_STAGES:],
            "ready_at": ready_at,
            "eta": None,
        }
    )
