"""The net under the watches: compares the store with full lists, and looks at every tier again.

Kopf lists anew after a lost watch but says nothing of objects that were deleted meanwhile. So a
list of ours follows each of its lists, and all kinds are compared once per `RESYNC_S`.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import structlog

from spotinference import errors
from spotinference.api.kinds import NODE, POOL, Kind
from spotinference.clients.kube import Kube
from spotinference.controller.config import RESYNC_S
from spotinference.controller.handlers import WATCHED, Router
from spotinference.controller.metrics import Metrics
from spotinference.controller.store import tier_of

log = structlog.get_logger(__name__)

SETTLE_S = 5.0
"""A list of Kopf brings its objects one by one: wait for the last before comparing."""


@dataclass(slots=True)
class Resync:
    kube: Kube
    router: Router
    metrics: Metrics
    _suspects: dict[Kind, float] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def suspect(self, kind: Kind) -> None:
        """Kopf listed this kind again: compare soon."""
        if kind not in self._suspects:
            self.metrics.relists.labels(kind.kind).inc()
        self._suspects[kind] = asyncio.get_running_loop().time() + SETTLE_S
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        full_at = loop.time() + RESYNC_S
        while True:
            next_at = min([full_at, *self._suspects.values()])
            self._wake.clear()
            try:
                async with asyncio.timeout_at(next_at):
                    await self._wake.wait()
            except TimeoutError:
                pass
            now = loop.time()
            due = [kind for kind, at in self._suspects.items() if at <= now]
            if now >= full_at:
                due = list(WATCHED)
                full_at = now + RESYNC_S * random.uniform(0.9, 1.1)
                self.router.add_all(self.router.store.tiers())
            for kind in due:
                self._suspects.pop(kind, None)
                await self._compare(kind)

    async def _compare(self, kind: Kind) -> None:
        store = self.router.store
        before = list(store.all(kind))
        try:
            listing = await self.kube.list(kind, label_selector=WATCHED[kind] or None)
        except errors.SpotinferenceError as error:
            log.warning("resync.failed", kind=kind.plural, error=str(error))
            self._suspects[kind] = asyncio.get_running_loop().time() + 2 * SETTLE_S
            return
        wrong = store.reconcile(kind, before, listing.items, listing.resource_version)
        for body in wrong:
            self.metrics.repairs.labels(kind.kind).inc()
            log.info("watch.repaired", kind=kind.kind, name=body["metadata"]["name"])
            ref = tier_of(kind, body)
            if kind == NODE:
                self.router.node_changed(body["metadata"]["name"])
            elif kind == POOL:
                self.router.add_all(self.router.tiers_naming(body["metadata"]["name"]))
            elif ref is not None:
                self.router.queue.add(ref)
