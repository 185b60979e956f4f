"""A tier's life under the real operator: asleep, woken, serving, reclaimed, overridden, asleep."""

from __future__ import annotations

import json

import pytest

from spotinference.api import names
from spotinference.api.kinds import (
    DEPLOYMENT,
    JOB,
    NETWORK_POLICY,
    NODE,
    PDB,
    POD,
    POOL,
    PVC,
    SERVICE,
    SERVICE_ACCOUNT,
    TIER,
)
from spotinference.devcluster.simengine.options import SimOptions
from tests.cluster.operators import (
    asking,
    children,
    condition,
    drop_tier,
    engines,
    exists,
    make_tier,
    phase,
    replicas,
    scale_writes,
    status,
    warm,
)
from tests.support.cluster import LiveCluster
from tests.support.eventually import eventually

pytestmark = pytest.mark.cluster


async def test_a_tier_wakes_on_demand_serves_and_falls_asleep_again(cluster: LiveCluster) -> None:
    ns = await cluster.namespace("life-wake")
    await make_tier(cluster, "nap", ns)
    await warm(cluster, "nap", ns)
    asleep = await phase(cluster, "nap", ns, "Asleep")
    assert condition(asleep, "Ready")["status"] == "True"
    assert condition(asleep, "Ready")["reason"] == "Asleep"
    mark = cluster.mark()
    async with asking(cluster, "nap", ns):
        ready = await phase(cluster, "nap", ns, "Ready")
    assert ready["readySummary"] == "1/1"
    stages = [stage["name"] for stage in ready["wake"]["stages"]]
    # A stage that was over before anybody looked is not listed.
    assert stages in (
        ["scheduling", "starting", "loading", "ready"],
        ["scheduling", "loading", "ready"],
    )
    slept = await phase(cluster, "nap", ns, "Asleep", 30)
    assert slept["engine"]["contextWindow"] == SimOptions().max_model_len
    assert await replicas(cluster, "nap", ns) == {}
    scales = scale_writes(cluster.audit(mark), "nap")
    assert len(scales) == 2, "one write to wake, one to sleep"
    await drop_tier(cluster, "nap", ns)


@pytest.mark.fault(37, 38)
async def test_a_reclaim_without_notice_starts_a_replacement_elsewhere_and_strikes_the_lost_pod_off(
    cluster: LiveCluster,
) -> None:
    ns = await cluster.namespace("life-reclaim")
    await make_tier(cluster, "lost", ns, scaling={"minReplicas": 1, "maxReplicas": 1})
    await phase(cluster, "lost", ns, "Ready", 90)
    (before,) = await replicas(cluster, "lost", ns)
    (pod,) = await engines(cluster, "lost", ns)
    await cluster.reclaim(pod["spec"]["nodeName"])

    async def moved() -> bool:
        now = await replicas(cluster, "lost", ns)
        assert list(now.values()) == [1], now
        assert before not in now, now
        return True

    # Kubernetes by itself needs a minute to notice.
    await eventually(moved, 10, "the replacement is asked for in another market")

    async def struck_off() -> bool:
        pods = [p["metadata"]["name"] for p in await engines(cluster, "lost", ns)]
        assert pod["metadata"]["name"] not in pods
        return True

    await eventually(struck_off, 10, "the lost pod is gone")
    await phase(cluster, "lost", ns, "Ready", 60)
    await drop_tier(cluster, "lost", ns)


@pytest.mark.fault(36)
async def test_a_notice_dooms_the_replica_and_has_its_replacement_ready_before_the_node_goes(
    cluster: LiveCluster,
) -> None:
    ns = await cluster.namespace("life-notice")
    await make_tier(cluster, "warned", ns, scaling={"minReplicas": 1, "maxReplicas": 2})
    await phase(cluster, "warned", ns, "Ready", 90)
    (pod,) = await engines(cluster, "warned", ns)
    node = pod["spec"]["nodeName"]
    await cluster.reclaim(node, "25s")

    async def doomed() -> str:
        live = await cluster.kube.get(POD, pod["metadata"]["name"], ns)
        annotations = live["metadata"].get("annotations") or {}
        assert names.ANNOTATION_DOOMED_UNTIL in annotations, annotations
        return str(annotations[names.ANNOTATION_DOOMED_REASON])

    assert await eventually(doomed, 10, "the pod is doomed") == "notice"

    async def replaced() -> bool:
        good = [
            p
            for p in await engines(cluster, "warned", ns)
            if p["metadata"]["uid"] != pod["metadata"]["uid"]
            and any(
                c["type"] == "Ready" and c["status"] == "True"
                for c in p.get("status", {}).get("conditions", ())
            )
        ]
        assert good
        return True

    await eventually(replaced, 20, "the replacement is ready")
    assert await exists_node(cluster, node), "the node is still there"
    await drop_tier(cluster, "warned", ns)


