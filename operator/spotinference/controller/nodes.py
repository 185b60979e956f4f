"""The health of nodes that carry our pods, by what we saw ourselves.

Kubelet renewals are read by polling the Leases in kube-node-lease every few seconds while any
engine pod is bound: a watch would bring every heartbeat of every node of the cluster. A silent
node is one whose Lease we saw unchanged in successive successful polls for 30 s; time in which
the API server itself could not be read does not count, or an outage of it would look like the
loss of all nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from spotinference import errors
from spotinference.api import names
from spotinference.api.kinds import LEASE, NODE, POD, Json, Kind
from spotinference.api.pool import PoolSpec
from spotinference.clients.clock import Clock
from spotinference.clients.kube import Kube
from spotinference.controller.store import Store
from spotinference.core import health, notices, providers
from spotinference.core.observed import NodeEvent, NodeHealth, NodeView, Notice

log = structlog.get_logger(__name__)

NODE_LEASES = "kube-node-lease"
POLL_S = 2.5
MAX_COUNTED_S = 2 * POLL_S
"""A longer gap between two polls was ours or the API server's, not the node's."""
GET_UP_TO = 8
"""More nodes than this and one list is cheaper than single reads."""
UNSEEN_GRACE_S = 5.0
"""A node that we never saw is taken for gone only after this: its watch may lag behind the pod's."""
MAX_REMEMBERED = 10_000


@dataclass(slots=True)
class _Renewal:
    text: str
    silent_s: float
    polled_at: float


