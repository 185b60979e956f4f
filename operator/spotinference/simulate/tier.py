"""A whole tier replayed: requests, waking, scaling, placement, reclaims, parking, and the bill.

Each tick the cluster and the traffic go on (`machines`, `traffic`) and a controller looks: ours is
the operator's own `core.reconcile.resolve` and `status_of`, with the status it wrote before; the
others (`rivals`) are what people do today. Prices and notice times are the pools'; the markets'
capacity comes from traces. What is left out: images and weights that must be fetched first (the
caches are warm), engines that crash, requests of unequal length within one bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar, Protocol

from spotinference.api import durations
from spotinference.api.pool import PoolSpec
from spotinference.api.tier import TierSpec
from spotinference.core.observed import Market
from spotinference.simulate.autoscale_service import Service
from spotinference.simulate.autoscale_workload import Arrivals
from spotinference.simulate.machines import Machines, Node, Pod
from spotinference.simulate.traces import Zone
from spotinference.simulate.traffic import Rules, Tally, Traffic

LINES = ("serving", "idle", "starting", "interruption")
"""Where the money goes: answers; replicas without work; machines that boot and engines that load;
answers that are read again after a reclaim."""
POINTS = 2000
"""of a timeline at most"""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is replayed. Durations in seconds."""

    spec: TierSpec
    pools: Mapping[str, PoolSpec]
    capacity: Mapping[Market, Zone]
    """markets without a trace have as many nodes as are asked for"""
    arrivals: Arrivals
    service: Service
    boot_s: float
    load_s: float
    late_after_s: float = 10.0
    seed: int = 0
    begin_s: float = 0.0
    """where in the traces the workload begins"""
    speed: float = 1.0
    """the traces run this much faster than the workload and everything else"""

    @property
    def tick_s(self) -> float:
        return self.arrivals.tick_s

    def price(self, pool: str) -> float:
        """Dollars per hour of a node."""
        price = self.pools[pool].price
        return 0.0 if price is None else price.micro_usd_per_hour / 1e6


class Controller(Protocol):
    """Decides once per tick: sets `machines.sizes`, marks and deletes pods."""

    name: str
    sleeps: ClassVar[bool]
    """it begins with none where the tier needs none, and can come back to that"""

    def act(self, now: float, machines: Machines, traffic: Traffic) -> None: ...


@dataclass(slots=True)
class Point:
    """One moment of the timeline."""

    at_s: float
    requests: float
    queued: float
    ready: dict[Market, int]
    starting: int
    usd_per_h: float
    lost: int
    """nodes reclaimed since the last point"""


@dataclass(slots=True)
class Outcome:
    policy: str
    tally: Tally
    hours: float
    bill: dict[str, float]
    """dollars, by line"""
    by_capacity_type: dict[str, float]
    ready_s: float = 0.0
    """replica-seconds"""
    paid_s: float = 0.0
    """node-seconds"""
    short_s: float = 0.0
    """with fewer replicas ready than minReplicas, after the first time that they were"""
    counted_s: float = 0.0
    """since then"""
    wakes: int = 0
    reclaims: int = 0
    launches: int = 0
    launch_failures: int = 0
    timeline: list[Point] = field(default_factory=list)

    @property
    def usd(self) -> float:
        return sum(self.bill.values())

    @property
    def usd_per_million_output_tokens(self) -> float | None:
        tokens = self.tally.output_tokens
        return self.usd / tokens * 1e6 if tokens else None

    @property
    def availability(self) -> float | None:
        """Share of the time with at least minReplicas ready; None: they never were."""
        return 1.0 - self.short_s / self.counted_s if self.counted_s else None


def replay(setup: Setup, controller: Controller) -> Outcome:
    """The whole workload under one controller."""
    return _Replay(setup, controller).run()