async def exists_node(cluster: LiveCluster, name: str) -> bool:
    return name in {n["metadata"]["name"] for n in (await cluster.kube.list(NODE)).items}


async def test_a_child_edited_or_deleted_by_hand_is_put_back(cluster: LiveCluster) -> None:
    ns = await cluster.namespace("life-edit")
    await make_tier(cluster, "kept", ns)
    await warm(cluster, "kept", ns)
    await phase(cluster, "kept", ns, "Asleep")
    deployment = (await children(cluster, DEPLOYMENT, "kept", ns))[0]["metadata"]["name"]
    service = names.service("kept")
    image = {"containers": [{"name": "engine", "image": "evil:latest"}]}
    await cluster.kubectl(
        "-n",
        ns,
        "patch",
        "deployment",
        deployment,
        "-p",
        json.dumps({"spec": {"template": {"spec": image}}}),
    )
    await cluster.kube.merge_patch(SERVICE, service, ns, {"spec": {"selector": {"app": "mine"}}})
    await cluster.kube.delete(NETWORK_POLICY, names.network_policy("kept"), ns)
    await cluster.kube.merge_patch(DEPLOYMENT, deployment, ns, {"spec": {"replicas": 3}})

    async def restored() -> bool:
        live = await cluster.kube.get(DEPLOYMENT, deployment, ns)
        containers = live["spec"]["template"]["spec"]["containers"]
        assert containers[0]["image"].startswith("vllm/vllm-openai"), containers[0]["image"]
        assert live["spec"]["replicas"] == 0
        selector = (await cluster.kube.get(SERVICE, service, ns))["spec"]["selector"]
        assert selector[names.LABEL_TIER] == "kept"
        assert await exists(cluster, NETWORK_POLICY, names.network_policy("kept"), ns)
        return True

    await eventually(restored, 15, "the edits are undone")

    async def told() -> bool:
        reverted = ("get", "events", "--field-selector=reason=Reverted")
        assert "Reverted" in await cluster.kubectl("-n", ns, *reverted)
        return True

    await eventually(told, 10, "an event tells of it")
    await drop_tier(cluster, "kept", ns)


async def test_a_missing_pool_is_a_condition_until_it_exists(cluster: LiveCluster) -> None:
    ns = await cluster.namespace("life-pool")
    await make_tier(cluster, "poolless", ns, pools=("not-there",))
    degraded = await phase(cluster, "poolless", ns, "Degraded", 15)
    why = condition(degraded, "Degraded")
    assert why["reason"] == "PoolNotFound"
    assert "not-there" in why["message"]
    pool = await cluster.kube.get(POOL, "spot-l4")
    await cluster.kube.apply(
        POOL,
        {
            "apiVersion": POOL.api_version,
            "kind": POOL.kind,
            "metadata": {"name": "not-there"},
            "spec": pool["spec"],
        },
    )
    await phase(cluster, "poolless", ns, "Asleep", 30)
    await drop_tier(cluster, "poolless", ns)
    await cluster.kube.delete(POOL, "not-there")


