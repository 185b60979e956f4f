"""How many replicas a tier needs: arrivals expected one cold start from now, over what one serves.

    wanted = max( expected / capacity,                       what will arrive, with its margin
                  (arriving + queue left then / DRAIN_S) / capacity )      and what waits already

Replicas that still start count as replicas, and what they will have served by the time a new one
could be ready is taken off the queue. Up at once, with headroom for what a ramp brings next; down
only to what the last two cold starts needed too, once what is spare adds up to `SPARE_S`. Called by the
autoscaler and by `simulate autoscale`: the same numbers in both. All times in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from spotinference.core import capacity, forecast, idle, slo
from spotinference.core.capacity import Capacity, Seen
from spotinference.core.forecast import MINUTE_S, Forecaster, Outlook, Switches
from spotinference.core.idle import IdleTimes
from spotinference.core.slo import Evidence, Objective, Pace

DRAIN_S = 300.0
"""A queue should be gone this long after the replicas that were added for it are ready."""
HEADROOM = 0.2
"""Added to a step up, so that a ramp takes one step where it would take several."""
KEPT_COLD_STARTS = 2
"""A step down leaves what was needed at any moment of the last two cold starts."""
SPARE_S = 360.0
"""A step down is due when the share of the replicas that is not needed adds up to so many seconds: a
tenth too many for an hour, half too many for twelve minutes. It gives back all that is not needed."""
TINY = 1e-9


@dataclass(frozen=True, slots=True)
class Reading:
    """What was seen since the last reading, and what is there now."""

    at_s: float
    """since the Unix epoch: the daily pattern needs the time of day"""
    arrived: float
    finished: float
    tokens: float
    """output tokens finished"""
    busy_s: float
    """replica-seconds of work: each replica's time, by how full it was"""
    up_s: float
    """replica-seconds for which replicas were ready"""
    waiting: float
    """requests that wait at an engine or are parked at a gateway"""
    running: float
    ready: int
    starting: int
    unknown: int = 0
    """of the ready ones: those that could not be read"""

    @property
    def blind(self) -> bool:
        """Nothing of what the replicas do is known."""
        return self.ready > 0 and self.unknown == self.ready

    @property
    def current(self) -> int:
        return self.ready + self.starting


@dataclass(frozen=True, slots=True)
class Rules:
    """Of one tier."""

    cold_start_s: float
    least: int = 1
    most: int = 1
    idle_timeout_s: float = 600.0
    learn_idle: bool = True
    """whether idle times decide when to sleep"""
    target_running: int = 64
    objective: Objective | None = None
    drain: bool = True
    pending: bool = True
    """ablations: the queue's term; counting replicas that start"""
    switches: Switches = field(default_factory=Switches)

    @property
    def ahead_s(self) -> float:
        """How far a forecast must look: a cold start, and the minute until it is noticed."""
        return self.cold_start_s + MINUTE_S


@dataclass(frozen=True, slots=True)
class Memory:
    """Everything the policy remembers of one tier between two readings."""

    forecaster: Forecaster = field(default_factory=Forecaster)
    capacity: Capacity = field(default_factory=Capacity)
    idle_times: IdleTimes = field(default_factory=IdleTimes)
    evidence: Evidence = field(default_factory=Evidence)
    """of how many requests a replica takes"""
    minute_began_s: float | None = None
    minute_arrived: float = 0.0
    outlook: Outlook | None = None
    needs: tuple[tuple[float, float], ...] = ()
    """(time, replicas) of the minutes within the last `KEPT_COLD_STARTS`"""
    spare_s: float = 0.0
    """share of the replicas that is not needed x time, since some are"""
    read_at_s: float | None = None
    idle_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Size:
    wanted: int
    reason: str


def learn(memory: Memory, reading: Reading, rules: Rules) -> Memory:
    """The memory after one more reading."""
    arrived = memory.minute_arrived + reading.arrived
    memory = replace(
        _idled(memory, reading) if rules.learn_idle else memory,
        capacity=capacity.observe(
            memory.capacity,
            Seen(reading.busy_s, reading.up_s, reading.finished, reading.tokens),
        ),
        minute_arrived=arrived,
    )
    began = memory.minute_began_s
    if began is None:
        return replace(memory, minute_began_s=reading.at_s, minute_arrived=0.0)
    length = reading.at_s - began
    if length < MINUTE_S - TINY:
        return _spared(memory, reading, rules)
    at, ahead = reading.at_s, rules.ahead_s
    forecaster = forecast.observe(memory.forecaster, at, arrived / length, ahead)
    seen = forecast.outlook(forecaster, at, ahead, rules.switches)
    needs = memory.needs
    if memory.capacity.known:
        first = at - max(KEPT_COLD_STARTS * rules.cold_start_s, MINUTE_S)
        kept = tuple(n for n in needs if n[0] >= first)
        needs = (*kept, (at, seen.upper / memory.capacity.requests_per_s))
    memory = replace(
        memory,
        forecaster=forecaster,
        outlook=seen,
        needs=needs,
        minute_began_s=at,
        minute_arrived=0.0,
    )
    return _spared(memory, reading, rules)


def full(memory: Memory, rules: Rules) -> float:
    """Requests in flight on a full replica."""
    return slo.full(memory.evidence, rules.objective, rules.target_running)


def paced(memory: Memory, paces: Iterable[Pace], passed_s: float, rules: Rules) -> Memory:
    """The memory after how the replicas fared in one reading; what a full replica serves moves along
    with what is called full.
    """
    before = full(memory, rules)
    memory = replace(
        memory, evidence=slo.observe(memory.evidence, paces, passed_s, rules.objective)
    )
    after = full(memory, rules)
    if before == after:
        return memory
    return replace(memory, capacity=capacity.rescaled(memory.capacity, before / after))


