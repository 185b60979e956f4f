"""Volumes of pods that wait: what is read, once, and who is told."""

from __future__ import annotations

import asyncio
from typing import cast

from spotinference.api import names
from spotinference.api.kinds import POD, PV, PVC, Json
from spotinference.clients.kube import Kube
from spotinference.controller.store import Store
from spotinference.controller.volumes import EVERY_S, VolumeZones
from spotinference.core.observed import TierRef
from tests.support.virtual_time import VirtualClock, virtual_time
from tests.unit.controller.objects import REF, engine_pod, obj
from tests.unit.controller.world import FakeApi


class CountingApi(FakeApi):
    reads = 0

    async def get(self, kind: object, name: str, namespace: str | None = None) -> Json:
        self.reads += 1
        return await super().get(kind, name, namespace)  # type: ignore[arg-type]  # a Kind


def waiting_pod() -> Json:
    body = engine_pod(node=None, ready=False)
    body["status"]["conditions"] = [{"type": "PodScheduled", "status": "False"}]
    body["spec"]["volumes"] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "weights", "persistentVolumeClaim": {"claimName": "weights"}},
    ]
    return body


def made(clock: VirtualClock) -> tuple[CountingApi, Store, VolumeZones, list[TierRef]]:
    api, store, told = CountingApi(), Store(clock), list[TierRef]()
    return api, store, VolumeZones(cast("Kube", api), store, told.append), told


def volume() -> Json:
    zone = {"key": names.ZONE_LABEL, "operator": "In", "values": ["zone-far-away"]}
    affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": [zone]}]}}
    return obj(PV, "pv", namespace=None, spec={"nodeAffinity": affinity})


@virtual_time
async def test_a_pod_that_waits_is_told_where_its_volume_lies(clock: VirtualClock) -> None:
    api, store, zones, told = made(clock)
    pod = waiting_pod()
    store.put(POD, pod)
    api.put(PVC, obj(PVC, "weights", spec={}))
    task = asyncio.create_task(zones.run())
    await asyncio.sleep(3 * EVERY_S)
    assert zones.of(pod) is None, "not bound yet"
    api.put(PVC, obj(PVC, "weights", spec={"volumeName": "pv"}))
    api.put(PV, volume())
    await asyncio.sleep(2 * EVERY_S)
    assert zones.of(pod) == frozenset({"zone-far-away"})
    assert told == [REF]
    reads = api.reads
    await asyncio.sleep(60)
    assert api.reads == reads, "read once"
    task.cancel()


@virtual_time
async def test_pods_that_have_a_node_cost_no_read_and_a_failed_read_ends_nothing(
    clock: VirtualClock,
) -> None:
    api, store, zones, _ = made(clock)
    store.put(POD, engine_pod())
    task = asyncio.create_task(zones.run())
    await asyncio.sleep(60)
    assert api.reads == 0
    pod = waiting_pod()
    pod["metadata"] |= {"name": "pod-2", "uid": "pod-2-uid"}
    store.put(POD, pod)
    api.down = True
    await asyncio.sleep(10)
    api.down = False
    api.put(PVC, obj(PVC, "weights", spec={"volumeName": "pv"}))
    api.put(PV, volume())
    await asyncio.sleep(2 * EVERY_S)
    assert zones.of(pod) == frozenset({"zone-far-away"})
    task.cancel()
