"""The status of GPUPools: how many of its nodes exist, how many tiers name it. For people only;
nothing is decided from it. Compared every few seconds with what is known, written when it changed.
"""

from __future__ import annotations

import asyncio

import structlog

from spotinference import errors
from spotinference.api import names, parse
from spotinference.api.kinds import NODE, POOL, Json
from spotinference.api.pool import PoolSpec, PoolStatus
from spotinference.controller.handlers import Router
from spotinference.controller.store import Store
from spotinference.controller.writer import Writer

log = structlog.get_logger(__name__)

EVERY_S = 3.0


class PoolStatuses:
    def __init__(self, store: Store, router: Router, writer: Writer) -> None:
        self._store = store
        self._router = router
        self._writer = writer
        self.active = False
        """only while we lead"""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if self.active and self._router.synced:
                for pool in list(self._store.all(POOL).values()):
                    try:
                        await self._write(pool)
                    except errors.SpotinferenceError as error:
                        log.warning(
                            "pool.status_failed", pool=pool["metadata"]["name"], error=str(error)
                        )
            await asyncio.sleep(EVERY_S)

    async def _write(self, pool: Json) -> None:
        wanted = self._status(pool)
        live = pool.get("status") or {}
        if wanted is None or all(live.get(key) == value for key, value in wanted.items()):
            return
        meta = pool["metadata"]
        body = {
            "apiVersion": POOL.api_version,
            "kind": POOL.kind,
            "metadata": {"name": meta["name"], "uid": meta["uid"]},
            "status": wanted,
        }
        await self._writer.apply_status(POOL, body)

    def _status(self, pool: Json) -> Json | None:
        try:
            spec = parse.stored_pool(pool)
        except errors.SpecInvalid:
            return None
        name = pool["metadata"]["name"]
        nodes = sum(belongs(node, spec) for node in self._store.all(NODE).values())
        tiers = len(self._router.tiers_naming(name))
        return PoolStatus(nodes=nodes, tiers=tiers).model_dump(by_alias=True, mode="json")


def belongs(node: Json, spec: PoolSpec) -> bool:
    """Whether pods of this pool may run on the node."""
    labels = node["metadata"].get("labels") or {}
    selected = all(labels.get(key) == value for key, value in spec.node_selector.items())
    return selected and labels.get(names.ZONE_LABEL) in spec.zones