def blinded(memory: Memory, at_s: float) -> Memory:
    """The memory after a time of which nothing is known: no minute, and no idle time, is learned."""
    return replace(
        memory, minute_began_s=at_s, minute_arrived=0.0, idle_since_s=None, read_at_s=None
    )


def clock_set(memory: Memory, at_s: float) -> Memory:
    """The memory after the clock was set to `at_s`: what hangs on times before begins anew, or an hour
    would seem to have passed without a request, or forecasts to be due in an hour that was.
    """
    forecaster = replace(memory.forecaster, made=(), slot=-1, slot_sum=0.0, slot_minutes=0)
    memory = replace(memory, forecaster=forecaster, needs=(), spare_s=0.0)
    return blinded(memory, at_s)


@dataclass(frozen=True, slots=True)
class Need:
    """Replicas, before rounding and the tier's bounds."""

    expected: float
    """for what will arrive, its margin included"""
    now: float
    """for that, or for the queue where it is more"""
    kept: float
    """the most of the last cold starts: what a step down must leave"""
    text: str

    def more_than(self, current: int) -> int:
        """To how many a step up goes; 0: so many are enough."""
        if math.ceil(self.now - TINY) <= current:
            return 0
        return math.ceil(max(self.expected * (1 + HEADROOM), self.now) - TINY)

    @property
    def least(self) -> int:
        """What a step down leaves."""
        return max(1, math.ceil(max(self.now, self.kept) - TINY))


def need(memory: Memory, reading: Reading, rules: Rules) -> Need | None:
    """What the tier needs; None before enough has been learned."""
    seen = memory.outlook
    if seen is None or not memory.capacity.known:
        return None
    each = memory.capacity.requests_per_s
    expected = seen.upper / each
    left = _left(reading, seen, each, rules) if rules.drain else 0.0
    queue = (seen.now + left / DRAIN_S) / each if left > 0 else 0.0
    kept = max([n for _, n in memory.needs], default=expected)
    return Need(
        expected=expected,
        now=max(expected, queue),
        kept=max(kept, queue),
        text=f"{seen.upper:.2f} requests/s expected by {forecast.NAMES[seen.expert]}, "
        f"{left:.0f} left waiting, {each:.2f} requests/s per replica",
    )


def size(memory: Memory, reading: Reading, rules: Rules) -> Size:
    """Replicas wanted now, within the tier's bounds; `memory` has learned this reading."""
    current = reading.current
    if _asleep(memory, reading, rules):
        # At zero too: a forecast that fades wakes nobody, what arrives does.
        return Size(0, "idle for long enough")
    needed = need(memory, reading, rules)
    if needed is None:
        return Size(_bounded(_unlearned(reading, current), rules), "nothing learned yet")
    up = needed.more_than(current if rules.pending else reading.ready)
    if up > 0:
        up += 0 if rules.pending else reading.starting
        return Size(_bounded(up, rules), f"up: {needed.text}")
    if step_down_due(memory):
        return Size(min(current, _bounded(needed.least, rules)), f"down: {needed.text}")
    return Size(_bounded(current, rules), f"steady: {needed.text}")


def step_down_due(memory: Memory) -> bool:
    """Enough was spare; what is given back then is no longer spare at the next reading."""
    return memory.spare_s >= SPARE_S


def _spared(memory: Memory, reading: Reading, rules: Rules) -> Memory:
    """With the time since the last reading counted for the replicas that are not needed; none: anew."""
    needed, since = need(memory, reading, rules), memory.read_at_s
    least = reading.current if needed is None else _bounded(needed.least, rules)
    spare = max(0, reading.current - least)
    if spare == 0 or since is None:
        return replace(memory, spare_s=0.0, read_at_s=reading.at_s)
    share_s = (reading.at_s - since) * spare / reading.current
    return replace(memory, spare_s=memory.spare_s + share_s, read_at_s=reading.at_s)


def _unlearned(reading: Reading, current: int) -> int:
    return max(current, 1) if reading.waiting + reading.running > 0 else current


def _bounded(wanted: int, rules: Rules) -> int:
    return max(rules.least, min(wanted, rules.most))


def _left(reading: Reading, seen: Outlook, each: float, rules: Rules) -> float:
    """Requests that will still wait when a replica launched now is ready.

    Those that start become ready on the way, on average half way. No more than wait now: a queue
    that is still to come is the forecast's business.
    """
    cold = rules.cold_start_s
    starting = reading.starting if rules.pending else 0
    served = each * (reading.ready + starting / 2) * cold
    return max(0.0, min(reading.waiting, reading.waiting + seen.now * cold - served))


def _idled(memory: Memory, reading: Reading) -> Memory:
    """Begins and ends idle times."""
    busy = reading.waiting + reading.running > TINY or reading.arrived > 0
    since = memory.idle_since_s
    if reading.unknown > 0:
        return replace(memory, idle_since_s=None)
    if not busy:
        return memory if since is not None else replace(memory, idle_since_s=reading.at_s)
    if since is None:
        return memory
    times = idle.observe(memory.idle_times, reading.at_s - since)
    return replace(memory, idle_since_s=None, idle_times=times)


def _asleep(memory: Memory, reading: Reading, rules: Rules) -> bool:
    if rules.least > 0 or memory.idle_since_s is None:
        return False
    wait = idle.sleep_after_s(memory.idle_times, rules.cold_start_s, rules.idle_timeout_s)
    return reading.at_s - memory.idle_since_s >= wait - TINY
