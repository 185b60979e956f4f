"""The common mix, to compare with: most of the peak reserved, the rest on spot, on-demand on a queue.

What teams build by hand from a committed discount, a spot node group and a rule on queue length. It
knows the workload's peak beforehand and never sleeps: what is reserved is paid for in any case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from spotinference.core.observed import Market
from spotinference.simulate.machines import Machines, Pod
from spotinference.simulate.traffic import Traffic

RESERVED_SHARE = 0.7
QUEUE = 50.0
"""More requests than this wait: on-demand helps, one replica for each so many."""
CALM_S = 300.0
"""On-demand goes when nothing has waited for so long: an HPA's window for scaling down."""


@dataclass(slots=True)
class ReservedMix:
    sleeps: ClassVar[bool] = False

    reserved: Market
    spots: list[Market]
    steady: Market
    peak: int
    """replicas for the busiest minute"""
    name: str = "reserved-mix"
    _next: int = 0
    _bridge: int = 0
    _waited_at: float = -1e9

    @property
    def base(self) -> int:
        return math.ceil(RESERVED_SHARE * self.peak)

    def act(self, now: float, machines: Machines, traffic: Traffic) -> None:
        sizes = machines.sizes
        sizes[self.reserved] = self.base
        for pod in list(machines.pods.values()):
            self._move_on(pod, machines, now)
        for _ in range(self.peak - self.base - sum(sizes.get(m, 0) for m in self.spots)):
            market = self.spots[self._next % len(self.spots)]
            sizes[market] = sizes.get(market, 0) + 1
            self._next += 1
        sizes[self.steady] = self._bridged(now, traffic.queued)

    def _move_on(self, pod: Pod, machines: Machines, now: float) -> None:
        """A spot replica that finds no node is tried in the next zone."""
        if pod.lost:
            machines.delete(pod.name, at_once=True, now=now)
            return
        waits = pod.ending_at is None and pod.refused and pod.node is None
        if waits and pod.market in self.spots:
            machines.sizes[pod.market] -= 1
            machines.delete(pod.name, at_once=False, now=now)

    def _bridged(self, now: float, queued: float) -> int:
        if queued >= 1.0:
            self._waited_at = now
        elif now - self._waited_at >= CALM_S:
            self._bridge = 0
        self._bridge = max(self._bridge, min(self.peak, int(queued / QUEUE)))
        return self._bridge
