"""Nodes that fall silent and come back, and volumes that lie elsewhere, under the real operator."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from spotinference.api import names
from spotinference.api.kinds import DEPLOYMENT, PV, PVC, Json
from tests.cluster.operators import (
    children,
    condition,
    drop_tier,
    engines,
    leading,
    make_tier,
    operator,
    phase,
    replicas,
    status,
)
from tests.support.cluster import LiveCluster, MakeCluster
from tests.support.eventually import eventually

pytestmark = pytest.mark.cluster


@pytest.mark.fault(40)
async def test_when_every_kubelet_is_silent_for_40_s_but_engines_answer_nothing_is_replaced(
    make_cluster: MakeCluster,
) -> None:
    """The node agent plays all kubelets: stopped, it renews no Lease, and engines run on."""
    cluster = await make_cluster(gateway=False, operator=False)
    ns = await cluster.namespace("silent")
    with operator(cluster) as it:
        await leading(it)
        await make_tier(cluster, "calm", ns, scaling={"minReplicas": 2, "maxReplicas": 2})
        await phase(cluster, "calm", ns, "Ready", 90)

        async def both() -> bool:
            now = await status(cluster, "calm", ns)
            assert now.get("readyReplicas") == 2, now
            return True

        await eventually(both, 90, "both replicas are ready")
        before = {p["metadata"]["uid"] for p in await engines(cluster, "calm", ns)}
        placed = await replicas(cluster, "calm", ns)
        mark = cluster.mark()
        os.kill(cluster.state.supervisor_pid, signal.SIGSTOP)
        try:

            async def held() -> bool:
                assert it.metric("spotinference_operator_nodes_silent") >= 2
                assert it.metric("spotinference_operator_nodes_held") >= 2
                return True

            await eventually(held, 60, "the silent nodes are held")
            told = await status(cluster, "calm", ns)
            await asyncio.sleep(8)  # what is never to happen needs a time in which it could
        finally:
            os.kill(cluster.state.supervisor_pid, signal.SIGCONT)
        await eventually(
            lambda: it.metric("spotinference_operator_nodes_silent") == 0, 60, "they are back"
        )
        assert condition(told, "Interrupted")["reason"] == "NodesHeld"
        assert {p["metadata"]["uid"] for p in await engines(cluster, "calm", ns)} == before
        assert await replicas(cluster, "calm", ns) == placed
        writes = [
            r
            for r in cluster.audit(mark, user="operator")
            if r.resource in {"deployments", "deployments/scale", "pods"}
        ]
        assert writes == []


@pytest.mark.fault(41)
async def test_a_volume_in_another_zone_is_a_condition_and_no_silent_wait(
    cluster: LiveCluster,
) -> None:
    ns = await cluster.namespace("volume-elsewhere")
    volume: Json = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "weights-elsewhere"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "hostPath": {"path": "/nowhere"},
            "claimRef": {"namespace": ns, "name": "weights"},
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {
                                    "key": names.ZONE_LABEL,
                                    "operator": "In",
                                    "values": ["zone-far-away"],
                                }
                            ]
                        }
                    ]
                }
            },
        },
    }
    claim: Json = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "weights", "namespace": ns},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "volumeName": "weights-elsewhere",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    await cluster.kube.apply(PV, volume)
    await cluster.kube.apply(PVC, claim)
    await make_tier(
        cluster,
        "far",
        ns,
        model={"source": "pvc://weights/model"},
        scaling={"minReplicas": 1, "maxReplicas": 1},
    )

    async def said() -> bool:
        found = condition(await status(cluster, "far", ns), "CapacityAvailable")
        assert found.get("reason") == "VolumeZoneMismatch", found
        assert "a volume of it lies in zone-far-away" in found["message"]
        return True

    await eventually(said, 90, "the tier says why it waits")
    asked = await children(cluster, DEPLOYMENT, "far", ns)
    assert sum(d["spec"]["replicas"] for d in asked) == 1
    await drop_tier(cluster, "far", ns)
    await cluster.kube.delete(PV, "weights-elsewhere")
