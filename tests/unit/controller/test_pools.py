"""The status of GPUPools."""

from __future__ import annotations

from spotinference.api import names
from spotinference.api.kinds import NODE, POOL, TIER
from spotinference.clients.clock import SystemClock
from spotinference.controller.handlers import Router
from spotinference.controller.pools import PoolStatuses
from spotinference.controller.queue import WorkQueue
from spotinference.controller.resync import Resync
from spotinference.core.observed import TierRef
from tests.unit.controller.objects import obj, tier
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


async def test_the_tiers_of_a_pool_that_was_deleted_unseen_are_looked_at() -> None:
    it = Shell(SystemClock())
    spec = {"capacityType": "spot", "zones": ["zone-a"]}
    it.have(POOL, obj(POOL, "spot", namespace=None, spec=spec))
    it.have(TIER, tier())
    del it.api.objects["GPUPool", "", "spot"]
    queue = WorkQueue(nothing)
    router = Router(it.store, queue, it.demand, it.latencies, lambda _: None)
    await Resync(it.writer._kube, router, it.metrics)._compare(POOL)
    assert it.store.get(POOL, "spot") is None
    assert queue.depth == 1
