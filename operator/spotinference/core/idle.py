"""When to sleep: the ski-rental problem, with the tail of idle times learned.

An idle replica costs its time; sleeping and waking costs one cold start of it. Who does not know
how long the tier stays idle and waits exactly one cold start never pays more than twice what a
clairvoyant would (Karlin et al. 1988). Idle times seen before do better: the wait that would have
cost least over them. Bounded by the tier's idleTimeout. Called by `core.sizing`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SHORTEST_S = 30.0
"""No tier sleeps earlier, and shorter idle times are not remembered: they decide nothing."""
STEPS_PER_OCTAVE = 2
BUCKETS = 30
"""Half octaves from 30 s: the last begins at eight days."""
MEMORY = 0.97
"""Each idle time weighs this much less when the next has come: about 33 count."""
ENOUGH = 6.0
"""Weight of idle times below which nothing has been learned."""


@dataclass(frozen=True, slots=True)
class IdleTimes:
    """Decayed count, and decayed sum in seconds, of idle times by length."""

    counts: tuple[float, ...] = (0.0,) * BUCKETS
    sums_s: tuple[float, ...] = (0.0,) * BUCKETS


def observe(state: IdleTimes, idle_s: float) -> IdleTimes:
    """After one idle time that has ended with work."""
    if idle_s < SHORTEST_S:
        return state
    place = min(BUCKETS - 1, int(STEPS_PER_OCTAVE * math.log2(idle_s / SHORTEST_S)))
    return IdleTimes(
        tuple(MEMORY * c + (i == place) for i, c in enumerate(state.counts)),
        tuple(MEMORY * s + idle_s * (i == place) for i, s in enumerate(state.sums_s)),
    )


def from_counts(counts: Sequence[float]) -> IdleTimes:
    """From the counts alone: each idle time as long as the middle of its half octave."""
    if len(counts) != BUCKETS:
        return IdleTimes()
    kept = tuple(max(0.0, count) for count in counts)
    middle = (SHORTEST_S * 2 ** ((i + 0.5) / STEPS_PER_OCTAVE) for i in range(BUCKETS))
    return IdleTimes(kept, tuple(c * s for c, s in zip(kept, middle, strict=True)))


def sleep_after_s(state: IdleTimes, wake_cost_s: float, bound_s: float) -> float:
    """Idle seconds after which to sleep; `wake_cost_s`: replica-seconds that a wake costs.

    Before enough idle times are known: one wake's cost, the best a deterministic rule can promise.
    Never longer than `bound_s`, and never shorter than `SHORTEST_S` unless the bound is.
    """
    weight = sum(state.counts)
    if weight < ENOUGH:
        return min(bound_s, max(SHORTEST_S, wake_cost_s))
    longer, cost_below = weight, 0.0
    best_s, least = SHORTEST_S, math.inf
    for place in range(BUCKETS):
        wait_s = SHORTEST_S * 2 ** (place / STEPS_PER_OCTAVE)
        if wait_s > bound_s:
            break
        cost = cost_below + longer * (wait_s + wake_cost_s)
        if cost < least:
            best_s, least = wait_s, cost
        longer -= state.counts[place]
        cost_below += state.sums_s[place]
    stay = cost_below + longer * (bound_s + wake_cost_s)
    return bound_s if stay < least else min(best_s, bound_s)
