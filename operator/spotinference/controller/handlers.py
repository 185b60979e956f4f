"""What is watched, and which tier each event concerns. Handlers keep the body and enqueue a key;
they never decide and never write.

Kopf's part is watching: index handlers run for every object of the first lists before any event
handler runs (its index barrier), so no decision is made on a half-read cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import kopf

from spotinference.api import names
from spotinference.api.kinds import LEASE, NODE, POD, POOL, TIER, Json, Kind
from spotinference.controller.demand import DemandBook
from spotinference.controller.latency import Latencies
from spotinference.controller.nodes import signature
from spotinference.controller.observe import CHILD_KINDS
from spotinference.controller.queue import WorkQueue
from spotinference.controller.store import Change, Store, is_demand, tier_of
from spotinference.core.observed import TierRef

SETTLE_S = 0.03
"""A scale write is answered by a dozen events of Deployments and pods within moments: one look."""
MANAGED = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
WATCHED: dict[Kind, str] = {
    TIER: "",
    POOL: "",
    NODE: "",
    POD: MANAGED,
    LEASE: f"{MANAGED},{names.LABEL_ROLE}={names.ROLE_DEMAND}",
    **dict.fromkeys(CHILD_KINDS, MANAGED),
}
"""Kind: the label selector that the API server filters by. Every other object never gets here."""


@dataclass(slots=True)
class Router:
    """Turns what happened into keys to look at."""

    store: Store
    queue: WorkQueue
    demand: DemandBook
    latencies: Latencies
    on_relist: Callable[[Kind], None]
    synced: bool = False
    """the first lists are complete"""

    def listed(self, kind: Kind, body: Json) -> None:
        """An object of a list, before anything is decided."""
        if not self.synced:
            self.store.put(kind, body)

    def happened(self, kind: Kind, event_type: str | None, body: Json) -> None:
        self.synced = True
        self.saw(kind, event_type, body)

    def saw(self, kind: Kind, event_type: str | None, body: Json) -> None:
        """The same of a watch that is not Kopf's: it says nothing of Kopf's first lists."""
        if kind == NODE:
            before = signature(self.store.get(NODE, body["metadata"]["name"]))
        if event_type == "DELETED":
            known = self.store.gone(kind, body)
            change = Change.NEW if known else Change.STALE
        else:
            change = self.store.put(kind, body)
            if event_type is None:
                self.on_relist(kind)
        if change is Change.STALE or (change is Change.ECHO and event_type is not None):
            return
        if kind == NODE:
            after = signature(self.store.get(NODE, body["metadata"]["name"]))
            if before != after or event_type is None:
                self.node_changed(body["metadata"]["name"])
            return
        self._enqueue(kind, event_type, body)

    def _enqueue(self, kind: Kind, event_type: str | None, body: Json) -> None:
        if kind == POOL:
            self.add_all(self.tiers_naming(body["metadata"]["name"]))
            return
        ref = tier_of(kind, body)
        if ref is None:
            return
        asks = is_demand(kind, body)
        if asks and event_type == "DELETED":
            self.demand.forget(body)
        elif asks:
            self.demand.saw(body)
            if event_type == "ADDED":
                self.latencies.demand_seen(ref)
        if asks or kind == TIER:
            self.queue.add(ref, urgent=asks)
        else:
            self.queue.add_after(ref, SETTLE_S)

    def node_changed(self, name: str) -> None:
        """A node got a notice, fell silent, came back or went: its tiers, at once."""
        for ref in self.tiers_on(name):
            self.latencies.notice_seen(ref)
            self.queue.add(ref, urgent=True)

    def tiers_on(self, node: str) -> set[TierRef]:
        found = {
            tier_of(POD, pod)
            for pod in self.store.all(POD).values()
            if pod["spec"].get("nodeName") == node
        }
        return {ref for ref in found if ref is not None}

    def tiers_naming(self, pool: str) -> set[TierRef]:
        return {
            TierRef(namespace, name)
            for (namespace, name), tier in self.store.all(TIER).items()
            if pool in ((tier.get("spec") or {}).get("placement") or {}).get("pools", ())
        }

    def add_all(self, refs: Iterable[TierRef]) -> None:
        for ref in refs:
            self.queue.add(ref)


def register(registry: kopf.OperatorRegistry, router: Router) -> None:
    """One index handler (fills the store) and one event handler (enqueues) per kind.

    Nodes are not Kopf's (`nodefeed`).
    """
    for kind in WATCHED:
        if kind != NODE:
            _register(registry, router, kind)


def _register(registry: kopf.OperatorRegistry, router: Router, kind: Kind) -> None:
    async def listed(body: kopf.Body, **_: Any) -> None:
        router.listed(kind, dict(body))

    async def happened(event: kopf.RawEvent, **_: Any) -> None:
        router.happened(kind, event["type"], dict(event["object"]))

    kopf.index(kind.group, kind.version, kind.plural, registry=registry, id=f"list-{kind.plural}")(
        listed
    )
    kopf.on.event(
        kind.group, kind.version, kind.plural, registry=registry, id=f"see-{kind.plural}"
    )(happened)


def select(settings: kopf.OperatorSettings) -> None:
    """Server-side label selectors; Kopf's own filters would see every object first."""
    for kind, selector in WATCHED.items():
        if selector:
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = selector
