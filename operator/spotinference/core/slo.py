"""How many requests in flight a replica takes: while its KV cache has room, and (where the tier has an
objective) while its latencies keep it.

For each level of requests in flight (half octaves) it is remembered for how much of the time first
tokens, and gaps between tokens, came in time, and for how much of it nothing was preempted from a full
KV cache. All grow with load, so the answer lies below the lowest level that is too much above the
highest that is not. Where none ever was the tier's own `targetRunning` counts, or with an objective more
if more went well. Only levels that replicas had are known: the number is lowered one level at a time,
and evidence of one that was too much fades until it is tried again.

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
ROOM_SHARE = 0.95
"""Of the time at a level, without a preemption: a rare one costs less than a replica."""
KV_FULL = 0.9
"""Share of the KV cache in use from which a preemption is one for want of room."""
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
    room: bool | None = None
    """nothing was preempted while the KV cache was full"""


@dataclass(frozen=True, slots=True)
class Kept:
    """Replica-seconds with evidence, and how many of them were good, of one level."""

    ttft_s: float = 0.0
    ttft_good_s: float = 0.0
    itl_s: float = 0.0
    itl_good_s: float = 0.0
    room_s: float = 0.0
    room_good_s: float = 0.0


NOTHING = Kept()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is remembered."""

    levels: tuple[Kept, ...] = (NOTHING,) * LEVELS
    objective: Objective | None = None
    """what the latencies are evidence of; None: of whatever the tier's is (none, or from before a
    restart)"""


@dataclass(frozen=True, slots=True)
class Limit:
    """`in_flight` None: it was never too much. `hopeless`: even one request is."""

    in_flight: float | None
    most_kept: float = 0.0
    """the highest level that was not too much; 0: none"""
    hopeless: bool = False


def observe(
    state: Evidence, paces: Iterable[Pace], passed_s: float, objective: Objective | None
) -> Evidence:
    """After one more reading of the replicas; another objective than before starts anew."""
    state = state if state.objective in {None, objective} else Evidence()
    keep = 0.5 ** (passed_s / HALF_LIFE_S)
    levels = [kept if kept is NOTHING else _added(kept, keep, None) for kept in state.levels]
    for pace in paces:
        if pace.in_flight > 0 and pace.up_s > 0:
            place = level(pace.in_flight)
            levels[place] = _added(levels[place], 1.0, pace)
    return Evidence(tuple(levels), objective)


def limit(state: Evidence) -> Limit:
    """What the evidence says."""
    share = None if state.objective is None else state.objective.share
    verdicts = [None if kept is NOTHING else _verdict(kept, share) for kept in state.levels]
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
    if state.objective not in {None, objective}:
        return float(target)
    found = limit(replace(state, objective=objective))
    if found.hopeless:
        return float(target)
    if objective is None:
        return float(target) if found.in_flight is None else min(target, found.in_flight)
    return max(float(target), found.most_kept) if found.in_flight is None else found.in_flight


def restored(in_flight: float) -> Evidence:
    """As if this had been found."""
    place = level(in_flight)
    if in_flight <= 0 or place + 1 >= LEVELS:
        return Evidence()
    s = RESTORED_S
    levels = [NOTHING] * LEVELS
    levels[place : place + 2] = [Kept(s, s, s, s, s, s), Kept(s, 0.0, s, 0.0, s, 0.0)]
    return Evidence(tuple(levels))


def level(in_flight: float) -> int:
    return min(LEVELS - 1, max(0, round(STEPS_PER_OCTAVE * math.log2(max(1.0, in_flight)))))


def size(place: int) -> float:
    """Requests in flight in the middle of a level."""
    return float(2 ** (place / STEPS_PER_OCTAVE))


def _added(kept: Kept, keep: float, pace: Pace | None) -> Kept:
    ttft = _sums(kept.ttft_s, kept.ttft_good_s, keep, pace, None if pace is None else pace.ttft)
    itl = _sums(kept.itl_s, kept.itl_good_s, keep, pace, None if pace is None else pace.itl)
    free = None if pace is None or pace.room is None else float(pace.room)
    return Kept(*ttft, *itl, *_sums(kept.room_s, kept.room_good_s, keep, pace, free))


def _sums(
    seen_s: float, good_s: float, keep: float, pace: Pace | None, share: float | None
) -> tuple[float, float]:
    seen_s, good_s = keep * seen_s, keep * good_s
    if pace is None or share is None:
        return seen_s, good_s
    seen_s, good_s = seen_s + pace.up_s, good_s + share * pace.up_s
    over = max(1.0, seen_s / MOST_S)
    return seen_s / over, good_s / over


def _verdict(kept: Kept, share: float | None) -> bool | None:
    """Not too much, too much, or (None) not known; `share` None: latencies do not matter."""
    room = _good(kept.room_s, kept.room_good_s, ROOM_SHARE)
    if share is None:
        return room
    latencies = (
        _good(kept.ttft_s, kept.ttft_good_s, share),
        _good(kept.itl_s, kept.itl_good_s, share),
    )
    if False in {room, *latencies}:
        return False
    return True if True in latencies else None


def _good(seen_s: float, good_s: float, least: float) -> bool | None:
    return good_s / seen_s >= least if seen_s >= ENOUGH_S else None
