"""Which nodes to launch and which to give up: the cluster autoscaler of the simulated provider.

`plan` is pure: pending pods are matched to free room on nodes that exist or boot; only what is left
over launches a node, in the cheapest market that fits and has capacity. The agent acts on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from spotinference.api.kinds import Json
from spotinference.api.names import ZONE_LABEL
from spotinference.core.observed import Market
from spotinference.devcluster.topology import GPU_RESOURCE, Provider, Topology

CPU_POOL = "cpu"
PODS_PER_NODE = 32
HOSTNAME_LABEL = "kubernetes.io/hostname"

Amounts = Mapping[str, float]
"""Resource name → amount (cores, bytes, pieces)."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a node of one market looks like before it exists."""

    market: Market
    labels: Mapping[str, str]
    taints: tuple[Json, ...]
    room: Amounts
    boot_delay_s: float
    idle_after_s: float
    micro_usd_per_h: int
    provider: Provider

    @property
    def gpus(self) -> float:
        return self.room.get(GPU_RESOURCE, 0)


@dataclass(frozen=True, slots=True)
class Ask:
    """A pod that no node could take."""

    uid: str
    needs: Amounts
    pod: Json
    volume_terms: tuple[Json, ...] = ()
    """nodeSelectorTerms of the volumes its claims are bound to; each must hold one of its own"""


@dataclass(slots=True)
class Room:
    """What is free on one node that exists or boots."""

    node: str
    market: Market
    free: dict[str, float]
    booting: bool


@dataclass(frozen=True, slots=True)
class NodePlan:
    launch: tuple[Market, ...] = ()
    cancel: tuple[str, ...] = ()
    """booting nodes that nobody waits for (any more)"""
    awaited: frozenset[str] = field(default_factory=frozenset)
    """nodes that a pending pod will be scheduled to: not idle"""
    refused: tuple[str, ...] = ()
    """uids of pods that fit a market, but none with capacity"""


def plan(
    asks: Sequence[Ask],
    rooms: Iterable[Room],
    offers: Mapping[Market, Offer],
    left: Mapping[Market, int],
) -> NodePlan:
    """`asks` oldest first; `left` = nodes each market can still launch (negative: too many)."""
    free = sorted(rooms, key=lambda room: room.booting)
    remaining = dict(left)
    awaited: set[str] = set()
    launch: list[Market] = []
    refused: list[str] = []
    for ask in asks:
        room = next((r for r in free if fits(ask, offers[r.market], r.free)), None)
        if room is not None:
            awaited.add(room.node)
            _take(room.free, ask.needs)
            continue
        possible = [o for o in offers.values() if _right_kind(ask, o) and fits(ask, o, o.room)]
        affordable = [o for o in possible if remaining.get(o.market, 0) > 0]
        if not affordable:
            if possible:
                refused.append(ask.uid)
            continue
        best = min(affordable, key=lambda o: (o.micro_usd_per_h, o.market))
        remaining[best.market] -= 1
        launch.append(best.market)
        new = Room(f"new-{len(launch)}", best.market, dict(best.room), booting=True)
        _take(new.free, ask.needs)
        free.append(new)
    unwanted = [r.node for r in free if r.booting and r.node not in awaited]
    cancel = [node for node in unwanted if not node.startswith("new-")]
    return NodePlan(tuple(launch), tuple(cancel), frozenset(awaited), tuple(refused))


def fits(ask: Ask, offer: Offer, free: Amounts) -> bool:
    """Whether the scheduler would put the pod on such a node."""
    spec = ask.pod["spec"]
    return (
        all(free.get(name, 0) >= amount for name, amount in ask.needs.items())
        and all(offer.labels.get(k) == v for k, v in (spec.get("nodeSelector") or {}).items())
        and _affinity_holds(spec, offer.labels)
        and all(_any_term(term["terms"], offer.labels) for term in ask.volume_terms)
        and all(_tolerated(t, spec.get("tolerations") or []) for t in offer.taints)
    )


def ask_of(pod: Json, volume_terms: tuple[Json, ...] = ()) -> Ask:
    return Ask(pod["metadata"]["uid"], needs(pod), pod, volume_terms)


def needs(pod: Json) -> dict[str, float]:
    """What the scheduler reckons with: the sum of containers, at least each init container."""
    total: dict[str, float] = {"pods": 1}
    for container in pod["spec"]["containers"]:
        for name, amount in _requests(container).items():
            total[name] = total.get(name, 0) + amount
    for container in pod["spec"].get("initContainers") or []:
        for name, amount in _requests(container).items():
            total[name] = max(total.get(name, 0), amount)
    return {name: amount for name, amount in total.items() if amount > 0}


