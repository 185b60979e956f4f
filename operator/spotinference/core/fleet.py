"""What a tier has now: its replicas judged one by one, and its markets with their Deployments.

The first thing `decide` makes of an `Observed`; the other decisions read only this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property

from spotinference.api import durations, names
from spotinference.api.kinds import DEPLOYMENT, Json
from spotinference.api.pool import PoolSpec
from spotinference.api.tier_status import MarketStatus
from spotinference.core import engine_args
from spotinference.core.observed import Market, NodeHealth, Observed, ReplicaView
from spotinference.core.plan import DoomReason

STALE_HOLD_S = 180.0
"""A silent node may come back: so long its replica keeps its slot (and is out of routing)."""
DEFAULT_REFUSAL_S = 60.0
VOLUME_ELSEWHERE = "volume node affinity conflict"
"""The scheduler's words when a node would do, but a volume of the pod lies in another zone (or on
another node): no node that comes later changes that."""

KINDS = ("reserved", "spot", "on-demand")
"""Paid for anyway, cheap, sure: the order in which capacity is used."""


class Standing(StrEnum):
    """What one replica is worth to the tier."""

    READY = "ready"
    STARTING = "starting"
    """bound, or waiting for a node and not refused yet"""
    REFUSED = "refused"
    """unschedulable for longer than the pool's refusalAfter, or because its volume lies elsewhere"""
    SILENT = "silent"
    """its node is stale: replaced elsewhere, but not deleted; it may come back"""
    LEAVING = "leaving"
    """its node has a notice, or was silent for too long: does not count any more"""
    LOST = "lost"
    """its node is gone, its notice has expired, or the kubelet ended it (evicted, not admitted):
    the pod is deleted; the object at once (`struck_off`) when no living kubelet would end it"""
    FAILED = "failed"
    """on a node, and given up before it was ever ready (`launches`): replaced elsewhere"""
    ENDING = "ending"
    """being deleted: not ours to count"""


@dataclass(frozen=True, slots=True)
class Replica:
    view: ReplicaView
    standing: Standing
    drains_until: datetime | None = None
    """its node has a notice, but so long there is time for what it has to do: it keeps its slot,
    because a Deployment that shrinks ends it; then it must be told to go, to be gone in time"""

    @property
    def counts(self) -> bool:
        """Whether it fills one of the wanted places."""
        return self.standing in {Standing.READY, Standing.STARTING}

    @property
    def busy(self) -> bool:
        """Has, or (without a fresh sample) may have, work."""
        if not self.view.ready and not self.view.running:
            return False
        sample = self.view.sample
        if sample is None:
            return self.view.ready or self.view.loaded
        return sample.running + sample.waiting > 0

    @property
    def work(self) -> int:
        sample = self.view.sample
        return 0 if sample is None else sample.running + sample.waiting

    @property
    def struck_off(self) -> bool:
        """Its object is deleted without waiting for a kubelet.

        Not while its node lives although its notice has expired: there the container runs until
        the kubelet ends it, and Kubernetes keeps its volume where it is until then.
        """
        node = self.view.node
        dead = node is None or node.health is not NodeHealth.HEALTHY
        return self.standing is Standing.LOST and (dead or self.view.ended)

    @property
    def volume_elsewhere(self) -> bool:
        """It waits for a node in vain: its volume cannot be mounted in this market."""
        return self.standing is Standing.REFUSED and volume_elsewhere(self.view)

    @property
    def hinted(self) -> bool:
        """Its node may go (a rebalance hint): it serves on, but nothing is placed beside it."""
        return self.view.node is not None and self.view.node.hint is not None

    @property
    def draining(self) -> bool:
        return self.view.doomed_until is not None and self.counts


