"""How many replicas a tier should have, and why, in one sentence with its numbers.

Load per replica counts replicas that still start (with a cold start of minutes, scaling on a queue
alone runs away: 28 k against 2.1 k replica-hours when replayed). Unknown is not zero: a replica
without a fresh sample never makes the tier smaller. Hysteresis is `status.scaling`, not memory, so
that a restarted operator goes on from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from spotinference.api import durations, times
from spotinference.api.tier import TierSpec
from spotinference.api.tier_status import ScalingStatus, TierStatus
from spotinference.core import idle, lifecycle, sizing
from spotinference.core.fleet import Fleet, Replica, Standing
from spotinference.core.lifecycle import DEFAULT_WAKE_S
from spotinference.core.observed import Observed
from spotinference.core.slo import Objective

CALL_OFF_AFTER_S = 5.0
"""A wake that nobody waits for ends after this: gateways drop and renew their demand in between."""
READING_COUNTS_S = 60.0
"""A reading is taken every ten seconds; an older one foresees nothing."""
SCALED_TO_ZERO_IDLE_S = 60.0
"""spec.replicas 0 says asleep: a tier woken under it sleeps again after this, or sooner."""
UNKNOWN_HOLD_S = 1800.0
"""While no replica can be read the number stays, but not for ever: then it goes back to the least."""


@dataclass(frozen=True, slots=True)
class Load:
    """Work seen now."""

    parked: int
    running: int
    waiting: int
    unknown: int
    """replicas that serve, or fell silent, without a fresh sample"""
    known: int
    """replicas that serve, with one"""
    active_at: datetime | None
    """last moment at which a replica was seen with work, where the scraper knows"""

    @property
    def none(self) -> bool:
        return self.parked + self.running + self.waiting + self.unknown == 0

    def __str__(self) -> str:
        text = f"{self.running} running, {self.waiting} waiting, {self.parked} parked"
        return f"{text}, {self.unknown} replicas unknown" if self.unknown else text


@dataclass(frozen=True, slots=True)
class Count:
    """The number aimed at. `look_again_at`: when a timer runs out that may change it."""

    desired: int
    reason: str
    scaling: ScalingStatus
    look_again_at: tuple[datetime, ...] = ()


def load_of(observed: Observed, fleet: Fleet) -> Load:
    """Sums over every replica that may have work: doomed and lost ones too, while samples last."""
    samples = [r.view.sample for r in fleet.every if r.view.sample is not None]
    seen = [s.active_at for s in samples if s.active_at is not None]
    return Load(
        parked=sum(d.parked for d in observed.demands),
        running=sum(s.running for s in samples),
        waiting=sum(s.waiting for s in samples),
        unknown=sum(r.view.sample is None for r in fleet.every if _may_work(r)),
        known=sum(r.view.sample is not None for r in fleet.ready),
        active_at=max(seen, default=None),
    )


def _may_work(replica: Replica) -> bool:
    """Serves, or did so until it fell silent: one too busy for probes and scrapes is not idle."""
    if replica.standing is Standing.STARTING:
        return replica.view.loaded
    serving = {Standing.READY, Standing.SILENT, Standing.LEAVING}
    return replica.view.ready and replica.standing in serving


def count(observed: Observed, fleet: Fleet, load: Load, limit: int) -> Count:
    """The rules in their order; the first that has an opinion wins.

    `limit`: what placement can use at most (maxReplicas, or fewer zones with exclusive volumes).
    """
    spec, now = observed.spec, observed.now
    current = min(current_count(observed, fleet), limit)
    scaling = _with_unknown(_with_idle(observed.status.scaling, fleet, load, now), load, now)
    least = min(spec.scaling.min_replicas, limit)
    if spec.paused:
        return Count(0, "paused: spec.paused is set", ScalingStatus())
    if spec.replicas is not None and spec.replicas > 0:
        wanted = min(spec.replicas, limit)
        return Count(wanted, f"spec.replicas asks for {spec.replicas}", ScalingStatus())
    if spec.replicas == 0:
        least = 0
    if current == 0 and load.parked > 0:
        wanted = _wake_size(spec, load.parked, limit)
        plural = "request" if load.parked == 1 else "requests"
        return Count(wanted, f"wake: {load.parked} {plural} parked, 0 replicas", ScalingStatus())
    if current < least:
        return Count(least, f"minReplicas is {least}", scaling)
    if current == 0:
        return Count(0, "asleep: no demand", ScalingStatus())
    return (
        _given_up(observed, load, current, max(1, least), scaling)
        or _sleep(observed, fleet, load, current, least, scaling)
        or _up(observed, fleet, load, current, limit, scaling)
        or _down(observed, fleet, load, current, max(1, least), scaling)
    )


def current_count(observed: Observed, fleet: Fleet) -> int:
    """The number aimed at so far.

    It comes from `status.lastDecision`, so that a hand-scaled Deployment is put back. A lost
    status drops nothing, and a request that slipped in while the tier went to sleep keeps its
    replica: wake wins.
    """
    decided = observed.status.last_decision
    if decided is None:
        return fleet.kept
    if decided.desired == 0:
        return min(fleet.kept, sum(r.work > 0 and not r.draining for r in fleet.ready))
    return decided.desired


def needed(observed: Observed, load: Load, *, queue: bool = True) -> int:
    """Replicas that would bring load per replica to its targets, or to what was learned to fill one.

    `queue` False: without regard to what waits.
    """
    scaling = observed.spec.scaling
    waiting = math.ceil((load.waiting + load.parked) / scaling.target_waiting)
    full: float = scaling.target_running
    if observed.learned is not None:
        rules = sizing_rules(observed.spec, observed.status)
        full = sizing.full(observed.learned.memory, rules)
    in_flight = load.running if scaling.slo is None or not queue else load.running + load.waiting
    return max(waiting if queue else 0, math.ceil(in_flight / full))


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What the learned load asks for. `voice` False: nothing is known, and the targets alone decide."""

    voice: bool = False
    up: int = 0
    """to how many a step up goes; 0: there are enough"""
    kept: int = 0
    """what a step down must leave"""
    down_due: bool = False
    """for long enough there have been more than that"""
    text: str = ""


