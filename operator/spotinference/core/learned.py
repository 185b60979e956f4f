"""What sizing has learned, as a few whole numbers in the tier's status, and back.

A restarted operator goes on with the capacity, the daily pattern and what each forecast has earned;
the minutes under way are lost. Written at most every `EVERY_S`, and only if something changed by
more than a tenth, so that a steady tier is not written to at all. Called by `core.status` (write)
and by the controller's learner (read).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from operator import sub

from spotinference.api import times
from spotinference.api.tier_status import LearnedStatus
from spotinference.core import idle, slo
from spotinference.core.capacity import ENOUGH_BUSY_S, Capacity, Line
from spotinference.core.forecast import (
    MARGIN_LEAST,
    MARGIN_MOST,
    NAMES,
    SLOTS,
    Forecaster,
    Skill,
)
from spotinference.core.idle import IdleTimes
from spotinference.core.sizing import Memory
from spotinference.core.slo import Evidence

EVERY_S = 300.0
TENTH = 0.1
FEW = 10
"""Of a thousandth each: smaller figures do not count as changed."""
UNKNOWN = -1
HOPELESS = -1
"""In place of requests in flight: even one breaks the objective."""
MAX_MILLI = 10**12


def worth_writing(before: LearnedStatus | None, memory: Memory, now: datetime) -> bool:
    """Something is known that the status does not say, and the last write is long enough ago."""
    if before is None:
        return memory.capacity.known
    if 0 <= (now - times.parse(before.at)).total_seconds() < EVERY_S:
        return False
    after = to_status(memory, now)
    return (
        _moved([before.requests_per_replica_milli], [after.requests_per_replica_milli])
        or _moved([before.tokens_per_replica_milli], [after.tokens_per_replica_milli])
        or before.full_in_flight != after.full_in_flight
        or _moved(before.idle_milli, after.idle_milli)
        or _moved(before.day_milli, after.day_milli)
        or _moved(before.margins_percent, after.margins_percent)
    )


def to_status(memory: Memory, now: datetime) -> LearnedStatus:
    """Rates in thousandths; bounded, so that no estimate can make the status invalid."""
    known = memory.capacity.known
    forecaster = memory.forecaster
    return LearnedStatus(
        at=times.to_text(now),
        requests_per_replica_milli=_milli(memory.capacity.requests_per_s) if known else 0,
        tokens_per_replica_milli=_milli(memory.capacity.tokens_per_s) if known else 0,
        full_in_flight=_in_flight(memory.evidence),
        idle_milli=_idle(memory.idle_times),
        day_milli=list(_day(forecaster.pattern)),
        margins_percent=[round(100 * skill.margin) for skill in forecaster.skills],
        losses_milli=[UNKNOWN if s.loss is None else _milli(s.loss) for s in forecaster.skills],
    )


def from_status(status: LearnedStatus | None, idle_since: str | None = None) -> Memory:
    """The memory to go on with; what the status lacks, or what makes no sense, starts anew.

    `idle_since`: the idle time under way, as the status has it.
    """
    idle_since_s = _seconds(idle_since)
    if status is None:
        return Memory(idle_since_s=idle_since_s)
    pattern = tuple(None if v < 0 else v / 1000 for v in status.day_milli)
    margins, losses = status.margins_percent, status.losses_milli
    skills = Forecaster().skills
    if len(margins) == len(losses) == len(NAMES):
        skills = tuple(
            Skill(min(MARGIN_MOST, max(MARGIN_LEAST, m / 100)), None if x < 0 else x / 1000)
            for m, x in zip(margins, losses, strict=True)
        )
    requests, tokens = status.requests_per_replica_milli, status.tokens_per_replica_milli
    return Memory(
        capacity=Capacity(
            by_requests=_line(requests / 1000),
            by_tokens=_line(tokens / 1000),
            mix_requests=max(0.0, requests / 1000),
            mix_tokens=max(0.0, tokens / 1000),
        ),
        idle_since_s=idle_since_s,
        idle_times=idle.from_counts([count / 1000 for count in status.idle_milli]),
        evidence=slo.restored(status.full_in_flight),
        forecaster=Forecaster(
            pattern=pattern if len(pattern) == SLOTS else (None,) * SLOTS, skills=skills
        ),
    )


@lru_cache(maxsize=1024)
def _day(pattern: tuple[float | None, ...]) -> tuple[int, ...]:
    """Remembered: a slot changes once in a quarter of an hour, and this is asked for at each look."""
    return tuple(UNKNOWN if v is None else _milli(v) for v in pattern)


def _in_flight(evidence: Evidence) -> int:
    found = slo.limit(evidence)
    if found.hopeless:
        return HOPELESS
    return 0 if found.in_flight is None else max(1, round(found.in_flight))


def _seconds(text: str | None) -> float | None:
    """Since the epoch."""
    return None if text is None else times.parse(text).timestamp()


def _idle(seen: IdleTimes) -> list[int]:
    """Nothing at all before the first idle time."""
    return [_milli(count) for count in seen.counts] if sum(seen.counts) > 0 else []


def _line(rate: float) -> Line:
    """As if replicas had been full at this rate for just long enough to be believed."""
    if rate <= 0:
        return Line()
    w = ENOUGH_BUSY_S
    return Line(weight=w, u=w, uu=w, y=w / rate, uy=w / rate)


def _milli(value: float) -> int:
    return min(MAX_MILLI, max(0, round(1000 * value)))


def _moved(before: Sequence[int], after: Sequence[int]) -> bool:
    """By more than a tenth of the greatest, of either kind of knowledge gained or lost."""
    if before == after:
        return False
    if len(before) != len(after):
        return True
    scale = max(map(abs, before), default=0)
    if max(map(abs, map(sub, after, before)), default=0) > max(FEW, TENTH * scale):
        return True
    return [v < 0 for v in before] != [v < 0 for v in after]