@dataclass(frozen=True)
class Place:
    """One market of the tier, with what stands there."""

    market: Market
    pool: PoolSpec
    index: int
    """position in the tier's order of preference"""
    deployment: Json | None
    replicas: tuple[Replica, ...]
    known: MarketStatus | None = None
    """what the status says of this market"""
    closed: bool = False
    """its pool does not exist now: what runs there goes on, and may shrink, but nothing is added"""
    dropped: bool = False
    """the tier does not name it any more: what runs there goes once it is relieved elsewhere"""

    @property
    def open(self) -> bool:
        """Whether a replica may be added."""
        return not self.closed and not self.pool.cordoned

    @cached_property
    def spec_replicas(self) -> int:
        if self.deployment is None:
            return 0
        return int(self.deployment.get("spec", {}).get("replicas", 1))

    @cached_property
    def active(self) -> tuple[Replica, ...]:
        """What the ReplicaSet counts: a pod that is being deleted, or has ended, is replaced."""
        return tuple(r for r in self.replicas if not r.view.deleting and not r.view.ended)

    def having(self, *standings: Standing) -> tuple[Replica, ...]:
        if not self.replicas:
            return ()
        return tuple(r for r in self.replicas if r.standing in standings)

    @cached_property
    def on_nodes(self) -> int:
        """Replicas that are paid for: what waits for a node costs nothing yet."""
        return sum(r.counts and r.view.node is not None for r in self.replicas)

    @cached_property
    def missing(self) -> int:
        """Pods that the Deployment has yet to create."""
        return max(0, self.spec_replicas - len(self.active))

    @cached_property
    def silent(self) -> int:
        """Slots of silent replicas: kept while their node may come back."""
        return min(self.spec_replicas, len(self.having(Standing.SILENT)))

    @cached_property
    def held(self) -> int:
        """Slots that fill none of the wanted places: silent replicas, and doomed ones with work."""
        kept = self.having(Standing.SILENT, Standing.LEAVING)
        held = sum(r.standing is Standing.SILENT or r.drains_until is not None for r in kept)
        return min(self.spec_replicas, held)

    @cached_property
    def kept(self) -> int:
        """Places that are filled, or being filled, without doing anything.

        In a cordoned pool a pod without a node is not waited for: its launch is not wanted any more.
        """
        if self.pool.cordoned:
            filling = self.on_nodes
        else:
            filling = sum(r.counts for r in self.replicas) + self.missing
        return min(self.spec_replicas - self.held, filling)

    @property
    def refusal_s(self) -> float:
        return refusal_after_s(self.pool)


@dataclass(frozen=True)
class Fleet:
    places: tuple[Place, ...]
    """usable markets in order of preference, then those that are closed or dropped"""
    obsolete: tuple[Json, ...] = ()
    """Deployments of markets that the tier does not name any more, with nothing in them"""
    missing_pools: tuple[str, ...] = ()
    stray: tuple[Replica, ...] = field(default=())
    """replicas outside of the usable markets"""

    @cached_property
    def replicas(self) -> tuple[Replica, ...]:
        return tuple(r for p in self.places for r in p.replicas)

    @cached_property
    def every(self) -> tuple[Replica, ...]:
        return (*self.replicas, *self.stray)

    @cached_property
    def ready(self) -> tuple[Replica, ...]:
        return tuple(r for r in self.replicas if r.standing is Standing.READY)

    @cached_property
    def kept(self) -> int:
        return sum(p.kept for p in self.places)


def refusal_after_s(pool: PoolSpec) -> float:
    try:
        return durations.seconds(pool.refusal_after)
    except ValueError:
        return DEFAULT_REFUSAL_S


def survey(observed: Observed) -> Fleet:
    """Everything the tier has, by market."""
    deployments = engine_deployments(observed)
    known = {Market(m.pool, m.zone): m for m in _remembered(observed)}
    judged: dict[Market, list[Replica]] = {}
    for view in sorted(observed.replicas, key=lambda v: (v.created_at, v.name)):
        pool = observed.pools.get(view.market.pool)
        replica = judge(view, pool, observed)
        judged.setdefault(view.market, []).append(replica)
    places = tuple(
        Place(
            market=market,
            pool=pool,
            index=index,
            deployment=deployments.get(market),
            replicas=tuple(judged.get(market, ())),
            known=known.get(market),
        )
        for index, (market, pool) in enumerate(markets(observed))
    )
    places += _closed(observed, deployments, judged, known, first_index=len(places))
    unnamed = _dropped(observed, places, deployments, judged, known)
    places += tuple(p for p in unnamed if p.spec_replicas or p.active)
    ours = {p.market for p in places}
    outside = {m: d for m, d in deployments.items() if m not in ours}
    missing = tuple(
        n for n in dict.fromkeys(observed.spec.placement.pools) if n not in observed.pools
    )
    return Fleet(
        places=places,
        obsolete=tuple(outside.values()),
        missing_pools=missing,
        stray=tuple(r for m, rs in judged.items() if m not in ours for r in rs),
    )


def _remembered(observed: Observed) -> list[MarketStatus]:
    """What the status says of markets; launches that failed are forgotten with an edit of the tier."""
    if observed.status.observed_generation == observed.generation:
        return observed.status.markets
    anew = {"failed_launches": 0, "refused_at": None, "backoff_seconds": 0}
    return [m.model_copy(update=anew) if m.failed_launches else m for m in observed.status.markets]


def judge(view: ReplicaView, pool: PoolSpec | None, observed: Observed) -> Replica:
    """One replica, with how long it may drain when its node has a notice."""
    replica = Replica(view, standing(view, pool, observed.now))
    notice = view.node.notice if view.node is not None else None
    if replica.standing is not Standing.LEAVING or notice is None or not replica.busy:
        return replica
    until = notice.deadline - timedelta(seconds=engine_args.grace_s(observed.spec))
    return replace(replica, drains_until=until) if observed.now < until else replica


