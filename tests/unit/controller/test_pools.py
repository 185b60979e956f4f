"""The status of GPUPools."""

from __future__ import annotations

from spotinference.api import names
from spotinference.api.kinds import NODE, POOL
from spotinference.clients.clock import SystemClock
from spotinference.controller.handlers import Router
from spotinference.controller.pools import PoolStatuses
from spotinference.controller.queue import WorkQueue
from spotinference.core.observed import TierRef
from tests.unit.controller.objects import obj
from tests.unit.controller.world import Shell


async def nothing(_: TierRef) -> float | None:
    return None


async def test_a_field_of_a_newer_crd_does_not_end_a_pools_status() -> None:
    it = Shell(SystemClock())
    spec = {"capacityType": "spot", "zones": ["zone-a"], "ofTheNextVersion": 1}
    pool = it.have(POOL, obj(POOL, "spot", namespace=None, spec=spec))
    labels = {names.ZONE_LABEL: "zone-a"}
    it.have(NODE, obj(NODE, "node-1", namespace=None, labels=labels))
    router = Router(it.store, WorkQueue(nothing), it.demand, it.latencies, lambda _: None)
    await PoolStatuses(it.store, router, it.writer)._write(pool)
    assert it.api.objects["GPUPool", "", "spot"]["status"] == {"nodes": 1, "tiers": 0}
