"""What a tier is compared with: the peak on demand all the time, SpotHedge under an HPA, and the
common mix of reserved, spot and on-demand (`mixed`) where the pools have a reserved one.

They get what they need for nothing: the static ones know the workload's peak, the other its own
replicas at once. They run on the same machines, traffic and prices as ours.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import ClassVar

from spotinference.core.observed import Market
from spotinference.simulate import autoscale_policies, baselines, spot
from spotinference.simulate.autoscale import Signals
from spotinference.simulate.machines import Machines, Pod
from spotinference.simulate.mixed import ReservedMix
from spotinference.simulate.tier import Controller, Setup
from spotinference.simulate.traffic import Traffic

SPOTHEDGE_EXTRA = 1


def of(setup: Setup) -> list[Controller]:
    """Those that the tier's pools allow: each needs a price for on-demand nodes."""
    steady = _markets(setup, "on-demand")
    if not steady:
        return []
    spots, reserved = _markets(setup, "spot"), _markets(setup, "reserved")
    found: list[Controller] = [OnDemandStatic(steady[0], peak(setup))]
    if spots:
        found.append(SpotHedgeHpa(setup, spots, steady[0]))
    if spots and reserved:
        found.append(ReservedMix(reserved[0], spots, steady[0], peak(setup)))
    return found


def _markets(setup: Setup, kind: str) -> list[Market]:
    """Of the tier's pools; a reserved one may stand beside them, for the comparison only."""
    named = [name for name in setup.spec.placement.pools if name in setup.pools]
    beside = [name for name in setup.pools if name not in named and kind == "reserved"]
    return [
        Market(name, zone)
        for name in (*named, *beside)
        if setup.pools[name].capacity_type == kind
        for zone in setup.pools[name].zones
    ]


def peak(setup: Setup) -> int:
    """Replicas for the busiest minute, at least minReplicas and one."""
    arrivals = setup.arrivals
    works = [
        setup.service.work(n, p, o)
        for n, p, o in zip(
            arrivals.requests, arrivals.prompt_tokens, arrivals.output_tokens, strict=True
        )
    ]
    most = max(autoscale_policies.needs(works, setup.tick_s, max(15.0, setup.tick_s)))
    return max(1, most, setup.spec.scaling.min_replicas)


@dataclass(slots=True)
class OnDemandStatic:
    """The busiest minute's replicas, on demand, all the time."""

    sleeps: ClassVar[bool] = False

    market: Market
    replicas: int
    name: str = "on-demand-static"

    def act(self, now: float, machines: Machines, traffic: Traffic) -> None:  # noqa: ARG002
        machines.sizes = {self.market: self.replicas}