def _closed(
    observed: Observed,
    deployments: Mapping[Market, Json],
    judged: Mapping[Market, list[Replica]],
    known: Mapping[Market, MarketStatus],
    first_index: int,
) -> tuple[Place, ...]:
    """What still stands in pools that the tier names but that do not exist (any more)."""
    named = set(observed.spec.placement.pools) - set(observed.pools)
    standing_there = sorted(m for m in deployments if m.pool in named)
    return tuple(
        Place(
            market=market,
            pool=PoolSpec(capacity_type="spot", zones=[market.zone]),
            index=first_index + number,
            deployment=deployments[market],
            replicas=tuple(judged.get(market, ())),
            known=known.get(market),
            closed=True,
        )
        for number, market in enumerate(standing_there)
    )


def _dropped(
    observed: Observed,
    places: tuple[Place, ...],
    deployments: Mapping[Market, Json],
    judged: Mapping[Market, list[Replica]],
    known: Mapping[Market, MarketStatus],
) -> tuple[Place, ...]:
    """What stands in markets that an edit of the tier, or of a pool's zones, took away."""
    outside = sorted(deployments.keys() - {p.market for p in places})
    return tuple(
        Place(
            market=market,
            pool=_unnamed(observed, market),
            index=len(places) + number,
            deployment=deployments[market],
            replicas=tuple(judged.get(market, ())),
            known=known.get(market),
            closed=True,
            dropped=True,
        )
        for number, market in enumerate(outside)
    )


def _unnamed(observed: Observed, market: Market) -> PoolSpec:
    """The pool of a market that the tier does not name; its price counts for as long as it is there."""
    known = observed.pools.get(market.pool)
    if known is None:
        return PoolSpec(capacity_type="spot", zones=[market.zone])
    return known.model_copy(update={"cordoned": False})


def markets(observed: Observed) -> list[tuple[Market, PoolSpec]]:
    """The tier's markets: as in `KINDS`, then pools as ordered by the tier, then zones."""
    named = [
        (name, observed.pools[name])
        for name in dict.fromkeys(observed.spec.placement.pools)
        if name in observed.pools
    ]
    named.sort(key=lambda item: KINDS.index(item[1].capacity_type))
    return [
        (Market(name, zone), pool) for name, pool in named for zone in dict.fromkeys(pool.zones)
    ]


def engine_deployments(observed: Observed) -> dict[Market, Json]:
    """Live engine Deployments of this very tier, by the market in their labels."""
    found: dict[Market, Json] = {}
    for (kind, _), live in observed.children.items():
        labels = live.get("metadata", {}).get("labels") or {}
        if kind != DEPLOYMENT.kind or not owned(live, observed.uid):
            continue
        if names.LABEL_POOL in labels and names.LABEL_ZONE in labels:
            found[Market(labels[names.LABEL_POOL], labels[names.LABEL_ZONE])] = live
    return found


def owned(live: Json, uid: str) -> bool:
    owners = live.get("metadata", {}).get("ownerReferences") or ()
    return any(owner.get("uid") == uid for owner in owners)


def volume_elsewhere(view: ReplicaView) -> bool:
    """By the volume's own words, or (where a node came all the same) the scheduler's."""
    if view.volume_zones is not None and view.market.zone not in view.volume_zones:
        return True
    return VOLUME_ELSEWHERE in view.unschedulable_message


def standing(view: ReplicaView, pool: PoolSpec | None, now: datetime) -> Standing:
    """The rule for one replica; the first that fits wins."""
    doomed = view.doomed_until
    expired = doomed is not None and doomed <= now
    if view.ended:
        return Standing.ENDING if view.deleting else Standing.LOST
    if view.node is not None:
        if view.node.health is NodeHealth.GONE:
            return Standing.LOST
        notice = view.node.notice
        alive = view.node.health is NodeHealth.HEALTHY
        if notice is not None and notice.deadline <= now and not (alive and view.deleting):
            return Standing.LOST
        if view.deleting:
            return Standing.ENDING
        if notice is not None:
            return Standing.LEAVING
        if view.node.health is NodeHealth.STALE:
            given_up = expired and view.doomed_reason != DoomReason.SCALE_DOWN
            return Standing.LEAVING if given_up else Standing.SILENT
    if view.deleting:
        return Standing.ENDING
    if view.ready:
        return Standing.READY
    if view.node is None and view.unschedulable_since is not None:
        limit = timedelta(seconds=DEFAULT_REFUSAL_S if pool is None else refusal_after_s(pool))
        if volume_elsewhere(view):
            return Standing.REFUSED
        if now - view.unschedulable_since >= limit:
            return Standing.REFUSED
    return Standing.STARTING