def foreseen(observed: Observed, current: int, limit: int) -> Foreseen:
    """Nothing before a forecast has been judged once, or when the last reading is too old."""
    if observed.learned is None:
        return Foreseen()
    memory, reading = observed.learned.memory, observed.learned.reading
    judged = any(skill.loss is not None for skill in memory.forecaster.skills)
    if not judged or abs(observed.now.timestamp() - reading.at_s) > READING_COUNTS_S:
        return Foreseen()
    need = sizing.need(memory, reading, sizing_rules(observed.spec, observed.status, limit))
    if need is None:
        return Foreseen()
    return Foreseen(
        voice=True,
        up=min(limit, need.more_than(current)),
        kept=min(limit, need.least),
        down_due=sizing.step_down_due(memory),
        text=need.text,
    )


def sizing_rules(spec: TierSpec, status: TierStatus, most: int | None = None) -> sizing.Rules:
    """A cold start takes what the tier's last wake took. `most`: default maxReplicas."""
    usual = status.last_wake_seconds
    return sizing.Rules(
        cold_start_s=float(DEFAULT_WAKE_S if usual is None else usual),
        most=spec.scaling.max_replicas if most is None else most,
        learn_idle=spec.scaling.sleep_after == "learned",
        target_running=spec.scaling.target_running,
        objective=objective_of(spec),
    )


def objective_of(spec: TierSpec) -> Objective | None:
    asked = spec.scaling.slo
    if asked is None:
        return None
    return Objective(
        ttft_s=durations.seconds(asked.ttft),
        itl_s=durations.seconds(asked.itl),
        share=asked.percentile / 100,
    )


def _wake_size(spec: TierSpec, parked: int, limit: int) -> int:
    size = math.ceil(parked / spec.scaling.target_running)
    return min(max(1, spec.scaling.min_replicas, size), max(1, limit))


def _with_idle(scaling: ScalingStatus, fleet: Fleet, load: Load, now: datetime) -> ScalingStatus:
    """`idleSince` set while nothing is running, waiting, parked or unknown."""
    if not load.none:
        return scaling.model_copy(update={"idle_since": None})
    # The idle time of a tier begins when it can serve, not while it still loads.
    ready = (r.view.ready_at for r in fleet.ready)
    # A kubelet's clock may be ahead of ours: what is yet to come would be written at each look.
    seen = [at for at in (load.active_at, *ready) if at is not None and at <= now]
    since = max([_since(scaling.idle_since, now) or now, *seen])
    # Whole seconds are written: rounded down, a tier would sleep before its idle time is over.
    up = timedelta(microseconds=999_999)
    return scaling.model_copy(update={"idle_since": times.to_text(since + up)})


def _with_unknown(scaling: ScalingStatus, load: Load, now: datetime) -> ScalingStatus:
    """`unknownSince` set while no replica that serves can be read."""
    if load.known > 0 or load.unknown == 0:
        return scaling.model_copy(update={"unknown_since": None})
    since = _since(scaling.unknown_since, now) or now
    return scaling.model_copy(update={"unknown_since": times.to_text(since)})


def _held_until(scaling: ScalingStatus) -> datetime | None:
    since = scaling.unknown_since
    return None if since is None else times.parse(since) + timedelta(seconds=UNKNOWN_HOLD_S)


def _given_up(
    observed: Observed, load: Load, current: int, least: int, scaling: ScalingStatus
) -> Count | None:
    """Nothing known for too long: back to the least, or to what the parked requests need.

    Never to zero: a tier that cannot be read may be in use. What goes drains as always.
    """
    until = _held_until(scaling)
    wanted = max(least, needed(observed, load))
    if until is None or observed.now < until or wanted >= current:
        return None
    text = f"no replica could be read for {UNKNOWN_HOLD_S / 60:.0f} min: back to {wanted}"
    return Count(wanted, f"{text}; {load}", scaling.model_copy(update={"under_since": None}))


