"""The cheapest cover that somebody who knew the future could buy: what no policy can beat by much.

N lanes, each held by one replica at a time from the first cold start to the end: by spot nodes
that are launched just early enough, by on-demand (which here starts for free) where that is
cheaper. Each lane is the shortest path through the capacity that the lanes before it left over;
taking lanes one after the other is close to the joint optimum, not a proof of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from spotinference.simulate.spot import Rules, Tally
from spotinference.simulate.traces import Window


@dataclass(frozen=True, slots=True)
class Stretch:
    """Capacity for one node without a break: ticks [start, end)."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Use:
    """A stretch held from its launch to its last tick, or on-demand where `stretch` is None."""

    stretch: Stretch | None
    first: int
    """first tick it serves"""
    end: int


def bound(rules: Rules, window: Window) -> Tally:
    """A tally with availability 1."""
    free = stretches(window, rules.replicas)
    ticks = len(window.capacity) - window.history
    cold = -(-int(rules.cold_start_s) // int(rules.tick_s))
    tally = Tally(start_s=window.start_s, ticks=ticks)
    tally.counted = tally.available = max(0, ticks - cold)
    for _ in range(rules.replicas):
        for use in _lane(free, ticks, cold, rules.on_demand_ratio):
            tally.launches += 1
            if use.stretch is None:
                tally.on_demand_ticks += use.end - use.first
                continue
            tally.spot_ticks += use.end - use.first + cold
            tally.preemptions += use.end == use.stretch.end and use.end < ticks
            free.remove(use.stretch)
            left = Stretch(use.stretch.start, use.first - cold), Stretch(use.end, use.stretch.end)
            free += [piece for piece in left if piece.end > piece.start]
    return tally


def stretches(window: Window, most: int) -> list[Stretch]:
    """The capacity of all zones as stretches for one node each, at most `most` per zone."""
    found: list[Stretch] = []
    for zone in zip(*window.capacity[window.history :], strict=True):
        for level in range(1, most + 1):
            start: int | None = None
            for tick, room in enumerate((*zone, 0)):
                if room >= level and start is None:
                    start = tick
                elif room < level and start is not None:
                    found.append(Stretch(start, tick))
                    start = None
    return found


def _lane(free: list[Stretch], ticks: int, cold: int, ratio: float) -> list[Use]:
    """Shortest path from the first cold start to the end, over stretches and on-demand."""
    usable = [s for s in free if s.end - s.start > cold]
    by_start: dict[int, list[int]] = {}
    for index, s in enumerate(usable):
        by_start.setdefault(s.start + cold, []).append(index)
    on_demand = -1
    cost: dict[int, float] = {on_demand: 0.0}
    came: list[dict[int, int]] = []
    open_: set[int] = set()
    best, best_from = 0.0, on_demand
    for tick in range(cold, ticks):
        open_ |= set(by_start.get(tick, ()))
        open_ -= {i for i in open_ if usable[i].end <= tick}
        step: dict[int, float] = {}
        origin: dict[int, int] = {}
        step[on_demand], origin[on_demand] = best + ratio, best_from
        for index in open_:
            stay, switch = cost.get(index), best + cold
            if stay is not None and stay <= switch:
                step[index], origin[index] = stay + 1.0, index
            else:
                step[index], origin[index] = switch + 1.0, best_from
        came.append(origin)
        cost = step
        best_from = min(cost, key=lambda i: cost[i])
        best = cost[best_from]
    return _uses(came, best_from, usable, cold)


def _uses(came: list[dict[int, int]], last: int, usable: list[Stretch], cold: int) -> list[Use]:
    """The path, walked backwards and joined into uses."""
    uses: list[Use] = []
    at, end = last, len(came)
    for tick in range(len(came) - 1, -1, -1):
        before = came[tick][at]
        if before == at and tick > 0:
            continue
        uses.append(Use(usable[at] if at >= 0 else None, tick + cold, end + cold))
        at, end = before, tick
    return uses