class NodeWatch:
    def __init__(
        self, kube: Kube, store: Store, clock: Clock, on_change: Callable[[str], None]
    ) -> None:
        self._kube = kube
        self._store = store
        self._clock = clock
        self._on_change = on_change
        self._renewals: dict[str, _Renewal] = {}
        self.silent: frozenset[str] = frozenset()
        """nodes whose kubelet has stopped renewing"""
        self.held: frozenset[str] = frozenset()
        """those of them that are not acted upon"""
        self._hold_began_at: float | None = None
        self._held_since: frozenset[str] = frozenset()
        """all nodes that were held since then"""
        self.contact_of: Callable[[str], health.Contact] = lambda _: health.Contact()
        """what scraping the engines on a node showed; set by the composition root"""
        self._gone: dict[str, None] = {}
        self._missing_since: dict[str, float] = {}
        self._first_seen: dict[str, dict[str, datetime]] = {}
        """node uid to the signs it shows now, each with when it was first seen"""
        self.events_of: Callable[[Json], tuple[NodeEvent, ...]] = lambda _: ()
        """events about a node; set by the composition root"""
        self.polls_failed = 0
        store.removed_listeners.append(self._removed)

    # --- reads ----------------------------------------------------------------------------------

    def view(self, name: str, pool: PoolSpec | None) -> NodeView:
        node = self._store.get(NODE, name)
        if node is None:
            return NodeView(name, self._health_of_absent(name))
        self._missing_since.pop(name, None)
        self._gone.pop(name, None)
        hold = name in self.held
        verdict = health.health_of(node, self._witness(name), hold=hold)
        firm, hint = self._notices(node, pool) if pool else (None, None)
        return NodeView(name, verdict, firm, hint, held=hold)

    def _health_of_absent(self, name: str) -> NodeHealth:
        if name in self._gone:
            return NodeHealth.GONE
        now = self._clock.monotonic()
        if len(self._missing_since) > MAX_REMEMBERED:
            self._missing_since.clear()
        since = self._missing_since.setdefault(name, now)
        return NodeHealth.GONE if now - since >= UNSEEN_GRACE_S else NodeHealth.HEALTHY

    def _notices(self, node: Json, pool: PoolSpec) -> tuple[Notice | None, Notice | None]:
        """(firm, weak). A sign that is taken back is forgotten: later on it begins anew."""
        now, uid = self._clock.now(), node["metadata"]["uid"]
        signals = notices.Signals(node, self.events_of(node))
        found = notices.sightings(signals, pool.provider, pool.notice_seconds, now)
        if not found:
            self._first_seen.pop(uid, None)
            return None, None
        if len(self._first_seen) > MAX_REMEMBERED:
            self._first_seen.clear()
        before = self._first_seen.get(uid, {})
        self._first_seen[uid] = {s.source: before.get(s.source, now) for s in found}
        firm, hint = notices.notices(
            node["metadata"]["name"], found, self._first_seen[uid], pool.notice_seconds
        )
        return firm, hint if hint is not None and now < hint.deadline else None

    # --- the poll -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            bound = self._bound_nodes()
            if bound:
                try:
                    await self._poll(bound)
                except errors.SpotinferenceError as error:
                    self.polls_failed += 1
                    log.warning("nodes.poll_failed", error=str(error))
            self._end_graces()
            await asyncio.sleep(POLL_S)

    def _end_graces(self) -> None:
        """Nodes that were never seen, as those that went while no operator ran: nothing else says so."""
        now = self._clock.monotonic()
        over = [n for n, since in self._missing_since.items() if now - since >= UNSEEN_GRACE_S]
        for name in over:
            del self._missing_since[name]
            self._note_gone(name)
            self._on_change(name)

    def _bound_nodes(self) -> set[str]:
        return {
            pod["spec"]["nodeName"]
            for pod in self._store.all(POD).values()
            if pod["spec"].get("nodeName")
            and (pod["metadata"].get("labels") or {}).get(names.LABEL_ROLE) == names.ROLE_ENGINE
        }

    async def _poll(self, bound: set[str]) -> None:
        leases = await self._leases(bound)
        now = self._clock.monotonic()
        for name in [name for name in self._renewals if name not in leases]:
            del self._renewals[name]
        for name, text in leases.items():
            self._note(name, text, now)
        self._judge(now)

    def _judge(self, now: float) -> None:
        """Who is silent, and who of them is held; whose verdict changed is looked at."""
        seen = {name: w for name in self._renewals if (w := self._witness(name)) is not None}
        silent = frozenset(name for name, witness in seen.items() if health.silent(witness))
        began = self._hold_began_at
        held = health.held(seen, 0.0 if began is None else now - began, self.held)
        if began is None and held:
            self._hold_began_at = now
            log.warning("nodes.held", silent=len(silent), of=len(seen), held=len(held))
        self._held_since |= held
        # One that answers and is silent is still cut off; one that does neither is dead, and must not
        # cost the others their next hold.
        cut_off = [n for n in self._held_since & silent if health.answers(seen[n].contact)]
        if not held and not cut_off:
            self._hold_began_at, self._held_since = None, frozenset()
        for name in sorted((silent - held) ^ (self.silent - self.held) | (held ^ self.held)):
            log.warning("node.silent" if name in silent else "node.back", node=name)
            self._on_change(name)
        self.silent, self.held = silent, held

    def _witness(self, name: str) -> health.Witness | None:
        renewal = self._renewals.get(name)
        if renewal is None:
            return None
        node = self._store.get(NODE, name)
        ready = node is None or health.readiness(node) == "True"
        return health.Witness(renewal.silent_s, self.contact_of(name), ready)

    async def _leases(self, bound: set[str]) -> dict[str, str]:
        """The renewTime of each node's Lease."""
        if len(bound) > GET_UP_TO:
            listing = await self._kube.list(LEASE, NODE_LEASES)
            found = [item for item in listing.items if item["metadata"]["name"] in bound]
        else:
            found = []
            for name in sorted(bound):
                try:
                    found.append(await self._kube.get(LEASE, name, NODE_LEASES))
                except errors.NotFound:
                    continue
        return {
            item["metadata"]["name"]: str((item.get("spec") or {}).get("renewTime"))
            for item in found
        }

    def _note(self, name: str, text: str, now: float) -> None:
        known = self._renewals.get(name)
        if known is None:
            self._renewals[name] = _Renewal(text, 0.0, now)
            return
        passed_s = min(now - known.polled_at, MAX_COUNTED_S)
        known.silent_s = 0.0 if text != known.text else known.silent_s + passed_s
        known.text = text
        known.polled_at = now

    def _removed(self, kind: Kind, body: Json) -> None:
        if kind != NODE:
            return
        name = body["metadata"]["name"]
        self._note_gone(name)
        self._renewals.pop(name, None)

    def _note_gone(self, name: str) -> None:
        if len(self._gone) >= MAX_REMEMBERED:
            self._gone.pop(next(iter(self._gone)))
        self._gone[name] = None


def signature(node: Json | None) -> tuple[object, ...]:
    """What of a node can change a decision; heartbeats leave it as it is."""
    if node is None:
        return ()
    meta, spec = node["metadata"], node.get("spec") or {}
    conditions: list[Json] = (node.get("status") or {}).get("conditions") or []
    ready: Json = next((c for c in conditions if c.get("type") == "Ready"), {})
    labels = meta.get("labels") or {}
    return (
        meta["uid"],
        meta.get("deletionTimestamp"),
        sorted((meta.get("annotations") or {}).items()),
        sorted((t.get("key"), t.get("effect")) for t in spec.get("taints") or ()),
        bool(spec.get("unschedulable")),
        ready.get("status"),
        ready.get("message") if ready.get("status") != "True" else None,
        [labels.get(key) for key in sorted(providers.LABEL_KEYS)],
        sorted(
            (c["type"], c.get("status"), c.get("reason"), c.get("message"))
            for c in conditions
            if c.get("type") in providers.CONDITION_TYPES
        ),
    )
