"""Spot markets replayed: zones that give and take back nodes, on-demand that always gives, a bill.

Each tick: replicas whose cold start is over become ready; a zone whose capacity has fallen below
what stands there reclaims the surplus, chosen at random with the seed; the policy sees what it
could see in a cluster (its replicas, what was reclaimed, which launches failed) and answers with
launches and terminations. A launch into a zone without capacity fails at no cost. Everything is
paid from its launch. Semantics as in the comparison of SkyServe (arXiv 2411.01438).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar, Protocol

from spotinference.simulate.traces import Window

ON_DEMAND = -1
"""The place of a launch that is not in a zone of the traces."""
TICK_S = 30.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What is asked for, and what it costs. Prices are relative: a spot replica costs 1."""

    replicas: int
    cold_start_s: float
    on_demand_ratio: float
    tick_s: float = TICK_S


@dataclass(slots=True)
class Held:
    """A replica that is paid for. `zone` is an index into the traces, or ON_DEMAND."""

    id: int
    zone: int
    launched_s: float
    ready: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """What a policy sees: the present and the past tick, never a capacity."""

    now_s: float
    held: Sequence[Held]
    """in order of launch"""
    reclaimed: Sequence[Held]
    """since the last tick"""
    failed: Sequence[int]
    """zones that refused a launch of the last tick, once for each launch"""


@dataclass(frozen=True, slots=True)
class Orders:
    launches: Sequence[int] = ()
    """a zone, or ON_DEMAND, for each replica"""
    terminations: Sequence[int] = ()
    """ids of replicas; carried out before the launches"""


class Policy(Protocol):
    """Decides once per tick. Made anew for each window."""

    remembers: ClassVar[bool]
    """it learns: then it is shown the time before the window, as if it had run there"""

    def decide(self, view: View) -> Orders: ...


@dataclass(slots=True)
class Tally:
    """What one window came to."""

    start_s: float
    ticks: int = 0
    counted: int = 0
    """ticks after the first cold start"""
    available: int = 0
    """of those, with at least N replicas ready"""
    spot_ticks: int = 0
    on_demand_ticks: int = 0
    preemptions: int = 0
    launches: int = 0
    launch_failures: int = 0

    def availability(self) -> float:
        return self.available / self.counted if self.counted else 0.0

    def cost(self, rules: Rules) -> float:
        """Relative to N on-demand replicas for the whole time."""
        paid = self.spot_ticks + self.on_demand_ticks * rules.on_demand_ratio
        return paid / (self.ticks * rules.replicas * rules.on_demand_ratio)

    def on_demand_share(self) -> float:
        """The share of all replica time that was on-demand."""
        total = self.spot_ticks + self.on_demand_ticks
        return self.on_demand_ticks / total if total else 0.0


@dataclass(slots=True)
class Replay:
    """One window, tick by tick. A caller that wants to look on steps it itself."""

    rules: Rules
    window: Window
    policy: Policy
    random: Random
    tally: Tally = field(init=False)
    held: list[Held] = field(default_factory=list)
    _failed: list[int] = field(default_factory=list)
    _next_id: int = 0
    _tick: int = 0

    def __post_init__(self) -> None:
        self.tally = Tally(start_s=self.window.start_s)
        if not self.policy.remembers:
            self._tick = self.window.history

    def run(self) -> Tally:
        while self._tick < len(self.window.capacity):
            self.step()
        return self.tally

    def step(self) -> None:
        """One tick. Where the window begins everything stands at zero again, but what was learned."""
        if self._tick == self.window.history:
            self.held, self._failed = [], []
            self.tally = Tally(start_s=self.window.start_s)
        capacity = self.window.capacity[self._tick]
        now_s = self._tick * self.rules.tick_s
        reclaimed = self._reclaim(capacity)
        self._ripen(now_s)
        failed, self._failed = self._failed, []
        self._carry_out(self.policy.decide(View(now_s, self.held, reclaimed, failed)), now_s)
        self._account()
        self._tick += 1

    def _reclaim(self, capacity: tuple[int, ...]) -> list[Held]:
        """Zones take back what they have no capacity for any more."""
        gone: list[Held] = []
        for zone, room in enumerate(capacity):
            standing = [h for h in self.held if h.zone == zone]
            if len(standing) > room:
                gone += self.random.sample(standing, len(standing) - room)
        if gone:
            lost = {h.id for h in gone}
            self.held = [h for h in self.held if h.id not in lost]
            self.tally.preemptions += len(gone)
        return gone

    def _ripen(self, now_s: float) -> None:
        for h in self.held:
            h.ready = h.ready or now_s - h.launched_s >= self.rules.cold_start_s

    def _carry_out(self, orders: Orders, now_s: float) -> None:
        if orders.terminations:
            ended = set(orders.terminations)
            self.held = [h for h in self.held if h.id not in ended]
        capacity = self.window.capacity[self._tick]
        for zone in orders.launches:
            full = zone != ON_DEMAND and capacity[zone] <= sum(h.zone == zone for h in self.held)
            if full:
                self._failed.append(zone)
                self.tally.launch_failures += 1
                continue
            self.held.append(Held(self._next_id, zone, now_s))
            self._next_id += 1
            self.tally.launches += 1

    def _account(self) -> None:
        tally = self.tally
        tally.ticks += 1
        on_demand = sum(h.zone == ON_DEMAND for h in self.held)
        tally.on_demand_ticks += on_demand
        tally.spot_ticks += len(self.held) - on_demand
        if (self._tick - self.window.history) * self.rules.tick_s >= self.rules.cold_start_s:
            tally.counted += 1
            tally.available += sum(h.ready for h in self.held) >= self.rules.replicas