def is_unschedulable(pod: Json) -> bool:
    if pod["spec"].get("nodeName") or pod["metadata"].get("deletionTimestamp"):
        return False
    return any(
        c["type"] == "PodScheduled"
        and c["status"] == "False"
        and c.get("reason") == "Unschedulable"
        for c in (pod.get("status") or {}).get("conditions") or []
    )


def offers_of(topology: Topology) -> tuple[dict[Market, Offer], dict[Market, int]]:
    """Every market of a topology, GPU pools and one CPU market per zone, and its capacity."""
    offers: dict[Market, Offer] = {}
    capacity: dict[Market, int] = {}
    for pool in topology.pools:
        for spec in pool.markets:
            market = Market(pool.name, spec.zone)
            capacity[market] = spec.capacity
            room = {
                "cpu": quantity(pool.cpu),
                "memory": quantity(pool.memory),
                "pods": float(PODS_PER_NODE),
                GPU_RESOURCE: float(pool.gpu.count),
            }
            price = pool.price if spec.price is None else spec.price
            offers[market] = Offer(
                market=market,
                labels={
                    **pool.node_labels(),
                    **_plain_labels(spec.zone, f"{pool.name}-{pool.gpu.count}gpu"),
                },
                taints=tuple(t.model_dump(exclude_defaults=False) for t in pool.node_taints()),
                room=room,
                boot_delay_s=pool.boot_delay if spec.boot_delay is None else spec.boot_delay,
                idle_after_s=pool.idle_after,
                micro_usd_per_h=round(price * 1_000_000),
                provider=pool.provider,
            )
    for zone in topology.zones:
        market = Market(CPU_POOL, zone)
        cpu = topology.cpu
        capacity[market] = cpu.capacity
        offers[market] = Offer(
            market=market,
            labels=_plain_labels(zone, "cpu"),
            taints=(),
            room={
                "cpu": quantity(cpu.cpu),
                "memory": quantity(cpu.memory),
                "pods": float(PODS_PER_NODE),
            },
            boot_delay_s=cpu.boot_delay,
            idle_after_s=cpu.idle_after,
            micro_usd_per_h=0,
            provider="generic",
        )
    return offers, capacity


_SUFFIXES = {
    "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def quantity(text: str | float) -> float:
    """A Kubernetes quantity as a number: `500m` is 0.5, `1Gi` is 1073741824."""
    word = str(text)
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if word.endswith(suffix):
            return float(word.removesuffix(suffix)) * _SUFFIXES[suffix]
    return float(word)


def _plain_labels(zone: str, instance_type: str) -> dict[str, str]:
    return {
        ZONE_LABEL: zone,
        "topology.kubernetes.io/region": zone.rpartition("-")[0] or zone,
        "node.kubernetes.io/instance-type": instance_type,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
    }


def _requests(container: Json) -> dict[str, float]:
    resources = container.get("resources") or {}
    both = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: quantity(amount) for name, amount in both.items()}


def _right_kind(ask: Ask, offer: Offer) -> bool:
    """GPU nodes are launched for pods that ask for GPUs only."""
    return (ask.needs.get(GPU_RESOURCE, 0) > 0) == (offer.gpus > 0)


def _take(free: dict[str, float], taken: Amounts) -> None:
    for name, amount in taken.items():
        free[name] = free.get(name, 0) - amount


def _affinity_holds(spec: Json, labels: Mapping[str, str]) -> bool:
    node_affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return required is None or _any_term(required.get("nodeSelectorTerms") or [], labels)


def _any_term(terms: Sequence[Json], labels: Mapping[str, str]) -> bool:
    return any(all(_holds(e, labels) for e in term.get("matchExpressions") or []) for term in terms)


def _holds(expression: Json, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    values = expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and float(value) > float(values[0])
        case "Lt":
            return value is not None and float(value) < float(values[0])
    return False


def _tolerated(taint: Json, tolerations: Sequence[Json]) -> bool:
    if taint["effect"] == "PreferNoSchedule":
        return True
    return any(
        toleration.get("effect") in (None, "", taint["effect"])
        and (
            (not toleration.get("key") and toleration.get("operator") == "Exists")
            or (
                toleration.get("key") == taint["key"]
                and (
                    toleration.get("operator") == "Exists"
                    or toleration.get("value", "") == taint.get("value", "")
                )
            )
        )
        for toleration in tolerations
    )
