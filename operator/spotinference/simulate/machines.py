"""A cluster's machinery on a virtual clock: markets, nodes, pods, scheduler, kubelets, ReplicaSets.

Only what a decision can see and what costs money or time: a pod waits for a node, a node is
launched where its market has capacity, boots, the engine loads, serves, and the market takes the
node back. Times are seconds since the beginning of the replay. Deterministic for a given `Random`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from random import Random

from spotinference.core.observed import Market

END_S = 5.0
"""From a pod's deletion to its end, for one without work."""
NODE_IDLE_S = 60.0
"""An empty node stays, and is paid for, this long: cluster autoscalers wait before they remove it."""


@dataclass(slots=True)
class Node:
    name: str
    market: Market
    launched_at: float
    up_at: float
    gone_at: float | None = None
    """deadline of its notice"""
    empty_since: float | None = None


@dataclass(slots=True)
class Pod:
    name: str
    market: Market
    created_at: float
    node: Node | None = None
    bound_at: float | None = None
    ready_at: float | None = None
    ending_at: float | None = None
    """when it will be gone; set when it is being deleted"""
    lost: bool = False
    """its node has vanished; the object waits to be deleted"""
    refused: bool = False
    """no market capacity for it since it was created"""
    doomed_until: datetime | None = None
    doomed_reason: str | None = None
    cost: int = 0

    @property
    def serves(self) -> bool:
        return self.ready_at is not None and not self.lost and self.ending_at is None


@dataclass(slots=True)
class Machines:
    """`capacity` without a market's key: as many nodes as are asked for."""

    boot_s: float
    load_s: float
    notice_s: Mapping[str, float]
    """by pool"""
    random: Random
    capacity: dict[Market, int] = field(default_factory=dict)
    sizes: dict[Market, int] = field(default_factory=dict)
    """replicas of each market's Deployment"""
    nodes: dict[str, Node] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    reclaimed: int = 0
    launches: int = 0
    refusals: int = 0
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def step(self, now: float) -> None:
        """Everything that the cluster does by itself until `now`."""
        self._take_back(now)
        self._end_pods(now)
        self._make_and_remove(now)
        self._schedule(now)
        for pod in self.pods.values():
            loaded = pod.bound_at is not None and now - pod.bound_at >= self.load_s
            if loaded and pod.ready_at is None and not pod.lost and pod.ending_at is None:
                pod.ready_at = now

    def delete(self, name: str, *, at_once: bool, now: float) -> None:
        """The operator deletes a pod; its ReplicaSet makes another while `sizes` asks for it."""
        pod = self.pods.get(name)
        if pod is None:
            return
        if at_once or pod.node is None:
            del self.pods[name]
        else:
            pod.ending_at = now + END_S

    # --- the market's side ----------------------------------------------------------------------

    def _take_back(self, now: float) -> None:
        """Reclaims what is above capacity, chosen at random; booting nodes first, they are free."""
        for market, most in self.capacity.items():
            here = [n for n in self.nodes.values() if n.market == market and n.gone_at is None]
            surplus = len(here) - most
            if surplus <= 0:
                continue
            self.random.shuffle(here)
            here.sort(key=lambda n: n.up_at <= now)
            for node in here[:surplus]:
                self.reclaimed += 1
                node.gone_at = now
                if node.up_at <= now:
                    node.gone_at += self.notice_s.get(market.pool, 0.0)
        for node in list(self.nodes.values()):
            if node.gone_at is not None and now >= node.gone_at:
                self._vanish(node)

    def _vanish(self, node: Node) -> None:
        del self.nodes[node.name]
        for pod in self.pods.values():
            if pod.node is node:
                pod.lost = True

    def _end_pods(self, now: float) -> None:
        for name, pod in list(self.pods.items()):
            if pod.ending_at is not None and (now >= pod.ending_at or pod.lost):
                del self.pods[name]
        busy = Counter(pod.node.name for pod in self.pods.values() if pod.node is not None)
        for node in list(self.nodes.values()):
            if node.name in busy or node.up_at > now:
                node.empty_since = None
            elif node.empty_since is None:
                node.empty_since = now
            elif now - node.empty_since >= NODE_IDLE_S:
                del self.nodes[node.name]

    # --- the cluster's side ---------------------------------------------------------------------

    def _make_and_remove(self, now: float) -> None:
        by_market: dict[Market, list[Pod]] = {}
        for pod in self.pods.values():
            if pod.ending_at is None:
                by_market.setdefault(pod.market, []).append(pod)
        for market in dict.fromkeys((*by_market, *self.sizes)):
            mine, wanted = by_market.get(market, []), self.sizes.get(market, 0)
            for _ in range(wanted - len(mine)):
                number = next(self._ids)
                self.pods[f"pod-{number}"] = Pod(f"pod-{number}", market, now)
            if len(mine) > wanted:
                for pod in sorted(mine, key=_first_to_go)[: len(mine) - wanted]:
                    self.delete(pod.name, at_once=False, now=now)

    def _schedule(self, now: float) -> None:
        free: dict[Market, list[Node]] = {}
        taken = {pod.node.name for pod in self.pods.values() if pod.node is not None}
        for node in self.nodes.values():
            if node.name not in taken and node.gone_at is None:
                free.setdefault(node.market, []).append(node)
        counted = Counter(n.market for n in self.nodes.values() if n.gone_at is None)
        for pod in self.pods.values():
            if pod.node is not None or pod.ending_at is not None:
                continue
            rooms = free.get(pod.market, [])
            if rooms:
                node = rooms.pop(0)
                if node.up_at <= now:
                    pod.node, pod.bound_at = node, now
                continue
            if counted[pod.market] < self.capacity.get(pod.market, 1_000_000):
                number = next(self._ids)
                node = Node(f"node-{number}", pod.market, now, now + self.boot_s)
                self.nodes[node.name] = node
                counted[pod.market] += 1
                self.launches += 1
            elif not pod.refused:
                pod.refused = True
                self.refusals += 1


def _first_to_go(pod: Pod) -> tuple[bool, bool, int, float]:
    """The order in which a ReplicaSet removes pods."""
    return (pod.node is not None, pod.ready_at is not None, pod.cost, -pod.created_at)
