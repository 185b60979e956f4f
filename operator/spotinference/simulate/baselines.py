"""Policies to compare with: what people do today, and the best one published.

`SpotHedge` is ours from the paper (SkyServe, arXiv 2411.01438) and its description of the zones:
active or preempted; it is not their code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from spotinference.simulate.spot import ON_DEMAND, Orders, Rules, View

MIN_ACTIVE = 2
"""With fewer active zones the list of preempted ones is forgotten."""


@dataclass(slots=True)
class OnDemand:
    """N on-demand replicas, for ever."""

    remembers: ClassVar[bool] = False

    rules: Rules

    def decide(self, view: View) -> Orders:
        return Orders(launches=[ON_DEMAND] * (self.rules.replicas - len(view.held)))


@dataclass(slots=True)
class EvenSpread:
    """N spot replicas, always the same number in each zone: the next one goes where fewest stand,
    one at a time, and waits there until there is capacity.
    """

    remembers: ClassVar[bool] = False

    rules: Rules
    zones: int

    def decide(self, view: View) -> Orders:
        if len(view.held) >= self.rules.replicas:
            return Orders()
        standing = [sum(h.zone == zone for h in view.held) for zone in range(self.zones)]
        return Orders(launches=[standing.index(min(standing))])


@dataclass(slots=True)
class RoundRobin:
    """N spot replicas; each launch goes to the next zone, whatever became of the last one."""

    remembers: ClassVar[bool] = False

    rules: Rules
    zones: int
    _next: int = 0

    def decide(self, view: View) -> Orders:
        missing = self.rules.replicas - len(view.held)
        launches = [(self._next + i) % self.zones for i in range(missing)]
        self._next += missing
        return Orders(launches=launches)


@dataclass(slots=True)
class SpotHedge:
    """N + extra spot replicas on the zones that do not fail now, on-demand for what is not ready."""

    remembers: ClassVar[bool] = False

    rules: Rules
    zones: int
    extra: int = 1
    _preempted: set[int] = field(default_factory=set)

    def decide(self, view: View) -> Orders:
        self._learn(view)
        spot = [h for h in view.held if h.zone != ON_DEMAND]
        on_demand = [h for h in view.held if h.zone == ON_DEMAND]
        wanted = self.rules.replicas + self.extra
        standing = [sum(h.zone == zone for h in spot) for zone in range(self.zones)]
        launches: list[int] = []
        for _ in range(wanted - len(spot)):
            active = [z for z in range(self.zones) if z not in self._preempted]
            best = min(active, key=lambda z: standing[z])
            standing[best] += 1
            launches.append(best)
        ready = sum(h.ready for h in spot)
        fallback = max(0, min(self.rules.replicas, wanted - ready))
        launches += [ON_DEMAND] * (fallback - len(on_demand))
        surplus = on_demand[: max(0, len(on_demand) - fallback)]
        return Orders(launches, [h.id for h in surplus])

    def _learn(self, view: View) -> None:
        """A reclaim or a failure moves a zone out, a survivor moves it back; two stay active."""
        self._preempted |= {h.zone for h in view.reclaimed} | set(view.failed)
        self._preempted -= {h.zone for h in view.held if h.ready}
        if self.zones - len(self._preempted) < MIN_ACTIVE:
            self._preempted.clear()
