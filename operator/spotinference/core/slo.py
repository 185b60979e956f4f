"""How many requests in flight a replica takes while its latencies keep the tier's objective.

For each level of requests in flight (half octaves) it is remembered for how much of the time first
tokens, and gaps between tokens, came in time. Latency grows with load, so the answer lies below the
lowest level that breaks the objective above the highest that keeps it. Where none was ever broken the
tier's own `targetRunning` counts, or more if more went well. Only levels that replicas had are known:
the number is lowered one level at a time, and evidence of a broken one fades until it is tried again.

An objective that is broken with one request in flight cannot be kept by more replicas: it is given
up, and said so, instead of buying replicas without end. Called by `core.sizing`; pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

STEPS_PER_OCTAVE = 2
LEVELS = 28
"""Up to 2^13.5 requests in flight."""
HALF_LIFE_S = 6 * 3600.0
"""Of what is remembered, in time: a level that was broken is tried again after a day or so."""
MOST_S = 1800.0
"""More evidence of one level is not kept: an engine that got slower must show within minutes."""
ENOUGH_S = 60.0
"""Replica-seconds of evidence below which a level is not judged."""
RESTORED_S = 600.0
"""What a number that was known before a restart counts for: most of a day, if nothing speaks against it."""
LONE_LEVEL = 1
"""Up to here a replica is as good as alone with one request."""


@dataclass(frozen=True, slots=True)
class Objective:
    """Seconds to the first token and between tokens, and the share that must keep each."""

    ttft_s: float
    itl_s: float
    share: float


@dataclass(frozen=True, slots=True)
class Pace:
    """One replica between two readings; None: nothing came, or it is not told."""

    in_flight: float
    up_s: float
    ttft: float | None
    """share of first tokens that came in time"""
    itl: float | None


@dataclass(frozen=True, slots=True)
class Kept:
    """Replica-seconds with evidence, and how many of them were in time, of one level."""

    ttft_s: float = 0.0
    ttft_good_s: float = 0.0
    itl_s: float = 0.0
    itl_good_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is remembered."""

    levels: tuple[Kept, ...] = (Kept(),) * LEVELS
    objective: Objective | None = None
    """what it is evidence of; None: of whatever the tier's is (none yet, or from before a restart)"""


@dataclass(frozen=True, slots=True)
class Limit:
    """`in_flight` None: the objective was never broken. `hopeless`: even one request breaks it."""

    in_flight: float | None
    most_kept: float = 0.0
    """the highest level that kept it; 0: none"""
    hopeless: bool = False


def observe(
    state: Evidence, paces: Iterable[Pace], passed_s: float, objective: Objective
) -> Evidence:
    """After one more reading of the replicas; another objective than before starts anew."""
    state = state if state.objective in {None, objective} else Evidence()
    keep = 0.5 ** (passed_s / HALF_LIFE_S)
    levels = [_added(kept, keep, None) for kept in state.levels]
    for pace in paces:
        if pace.in_flight > 0 and pace.up_s > 0:
            place = level(pace.in_flight)
            levels[place] = _added(levels[place], 1.0, pace)
    return Evidence(tuple(levels), objective)


def limit(state: Evidence) -> Limit:
    """What the evidence says."""
    if state.objective is None:
        return Limit(None)
    share = state.objective.share
    verdicts = [_verdict(kept, share) for kept in state.levels]
    best = max((i for i, good in enumerate(verdicts) if good is True), default=-1)
    most_kept = 0.0 if best < 0 else size(best)
    broken = next((i for i in range(best + 1, LEVELS) if verdicts[i] is False), None)
    if broken is None:
        return Limit(None, most_kept)
    if best < 0 and broken <= LONE_LEVEL:
        return Limit(None, most_kept, hopeless=True)
    return Limit(size(broken - 1), most_kept)


def full(state: Evidence, objective: Objective | None, target: int) -> float:
    """Requests in flight on a full replica; `target`: what the tier says."""
    if objective is None or state.objective not in {None, objective}:
        return float(target)
    found = limit(replace(state, objective=objective))
    if found.hopeless:
        return float(target)
    return max(float(target), found.most_kept) if found.in_flight is None else found.in_flight


def restored(in_flight: float) -> Evidence:
    """As if this had been found."""
    place = level(in_flight)
    if in_flight <= 0 or place + 1 >= LEVELS:
        return Evidence()
    s = RESTORED_S
    levels = [Kept()] * LEVELS
    levels[place : place + 2] = [Kept(s, s, s, s), Kept(s, 0.0, s, 0.0)]
    return Evidence(tuple(levels))


def level(in_flight: float) -> int:
    return min(LEVELS - 1, max(0, round(STEPS_PER_OCTAVE * math.log2(max(1.0, in_flight)))))


def size(place: int) -> float:
    """Requests in flight in the middle of a level."""
    return float(2 ** (place / STEPS_PER_OCTAVE))


def _added(kept: Kept, keep: float, pace: Pace | None) -> Kept:
    ttft = _sums(kept.ttft_s, kept.ttft_good_s, keep, pace, None if pace is None else pace.ttft)
    itl = _sums(kept.itl_s, kept.itl_good_s, keep, pace, None if pace is None else pace.itl)
    return Kept(*ttft, *itl)


def _sums(
    seen_s: float, good_s: float, keep: float, pace: Pace | None, share: float | None
) -> tuple[float, float]:
    seen_s, good_s = keep * seen_s, keep * good_s
    if pace is None or share is None:
        return seen_s, good_s
    seen_s, good_s = seen_s + pace.up_s, good_s + share * pace.up_s
    over = max(1.0, seen_s / MOST_S)
    return seen_s / over, good_s / over


def _verdict(kept: Kept, share: float) -> bool | None:
    """Kept, broken, or (None) not known; what is known of either latency decides."""
    known = [
        good_s / seen_s >= share
        for seen_s, good_s in ((kept.ttft_s, kept.ttft_good_s), (kept.itl_s, kept.itl_good_s))
        if seen_s >= ENOUGH_S
    ]
    return all(known) if known else None
