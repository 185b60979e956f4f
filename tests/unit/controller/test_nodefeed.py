"""Nodes come by our own watch: into the store, and to the tiers that have pods on them."""

from __future__ import annotations

import asyncio
import contextlib

from spotinference.api.kinds import DEPLOYMENT, NODE, POD, Json
from spotinference.controller import nodefeed
from tests.support.fake_kube import FakeKube
from tests.support.virtual_time import VirtualClock, virtual_time
from tests.unit.controller.objects import REF, deployment, engine_pod, obj
from tests.unit.controller.test_handlers import Bench


def node(version: int, *taints: str) -> Json:
    spec = {"taints": [{"key": key} for key in taints]}
    body = obj(NODE, "node-1", namespace=None, version=version, spec=spec)
    return {**body, "status": {"images": [{"names": ["vllm"]}]}}


@virtual_time
async def test_a_notice_reaches_the_tier_and_a_node_that_went_unseen_too(
    clock: VirtualClock,
) -> None:
    it, kube = Bench(clock), FakeKube()
    it.router.saw(POD, "ADDED", engine_pod(node="node-1"))
    kube.put(NODE, node(1))
    feed = nodefeed.feed(kube, it.router, 60)
    task = asyncio.create_task(feed.run())
    await feed.wait_synced(5)
    known = it.router.store.get(NODE, "node-1")
    assert known is not None
    assert "images" not in known["status"], "each node lists all its images: megabytes"
    await asyncio.sleep(1)
    warned = node(2, "x")
    assert await it.after(lambda: kube.put(NODE, warned)) == [REF]
    kube.go_away()
    kube.objects.clear()
    await asyncio.sleep(1)
    it.looked.clear()
    kube.away = False
    await asyncio.sleep(30)
    assert it.looked == [REF]
    assert it.router.store.get(NODE, "node-1") is None
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@virtual_time
async def test_a_node_says_nothing_of_whether_the_other_lists_are_complete(
    clock: VirtualClock,
) -> None:
    it = Bench(clock)
    it.router.saw(NODE, "MODIFIED", node(1))
    assert not it.router.synced
    it.router.listed(DEPLOYMENT, deployment(1))
    assert it.router.store.all(DEPLOYMENT)
