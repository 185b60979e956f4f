"""The cheapest cover that somebody who knew the future could buy: no policy is cheaper that always
keeps N ready.

N replicas are ready at each tick from the first cold start to the end: on spot nodes that are
launched just early enough, or on demand (which here starts for free) where that is cheaper. That is
a flow of N units through time at the least cost: a unit stands on demand, or on one of the zones'
nodes, which it enters for the price of a cold start. The least cost is found exactly, by successive
shortest paths. (Nothing keeps a unit off a node that boots for another one; but who leaves a node
and returns within a cold start would have stayed for less, so it does not happen.)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from spotinference.simulate.spot import Rules, Tally
from spotinference.simulate.traces import Window


@dataclass(frozen=True, slots=True)
class Stretch:
    """Capacity for one node without a break: ticks [start, end)."""

    start: int
    end: int


@dataclass(slots=True)
class Network:
    """Edges in pairs: the one after an even one is its way back, which undoes flow."""

    to: list[int] = field(default_factory=list)
    room: list[int] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    of: list[list[int]] = field(default_factory=list)
    """[node]: its edges"""

    def node(self) -> int:
        self.of.append([])
        return len(self.of) - 1

    def edge(self, start: int, end: int, room: int, cost: float) -> int:
        for a, b, space, price in ((start, end, room, cost), (end, start, 0, -cost)):
            self.of[a].append(len(self.to))
            self.to.append(b)
            self.room.append(space)
            self.cost.append(price)
        return len(self.to) - 2

    def flow(self, edge: int) -> int:
        return self.room[edge + 1]

    def send(self, start: int, end: int, units: int) -> None:
        """As many units as cheaply as can be; an edge of unbounded room must lead there."""
        potential = [0.0] * len(self.of)
        while units > 0:
            distance, came = self._distances(start, potential)
            potential = [p + d for p, d in zip(potential, distance, strict=True)]
            path = list(self._back(came, start, end))
            sent = min(units, *(self.room[edge] for edge in path))
            for edge in path:
                self.room[edge] -= sent
                self.room[edge ^ 1] += sent
            units -= sent

    def _distances(self, start: int, potential: list[float]) -> tuple[list[float], list[int]]:
        """Dijkstra's, over costs that the potentials keep at or above zero."""
        distance = [float("inf")] * len(self.of)
        came = [-1] * len(self.of)
        distance[start] = 0.0
        heap = [(0.0, start)]
        while heap:
            far, node = heapq.heappop(heap)
            if far > distance[node]:
                continue
            for edge in self.of[node]:
                other = self.to[edge]
                new = far + max(0.0, self.cost[edge] + potential[node] - potential[other])
                if self.room[edge] and new < distance[other]:
                    distance[other], came[other] = new, edge
                    heapq.heappush(heap, (new, other))
        return distance, came

    def _back(self, came: list[int], start: int, end: int) -> Iterator[int]:
        while end != start:
            yield came[end]
            end = self.to[came[end] ^ 1]


def bound(rules: Rules, window: Window) -> Tally:
    """A tally with availability 1."""
    ticks = len(window.capacity) - window.history
    cold = -int(-rules.cold_start_s // rules.tick_s)
    tally = Tally(start_s=window.start_s, ticks=ticks)
    tally.counted = tally.available = max(0, ticks - cold)
    if not tally.counted:
        return tally
    usable = [s for s in stretches(window, rules.replicas) if s.end - s.start > cold]
    # Between two moments at which a node becomes usable or is lost, nothing is better than at them.
    times = sorted({cold, ticks, *(s.start + cold for s in usable), *(s.end for s in usable)})
    net = Network()
    pool = [net.node() for _ in times]
    steady = [
        net.edge(a, b, rules.replicas, rules.on_demand_ratio * (end - start))
        for (a, b), (start, end) in zip(pairwise(pool), pairwise(times), strict=True)
    ]
    index = {time: i for i, time in enumerate(times)}
    tracks = [
        _track(net, pool, times, range(index[s.start + cold], index[s.end] + 1), cold)
        for s in usable
    ]
    net.send(pool[0], pool[-1], rules.replicas)
    before = 0
    for edge, (start, end) in zip(steady, pairwise(times), strict=True):
        standing = net.flow(edge)
        tally.on_demand_ticks += standing * (end - start)
        tally.launches += max(0, standing - before)
        before = standing
    for stretch, (enters, stays) in zip(usable, tracks, strict=True):
        for edge, length in stays:
            tally.spot_ticks += net.flow(edge) * length
        launches = sum(net.flow(edge) for edge in enters)
        tally.launches += launches
        tally.spot_ticks += launches * cold
        tally.preemptions += net.flow(stays[-1][0]) if stretch.end < ticks else 0
    return tally


def _track(
    net: Network, pool: list[int], times: list[int], where: range, cold: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """One node of a zone while it can serve; the edges into it, and those along it with ticks."""
    nodes = [net.node() for _ in where]
    enters = []
    for i, node in zip(where, nodes, strict=True):
        enters.append(net.edge(pool[i], node, 1, float(cold)))
        net.edge(node, pool[i], 1, 0.0)
    stays = []
    for (i, j), (a, b) in zip(pairwise(where), pairwise(nodes), strict=True):
        length = times[j] - times[i]
        stays.append((net.edge(a, b, 1, float(length)), length))
    return enters, stays


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
