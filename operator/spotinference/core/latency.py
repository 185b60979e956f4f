"""An engine's latency histogram, and how many of what came between two scrapes came in time.

Cumulative counts by upper bound, as Prometheus has them. A histogram that makes no sense is None,
unknown, and never zero. Built by `clients.vllm`, read by the controller's learner; pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

MAX_BUCKETS = 64
"""vLLM's have about twenty."""
MAX_COUNT = 1e15
"""A million events a second for thirty years: no count is higher, and sums of some stay exact."""


@dataclass(frozen=True, slots=True)
class Histogram:
    bounds_s: tuple[float, ...]
    """increasing; the last is infinite"""
    counts: tuple[float, ...]
    """of values up to each bound"""


def histogram(buckets: Iterable[tuple[float, float]]) -> Histogram | None:
    """From (bound in seconds, count) pairs, those of several engines added up; None if they lie."""
    sums: dict[float, float] = {}
    for bound, count in buckets:
        if math.isnan(bound) or not 0 <= count <= MAX_COUNT:
            return None
        sums[bound] = sums.get(bound, 0.0) + count
    bounds = tuple(sorted(sums))
    if not bounds or bounds[-1] != math.inf or len(bounds) > MAX_BUCKETS:
        return None
    return _sane(Histogram(bounds, tuple(sums[bound] for bound in bounds)))


def grown(before: Histogram | None, after: Histogram | None) -> Histogram | None:
    """What came in between; counts that went back began anew, so all they show is new."""
    if before is None or after is None or before.bounds_s != after.bounds_s:
        return None
    new = tuple(a - b for b, a in zip(before.counts, after.counts, strict=True))
    return after if min(new) < 0 else _sane(Histogram(after.bounds_s, new))


def in_time(found: Histogram, limit_s: float) -> float | None:
    """Share of the values that is at most `limit_s`, on a straight line within a bucket.

    None: there is no value, or no bound beyond the limit that would tell.
    """
    total = found.counts[-1]
    low, below = 0.0, 0.0
    for bound, count in zip(found.bounds_s[:-1], found.counts[:-1], strict=True):
        if total > 0 and limit_s <= bound:
            return (below + (limit_s - low) / (bound - low) * (count - below)) / total
        low, below = bound, count
    return None


def _sane(found: Histogram) -> Histogram | None:
    return found if all(a <= b for a, b in pairwise(found.counts)) else None