async def test_a_wake_without_capacity_says_so_and_is_called_off_when_nobody_waits(
    cluster: LiveCluster,
) -> None:
    ns = await cluster.namespace("life-nowhere")
    await cluster.kube.apply(
        POOL,
        {
            "apiVersion": POOL.api_version,
            "kind": POOL.kind,
            "metadata": {"name": "nowhere"},
            "spec": {
                "capacityType": "spot",
                "zones": ["zone-a"],
                "nodeSelector": {"no": "such-node"},
                "refusalAfter": "2s",
            },
        },
    )
    await make_tier(cluster, "stuck", ns, pools=("nowhere",))
    await warm(cluster, "stuck", ns)

    async def says_so() -> bool:
        capacity = condition(await status(cluster, "stuck", ns), "CapacityAvailable")
        assert capacity.get("status") == "False", capacity
        assert capacity["reason"] == "NoCapacity"
        return True

    async with asking(cluster, "stuck", ns):
        await eventually(says_so, 20, "the tier says that there is no capacity")
    await phase(cluster, "stuck", ns, "Asleep", 30)
    assert await replicas(cluster, "stuck", ns) == {}
    await drop_tier(cluster, "stuck", ns)
    await cluster.kube.delete(POOL, "nowhere")


async def test_a_paused_tier_does_not_wake_and_wakes_when_resumed(cluster: LiveCluster) -> None:
    ns = await cluster.namespace("life-pause")
    await make_tier(cluster, "halted", ns, paused=True)
    await warm(cluster, "halted", ns)
    async with asking(cluster, "halted", ns):

        async def paused() -> bool:
            ready = condition(await status(cluster, "halted", ns), "Ready")
            assert ready.get("reason") == "Paused", ready
            return True

        await eventually(paused, 15, "the tier says that it is paused")
        assert await replicas(cluster, "halted", ns) == {}
        await cluster.kube.merge_patch(TIER, "halted", ns, {"spec": {"paused": False}})
        await phase(cluster, "halted", ns, "Ready", 60)
    await drop_tier(cluster, "halted", ns)


async def test_kubectl_scale_rules_until_the_number_is_removed(cluster: LiveCluster) -> None:
    ns = await cluster.namespace("life-scale")
    await make_tier(cluster, "byhand", ns)
    await warm(cluster, "byhand", ns)
    await cluster.kubectl("-n", ns, "scale", "inferencetier/byhand", "--replicas=2")

    async def two() -> bool:
        now = await status(cluster, "byhand", ns)
        assert now.get("readySummary") == "2/2", now
        return True

    await eventually(two, 60, "two replicas are ready")
    assert sum((await replicas(cluster, "byhand", ns)).values()) == 2
    patch = '[{"op": "remove", "path": "/spec/replicas"}]'
    await cluster.kubectl("-n", ns, "patch", "inferencetier/byhand", "--type=json", "-p", patch)
    await phase(cluster, "byhand", ns, "Asleep", 60)
    await drop_tier(cluster, "byhand", ns)


async def test_a_deleted_tier_takes_its_children_along_and_leaves_its_cache(
    cluster: LiveCluster,
) -> None:
    ns = await cluster.namespace("life-delete")
    await make_tier(cluster, "doomed", ns)
    await warm(cluster, "doomed", ns)
    await drop_tier(cluster, "doomed", ns)

    async def gone() -> bool:
        for kind in (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, PDB, NETWORK_POLICY, JOB, POD):
            left = await children(cluster, kind, "doomed", ns)
            assert not left, [item["metadata"]["name"] for item in left]
        return True

    await eventually(gone, 30, "all children are collected")
    assert await children(cluster, PVC, "doomed", ns), "a retained cache stays"


async def test_a_tier_made_again_under_its_old_name_serves_from_its_old_cache(
    cluster: LiveCluster,
) -> None:
    ns = await cluster.namespace("life-again")
    await make_tier(cluster, "phoenix", ns)
    await warm(cluster, "phoenix", ns)
    await drop_tier(cluster, "phoenix", ns)
    again = await make_tier(cluster, "phoenix", ns)

    async def adopted() -> bool:
        made = await children(cluster, DEPLOYMENT, "phoenix", ns)
        owners = {d["metadata"]["ownerReferences"][0]["uid"] for d in made}
        assert owners == {again["metadata"]["uid"]}, owners
        return True

    await eventually(adopted, 60, "the new tier has Deployments of its own")
    await phase(cluster, "phoenix", ns, "Asleep")
    await drop_tier(cluster, "phoenix", ns)
