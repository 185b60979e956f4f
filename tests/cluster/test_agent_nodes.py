"""The node agent as cloud provider: nodes come when asked for, and go."""

from __future__ import annotations

import pytest

from spotinference import errors
from spotinference.api import times
from spotinference.api.kinds import LEASE, NODE, PDB, POD, Json
from spotinference.core.observed import Market
from tests.cluster.test_agent_pods import ON_TERM, pid_of
from tests.support.eventually import eventually
from tests.support.nodes import SHAPE, Nodes, alive, condition

GKE_A = Market("gke", "zone-a")


async def launched(nodes: Nodes, market: Market) -> list[Json]:
    """The market's nodes, booting ones included."""
    found = (await nodes.status())["nodes"]
    return [n for n in found if (n["pool"], n["zone"]) == (market.pool, market.zone)]


async def node_of(nodes: Nodes, ns: str, name: str = "p") -> Json:
    pod = await nodes.running(ns, name)
    return await nodes.kube.get(NODE, pod["spec"]["nodeName"])


async def test_a_pending_gpu_pod_gets_a_node_and_an_empty_node_goes(nodes: Nodes, ns: str) -> None:
    await nodes.pod(ns, market=Market("gke", "zone-b"))
    node = await node_of(nodes, ns)
    name = node["metadata"]["name"]
    assert node["metadata"]["labels"]["topology.kubernetes.io/zone"] == "zone-b"
    assert node["metadata"]["labels"]["cloud.google.com/gke-spot"] == "true"
    assert node["status"]["capacity"]["nvidia.com/gpu"] == "1"
    lease = await nodes.kube.get(LEASE, name, "kube-node-lease")
    assert times.parse(lease["spec"]["renewTime"])
    await nodes.kube.delete(POD, "p", ns)
    await nodes.node_gone(name)
    assert nodes.bill(name) == ["launch", "ready", "end"]


async def test_three_pods_at_once_get_three_nodes_and_no_more(nodes: Nodes, ns: str) -> None:
    for number in range(3):
        await nodes.pod(ns, f"p{number}", market=GKE_A)
    used = {(await nodes.running(ns, f"p{number}"))["spec"]["nodeName"] for number in range(3)}
    assert len(used) == 3
    assert {n["name"] for n in await launched(nodes, GKE_A)} == used
    for name in used:
        await nodes.live.reclaim(name)


async def test_a_market_without_capacity_launches_nothing_until_it_has(
    nodes: Nodes, ns: str
) -> None:
    where = Market("gke", "zone-empty")
    await nodes.pod(ns, market=where)
    await nodes.event(ns, "NotTriggerScaleUp", "capacity")
    assert await launched(nodes, where) == []
    await nodes.live.set_capacity("gke", "zone-empty", 1)
    await nodes.running(ns)
    await nodes.live.set_capacity("gke", "zone-empty", 0)


async def test_a_launch_that_nobody_waits_for_any_more_is_called_off(nodes: Nodes, ns: str) -> None:
    where = Market("gke", "zone-slow")
    await nodes.pod(ns, market=where)

    async def boots() -> Json | None:
        return next(iter(await launched(nodes, where)), None)

    booting = await eventually(boots)
    assert booting["state"] == "booting"
    await nodes.kube.delete(POD, "p", ns, grace_s=0)

    async def called_off() -> bool:
        return not await launched(nodes, where)

    await eventually(called_off, 5)
    assert nodes.bill(booting["name"]) == ["launch", "end"]


async def test_capacity_that_ends_during_a_launch_fails_the_launch(nodes: Nodes, ns: str) -> None:
    where = Market("gke", "zone-slow")
    await nodes.pod(ns, market=where)

    async def boots() -> Json | None:
        return next(iter(await launched(nodes, where)), None)

    booting = await eventually(boots)
    await nodes.live.set_capacity("gke", "zone-slow", 0)
    assert await launched(nodes, where) == []
    assert nodes.bill(booting["name"]) == ["launch", "end"]
    await nodes.live.set_capacity("gke", "zone-slow", 1)


async def test_a_pod_without_gpu_gets_a_cpu_node_of_its_zone(nodes: Nodes, ns: str) -> None:
    await nodes.pod(ns, spec={"nodeSelector": {"topology.kubernetes.io/zone": "zone-b"}})
    node = await node_of(nodes, ns)
    assert "nvidia.com/gpu" not in node["status"]["capacity"]
    assert node["metadata"]["labels"]["topology.kubernetes.io/zone"] == "zone-b"


async def test_a_pod_too_big_for_any_node_launches_none(nodes: Nodes, ns: str) -> None:
    before = {n["name"] for n in (await nodes.status())["nodes"]}
    pod = await nodes.pod(ns, create=False)
    pod["spec"]["containers"][0]["resources"] = {"requests": {"memory": "9Ti"}}
    await nodes.kube.create(POD, pod)
    await nodes.until(ns, "p", lambda pod: condition(pod, "PodScheduled") is not None)
    new = {n["name"] for n in (await nodes.status())["nodes"]} - before
    assert not any(name.startswith("cpu-zone-a-") and new for name in new)


async def test_losing_a_node_without_notice_kills_its_processes_and_deletes_it(
    nodes: Nodes, ns: str
) -> None:
    await nodes.pod(ns, market=GKE_A)
    pod = await nodes.running(ns)
    pid, name = pid_of(pod), pod["spec"]["nodeName"]
    await nodes.live.reclaim(name)
    assert not alive(pid)
    with pytest.raises(errors.NotFound):
        await nodes.kube.get(NODE, name)
    left = await nodes.get(ns)  # nobody told the API server, as in reality
    assert left is not None
    assert left["status"]["phase"] == "Running"
    await nodes.kube.delete(POD, "p", ns, grace_s=0)