def _idle_limit_s(observed: Observed) -> float:
    """`idleTimeout`, or earlier where the tier's idle times taught so."""
    spec, bound_s = observed.spec, durations.seconds(observed.spec.scaling.idle_timeout)
    if spec.scaling.sleep_after == "idleTimeout" or observed.learned is None:
        return bound_s
    wake_s = sizing_rules(spec, observed.status).cold_start_s
    return idle.sleep_after_s(observed.learned.memory.idle_times, wake_s, bound_s)


def _sleep(
    observed: Observed, fleet: Fleet, load: Load, current: int, least: int, scaling: ScalingStatus
) -> Count | None:
    """Idle long enough, or a wake that nobody waits for any more: back to the least."""
    if scaling.idle_since is None or current <= least:
        return None
    idle_since = times.parse(scaling.idle_since)
    serves = bool(fleet.ready) or lifecycle.may_answer_again(fleet)
    if serves:
        limit_s = _idle_limit_s(observed)
        if observed.spec.replicas == 0:
            limit_s = min(limit_s, SCALED_TO_ZERO_IDLE_S)
        if least > 0:
            return None  # with a minimum the ordinary rule for scaling down applies
        text = f"idle for {limit_s:.0f} s: no request running, waiting or parked"
    else:
        limit_s = CALL_OFF_AFTER_S
        text = "wake called off: no request waits and no replica is ready"
    due = idle_since + timedelta(seconds=limit_s)
    if observed.now >= due:
        return Count(least, text, ScalingStatus(idle_since=scaling.idle_since))
    if not serves:
        return Count(current, "nobody waits", scaling, (due,))
    calm = _down(observed, fleet, load, current, max(1, least), scaling)
    return Count(calm.desired, calm.reason, calm.scaling, (*calm.look_again_at, due))


def _up(
    observed: Observed, fleet: Fleet, load: Load, current: int, limit: int, scaling: ScalingStatus
) -> Count | None:
    """More foreseen, or over target long enough: add what is needed, at most maxStep per period."""
    rules, now = observed.spec.scaling, observed.now
    ahead = foreseen(observed, current, limit)
    # A queue is foreseen with what starts already; by its length alone it would ask for ever more.
    queue = not ahead.voice or len(fleet.ready) >= current
    wanted = min(max(needed(observed, load, queue=queue), ahead.up), limit)
    if wanted <= current:
        return None
    why = f"; {ahead.text}" if ahead.up >= wanted else ""
    since = _since(scaling.over_since, now) or now
    scaling = scaling.model_copy(update={"over_since": times.to_text(since), "under_since": None})
    due = since + timedelta(seconds=durations.seconds(rules.scale_up.stabilization))
    if ahead.up > current:
        due = now  # the forecast has looked at minutes already
    began = scaling.step_started_at
    step_start = None if began is None else times.parse(began)
    step_end = None
    if step_start is not None:
        step_end = step_start + timedelta(seconds=durations.seconds(rules.scale_up.period))
        if not step_start <= now < step_end:
            step_start = step_end = None
    added = 0 if step_start is None else scaling.step_added
    room = rules.scale_up.max_step - added
    if now < due or room <= 0:
        later = due if now < due else step_end
        assert later is not None
        return Count(current, f"over target: {load}", scaling, (later,))
    step = min(room, wanted - current)
    scaling = scaling.model_copy(
        update={
            "over_since": times.to_text(now),
            "step_started_at": times.to_text(step_start or now),
            "step_added": added + step,
        }
    )
    reason = f"up by {step} to {current + step}: {load}, {wanted} needed{why or ' for the targets'}"
    return Count(current + step, reason, scaling)


def _down(
    observed: Observed, fleet: Fleet, load: Load, current: int, least: int, scaling: ScalingStatus
) -> Count:
    """Under target long enough: one replica fewer, and the next one after another such time.

    Where the load is foreseen: all that have been spare for long enough, in one step.
    """
    rules, now = observed.spec.scaling, observed.now
    scaling = scaling.model_copy(update={"over_since": None})
    ahead = foreseen(observed, current, current)
    wanted = max(needed(observed, load), ahead.kept, least)
    unknown = load.unknown > 0 or len(fleet.ready) < current
    if wanted >= current or unknown:
        why = "metrics of a replica are unknown" if load.unknown else "load is on target"
        until = _held_until(scaling)
        scaling = scaling.model_copy(update={"under_since": None})
        return Count(current, f"{why}: {load}", scaling, () if until is None else (until,))
    since = _since(scaling.under_since, now) or now
    scaling = scaling.model_copy(update={"under_since": times.to_text(since)})
    due = since + timedelta(seconds=durations.seconds(rules.scale_down.stabilization))
    if now < due:
        return Count(current, f"under target: {load}", scaling, (due,))
    if ahead.voice and not ahead.down_due:
        return Count(current, f"under target: {load}", scaling)
    scaling = scaling.model_copy(update={"under_since": times.to_text(now)})
    fewer = wanted if ahead.voice else current - 1
    return Count(fewer, f"down by {current - fewer} to {fewer}: {load}", scaling)


def _since(text: str | None, now: datetime) -> datetime | None:
    """A moment of the status; one that is yet to come was written by a clock ahead of ours: now."""
    return None if text is None else min(times.parse(text), now)