@dataclass(slots=True)
class SpotHedgeHpa:
    """An HPA says how many, SpotHedge where; both as they are compared with elsewhere.

    Never below one replica: neither knows how to wake a tier.
    """

    sleeps: ClassVar[bool] = False

    setup: Setup
    zones: list[Market]
    steady: Market
    name: str = "spothedge+hpa"
    _hpa: autoscale_policies.Hpa = field(default_factory=autoscale_policies.Hpa)
    _hedge: baselines.SpotHedge | None = None
    _held: dict[str, spot.Held] = field(default_factory=dict)
    _ids: itertools.count[int] = field(default_factory=itertools.count)
    _wanted: int = 0
    _looked_at: float = -1e9
    _served: float = 0.0
    _arrived: float = 0.0
    _busy_s: float = 0.0
    _up_s: float = 0.0
    _running_s: float = 0.0

    def act(self, now: float, machines: Machines, traffic: Traffic) -> None:
        self._scale(now, machines, traffic)
        rules = self._rules()
        if self._hedge is None:
            self._hedge = baselines.SpotHedge(rules, len(self.zones), extra=SPOTHEDGE_EXTRA)
        self._hedge.rules = rules
        orders = self._hedge.decide(self._look(now, machines))
        self._carry_out(orders, now, machines)

    def _rules(self) -> spot.Rules:
        cold_start_s = self.setup.boot_s + self.setup.load_s
        least = max(1, self.setup.spec.scaling.min_replicas)
        wanted = min(max(least, self._wanted), self.setup.spec.scaling.max_replicas)
        return spot.Rules(wanted, cold_start_s, 1.0, self.setup.tick_s)

    # --- how many -------------------------------------------------------------------------------

    def _scale(self, now: float, machines: Machines, traffic: Traffic) -> None:
        dt = self.setup.tick_s
        ready = [p for p in machines.pods.values() if p.serves]
        self._up_s += dt * len(ready)
        self._busy_s += dt * sum(sum(traffic.shares(p.name)) for p in ready)
        self._running_s += dt * sum(traffic.running(p.name) for p in ready)
        if now - self._looked_at < self._hpa.every_s:
            return
        # The number it scales is its own, not the pods: spares, bridges and launches that find no
        # node are SpotHedge's, and would be taken for replicas that were asked for.
        replicas = self._rules().replicas
        serving = min(replicas, len(ready))
        tally = traffic.tally
        signals = Signals(
            at_s=now,
            arrived=tally.requests - self._arrived,
            served=tally.begun - self._served,
            served_tokens=0.0,
            busy_s=self._busy_s,
            up_s=self._up_s,
            running_s=self._running_s,
            waiting=traffic.queued,
            running=sum(traffic.running(p.name) for p in ready),
            concurrency=self.setup.service.concurrency,
            ready=serving,
            starting=replicas - serving,
        )
        self._wanted = self._hpa.decide(signals)
        self._looked_at = now
        self._arrived, self._served = tally.requests, tally.begun
        self._busy_s = self._up_s = self._running_s = 0.0

    # --- where ----------------------------------------------------------------------------------

    def _look(self, now: float, machines: Machines) -> spot.View:
        """Its replicas, those that were taken from it, and the launches that found no node."""
        failed: list[int] = []
        reclaimed: list[spot.Held] = []
        for name, held in list(self._held.items()):
            pod = machines.pods.get(name)
            if pod is not None and pod.refused and pod.node is None:
                failed.append(held.zone)
                self._drop(pod, machines, now)
            elif pod is None or pod.lost or (pod.node is not None and pod.node.gone_at is not None):
                reclaimed.append(held)
                self._held.pop(name)
                if pod is not None:
                    machines.sizes[pod.market] = max(0, machines.sizes.get(pod.market, 0) - 1)
                    machines.delete(name, at_once=pod.lost, now=now)
        for pod in machines.pods.values():
            if pod.ending_at is None and pod.name not in self._held:
                zone = spot.ON_DEMAND if pod.market == self.steady else self.zones.index(pod.market)
                self._held[pod.name] = spot.Held(next(self._ids), zone, pod.created_at)
        for name, held in self._held.items():
            held.ready = machines.pods[name].serves
        return spot.View(now, list(self._held.values()), reclaimed, failed)

    def _drop(self, pod: Pod, machines: Machines, now: float) -> None:
        self._held.pop(pod.name, None)
        machines.sizes[pod.market] = max(0, machines.sizes.get(pod.market, 0) - 1)
        machines.delete(pod.name, at_once=False, now=now)

    def _carry_out(self, orders: spot.Orders, now: float, machines: Machines) -> None:
        ended = set(orders.terminations)
        for name in [n for n, held in self._held.items() if held.id in ended]:
            self._drop(machines.pods[name], machines, now)
        wanted = self._rules().replicas + SPOTHEDGE_EXTRA
        spots = [n for n, held in self._held.items() if held.zone != spot.ON_DEMAND]
        # SpotHedge never gives a spot replica up by itself; an HPA that scales down does.
        for name in spots[wanted:]:
            self._drop(machines.pods[name], machines, now)
        for zone in orders.launches:
            market = self.steady if zone == spot.ON_DEMAND else self.zones[zone]
            machines.sizes[market] = machines.sizes.get(market, 0) + 1