async def test_a_silent_node_stays_in_the_api_and_stops_beating(nodes: Nodes, ns: str) -> None:
    await nodes.pod(ns, market=GKE_A)
    pod = await nodes.running(ns)
    pid, name = pid_of(pod), pod["spec"]["nodeName"]
    await nodes.live.ask("silence", node=name)
    assert not alive(pid)
    assert (await nodes.kube.get(NODE, name))["metadata"]["name"] == name
    states = {n["name"]: n["state"] for n in (await nodes.status())["nodes"]}
    assert states[name] == "silent"
    await nodes.kube.delete(NODE, name)
    await nodes.kube.delete(POD, "p", ns, grace_s=0)


async def test_deleting_the_node_object_takes_the_machine_with_it(nodes: Nodes, ns: str) -> None:
    await nodes.pod(ns, market=GKE_A)
    pod = await nodes.running(ns)
    await nodes.kube.delete(NODE, pod["spec"]["nodeName"])
    await eventually(lambda: not alive(pid_of(pod)), 5)
    await nodes.kube.delete(POD, "p", ns, grace_s=0)


# --- what each provider shows -----------------------------------------------------------------------


async def warned(nodes: Nodes, ns: str, pool: str, notice: str) -> tuple[Json, Json]:
    """A pod and its node, just after the node's notice."""
    await nodes.pod(ns, market=Market(pool, "zone-a"), script=ON_TERM.format(delay=0))
    pod = await nodes.running(ns)
    await nodes.says(pod, "up")
    await nodes.live.reclaim(pod["spec"]["nodeName"], notice)
    return pod, await nodes.kube.get(NODE, pod["spec"]["nodeName"])


def taint_keys(node: Json) -> set[str]:
    return {taint["key"] for taint in node["spec"].get("taints", [])}


@pytest.mark.parametrize("pool", [pool.name for pool in SHAPE.pools])
async def test_a_node_carries_its_providers_labels_and_taints(
    nodes: Nodes, ns: str, pool: str
) -> None:
    await nodes.pod(ns, market=Market(pool, "zone-a"))
    node = await node_of(nodes, ns)
    expected = SHAPE.pool(pool)
    assert expected.node_labels().items() <= node["metadata"]["labels"].items()
    assert {t.key for t in expected.node_taints()} <= taint_keys(node)


async def test_gke_says_not_ready_and_shuts_pods_down(nodes: Nodes, ns: str) -> None:
    pod, node = await warned(nodes, ns, "gke", "3s")
    ready = condition(node, "Ready")
    assert ready is not None
    assert (ready["status"], ready["message"]) == ("False", "node is shutting down")
    ended = await nodes.until(ns, "p", lambda pod: pod["status"]["phase"] == "Failed")
    assert ended["status"]["reason"] == "Terminated"
    assert "got SIGTERM" in nodes.log(pod)
    await nodes.node_gone(node["metadata"]["name"], 10)
    await nodes.kube.delete(POD, "p", ns, grace_s=0)


async def test_eks_cordons_and_drains(nodes: Nodes, ns: str) -> None:
    pod, node = await warned(nodes, ns, "eks", "3s")
    assert node["spec"]["unschedulable"] is True
    await nodes.gone(ns)
    assert "got SIGTERM" in nodes.log(pod)
    await nodes.node_gone(node["metadata"]["name"], 10)


async def test_karpenter_taints_annotates_and_says_so(nodes: Nodes, ns: str) -> None:
    _, node = await warned(nodes, ns, "karpenter", "3s")
    assert "karpenter.sh/disrupted" in taint_keys(node)
    deadline = node["metadata"]["annotations"]["karpenter.sh/nodeclaim-termination-timestamp"]
    assert times.parse(deadline)
    event = await nodes.event("default", "SpotInterrupted")
    assert event["involvedObject"]["kind"] == "Node"
    await nodes.node_gone(node["metadata"]["name"], 10)
    await nodes.kube.delete(POD, "p", ns, grace_s=0)


@pytest.mark.parametrize(
    ("pool", "taint"),
    [
        ("nth", "aws-node-termination-handler/spot-itn"),
        ("aks", "remediator.kubernetes.azure.com/unschedulable"),
        ("plain", "spotinference.dev/impending-interruption"),
    ],
)
async def test_the_others_taint_and_go_at_the_deadline(
    nodes: Nodes, ns: str, pool: str, taint: str
) -> None:
    _, node = await warned(nodes, ns, pool, "2s")
    assert taint in taint_keys(node)
    await nodes.node_gone(node["metadata"]["name"], 10)
    assert nodes.bill(node["metadata"]["name"])[-1] == "end"
    await nodes.kube.delete(POD, "p", ns, grace_s=0)


async def test_a_drain_respects_a_disruption_budget_until_the_deadline(
    nodes: Nodes, ns: str
) -> None:
    budget: Json = {
        "apiVersion": PDB.api_version,
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "keep", "namespace": ns},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}},
    }
    await nodes.kube.create(PDB, budget)
    pod = await nodes.pod(ns, market=Market("eks", "zone-a"), create=False)
    pod["metadata"]["labels"] = {"app": "kept"}
    await nodes.kube.create(POD, pod)
    pod = await nodes.running(ns)
    await nodes.live.reclaim(pod["spec"]["nodeName"], "1s")
    await nodes.node_gone(pod["spec"]["nodeName"], 10)
    left = await nodes.get(ns)
    assert left is not None
    assert "deletionTimestamp" not in left["metadata"]
    await nodes.kube.delete(POD, "p", ns, grace_s=0)