class _Replay:
    def __init__(self, setup: Setup, controller: Controller) -> None:
        self.setup = setup
        self.controller = controller
        self.machines = Machines(
            boot_s=setup.boot_s,
            load_s=setup.load_s,
            notice_s={name: float(pool.notice_seconds) for name, pool in setup.pools.items()},
            random=Random(setup.seed),
        )
        wake = setup.spec.wake
        rules = Rules(durations.seconds(wake.cap), wake.max_parked, setup.late_after_s)
        self.traffic = Traffic(setup.service, rules)
        self.outcome = Outcome(
            controller.name,
            self.traffic.tally,
            hours=len(setup.arrivals.requests) * setup.tick_s / 3600,
            bill=dict.fromkeys(LINES, 0.0),
            by_capacity_type={},
        )
        self._prices = {name: setup.price(name) for name in setup.pools}
        self._asleep = controller.sleeps and not setup.spec.scaling.min_replicas
        self._every = max(1, len(setup.arrivals.requests) // POINTS)
        self._requests = 0.0
        self._lost = 0

    def run(self) -> Outcome:
        for tick in range(len(self.setup.arrivals.requests)):
            self._step(tick)
        self.traffic.close(len(self.setup.arrivals.requests) * self.setup.tick_s)
        self.outcome.reclaims = self.machines.reclaimed
        self.outcome.launches = self.machines.launches
        self.outcome.launch_failures = self.machines.refusals
        return self.outcome

    def _step(self, tick: int) -> None:
        setup, dt = self.setup, self.setup.tick_s
        now = tick * dt
        at = setup.begin_s + now * setup.speed
        for market, zone in setup.capacity.items():
            self.machines.capacity[market] = zone.at(at)
        self.machines.step(now)
        serving = [p.name for p in self.machines.pods.values() if p.serves]
        routable = [n for n in serving if self.machines.pods[n].doomed_until is None]
        self.traffic.arrive(
            now,
            setup.arrivals.requests[tick],
            setup.arrivals.prompt_tokens[tick],
            setup.arrivals.output_tokens[tick],
            awake=bool(routable),
        )
        alive = [
            p.name for p in self.machines.pods.values() if p.ready_at is not None and not p.lost
        ]
        self.traffic.step(now, dt, routable, alive)
        self.controller.act(now, self.machines, self.traffic)
        self._account(len(serving), dt)
        self._note(tick, now)

    def _account(self, ready: int, dt: float) -> None:
        outcome = self.outcome
        pod_of = {p.node.name: p for p in self.machines.pods.values() if p.node is not None}
        for node in self.machines.nodes.values():
            cost = self._prices[node.market.pool] * dt / 3600
            self._charge(node, pod_of, cost)
            kind = self.setup.pools[node.market.pool].capacity_type
            outcome.by_capacity_type[kind] = outcome.by_capacity_type.get(kind, 0.0) + cost
            outcome.paid_s += dt
        outcome.ready_s += ready * dt
        least = self.setup.spec.scaling.min_replicas
        if least and (outcome.counted_s or ready >= least):
            outcome.counted_s += dt
            outcome.short_s += dt if ready < least else 0.0
        # Only from asleep: a first start, and replicas that were lost and replaced, are no wake.
        asleep = not any(self.machines.sizes.values())
        outcome.wakes += self._asleep and not asleep
        self._asleep = asleep and self.controller.sleeps

    def _charge(self, node: Node, pod_of: Mapping[str, Pod], cost: float) -> None:
        bill = self.outcome.bill
        pod = pod_of.get(node.name)
        if pod is None or pod.ready_at is None:
            bill["idle" if node.empty_since is not None else "starting"] += cost
            return
        busy, again = self.traffic.shares(pod.name)
        bill["serving"] += cost * busy
        bill["interruption"] += cost * again
        bill["idle"] += cost * (1.0 - busy - again)

    def _note(self, tick: int, now: float) -> None:
        self._requests += self.setup.arrivals.requests[tick]
        if tick % self._every:
            return
        pods = self.machines.pods.values()
        ready: dict[Market, int] = {}
        for pod in pods:
            if pod.serves:
                ready[pod.market] = ready.get(pod.market, 0) + 1
        self.outcome.timeline.append(
            Point(
                at_s=now,
                requests=self._requests / (self._every * self.setup.tick_s),
                queued=self.traffic.queued,
                ready=ready,
                starting=sum(p.ready_at is None and not p.lost for p in pods),
                usd_per_h=sum(self._prices[n.market.pool] for n in self.machines.nodes.values()),
                lost=self.machines.reclaimed - self._lost,
            )
        )
        self._requests, self._lost = 0.0, self.machines.reclaimed
