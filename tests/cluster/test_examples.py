"""Every example, as it stands in the repository, on nodes that look like that provider's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import yaml

from spotinference.api import names
from spotinference.api.kinds import NODE, POD, STORAGE_CLASS, Json
from spotinference.devcluster.simengine.model import write_tiny_repo
from tests.support.cluster import LiveCluster, MakeCluster, spotinference
from tests.support.eventually import eventually
from tests.support.tools import repository

pytestmark = pytest.mark.cluster

EXAMPLES = repository() / "examples"
WAKE_S = 90


def topology(provider: str, product: str, zones: list[str], spot: str, on_demand: str) -> Json:
    """Two node pools as that provider makes them; the GPUPools are the example's own."""
    shared = {
        "provider": provider,
        "gpu": {"product": product},
        "publish": False,
        "bootDelay": "200ms",
        "memory": "64Gi",
        "markets": [{"zone": zone, "capacity": 3} for zone in zones],
    }
    return {
        "pools": [
            {"name": spot, "capacityType": "spot", **shared},
            {"name": on_demand, "capacityType": "on-demand", **shared},
        ],
        "engine": {"startDelay": "200ms"},
    }


TOPOLOGIES = {
    "gke": topology(
        "gke",
        "NVIDIA-L4",
        ["us-central1-a", "us-central1-b", "us-central1-c"],
        "l4-spot",
        "l4-on-demand",
    ),
    "eks": topology("eks", "NVIDIA-L4", ["eu-west-1a", "eu-west-1b"], "spot", "on-demand"),
    "karpenter": topology(
        "karpenter", "NVIDIA-L4", ["eu-west-1a", "eu-west-1b", "eu-west-1c"], "gpu", "gpu-od"
    ),
    "aks": topology("aks", "NVIDIA-A100", ["westeurope-1", "westeurope-2"], "a100spot", "a100"),
}
SPOT_LABEL = {
    "gke": ("cloud.google.com/gke-spot", "true"),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT"),
    "karpenter": ("karpenter.sh/capacity-type", "spot"),
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot"),
}
"""How that provider's spot nodes are told from others, by its documentation."""
SPOT_TAINTS = {
    "gke": {"nvidia.com/gpu", "cloud.google.com/gke-spot"},
    "eks": {"nvidia.com/gpu"},
    "karpenter": {"nvidia.com/gpu"},
    "aks": {"nvidia.com/gpu", "kubernetes.azure.com/scalesetpriority"},
}

CASES = {
    "gke": ("gke/tier.yaml", "minimal.yaml"),
    "eks": ("eks/tier.yaml", "scale-to-zero.yaml"),
    "karpenter": ("karpenter/tier.yaml", "quantised.yaml"),
    "aks": ("aks/tier.yaml",),
}
"""The examples by the provider whose pools they are run on."""


REPLAYED = "simulate/tier.yaml"


def documents(file: str) -> list[Json]:
    return list(yaml.safe_load_all((EXAMPLES / file).read_text()))


@pytest.mark.parametrize("provider", CASES)
async def test_its_examples_run_on_that_provider_s_spot_nodes(
    make_cluster: MakeCluster, provider: str
) -> None:
    cluster = await prepared(make_cluster, provider, *CASES[provider])
    await cluster.kubectl("apply", "-f", str(EXAMPLES / provider / "pools.yaml"))
    async with asyncio.TaskGroup() as all_at_once:
        for file in CASES[provider]:
            all_at_once.create_task(runs_on_spot(cluster, provider, file), name=file)


async def runs_on_spot(cluster: LiveCluster, provider: str, file: str) -> None:
    await cluster.kubectl("apply", "-f", str(EXAMPLES / file))
    (tier,) = documents(file)
    name = tier["metadata"]["name"]
    await cluster.kubectl("scale", f"itier/{name}", "--replicas=1")

    bound = f"the pod of {file} is bound to a node"
    node = await eventually(lambda: node_of(cluster, name), WAKE_S, bound)
    key, value = SPOT_LABEL[provider]
    assert node["metadata"]["labels"][key] == value, file
    assert {taint["key"] for taint in node["spec"]["taints"]} >= SPOT_TAINTS[provider], file
    await cluster.kubectl(
        "wait", f"itier/{name}", "--for=jsonpath={.status.readyReplicas}=1", "--timeout=50s"
    )


async def test_the_bridge_is_on_demand_only_while_spot_has_no_capacity(
    make_cluster: MakeCluster,
) -> None:
    file = "on-demand-bridge.yaml"
    cluster = await prepared(make_cluster, "gke", file)
    for zone in TOPOLOGIES["gke"]["pools"][0]["markets"]:
        await cluster.set_capacity("l4-spot", zone["zone"], 0)
    await cluster.kubectl("apply", "-f", str(EXAMPLES / "gke/pools.yaml"))
    quickly = json.dumps({"spec": {"refusalAfter": "2s"}})
    await cluster.kubectl("patch", "gpool/gpu-spot", "--type=merge", "-p", quickly)
    await cluster.kubectl("apply", "-f", str(EXAMPLES / file))

    node = await eventually(lambda: node_of(cluster, "always-on"), WAKE_S, "a bridge is found")
    assert "cloud.google.com/gke-spot" not in node["metadata"]["labels"]
    assert node["metadata"]["labels"]["cloud.google.com/gke-nodepool"] == "l4-on-demand"


async def test_the_replayed_tier_is_one_that_the_api_server_takes(cluster: LiveCluster) -> None:
    for file in ("simulate/pools.yaml", REPLAYED):
        await cluster.kubectl("apply", "--dry-run=server", "-f", str(EXAMPLES / file))


def test_the_replayed_day_is_replayed_as_its_readme_says() -> None:
    folder = EXAMPLES / "simulate"
    text = (folder / "README.md").read_text()
    command = text.split("```sh")[1].split("```")[0].replace("\\\n", " ").split()
    command = command[1 : command.index("--plot")]
    done = spotinference(*command, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    replayed = json.loads(done.stdout)
    assert replayed["requests"] > 100_000
    assert replayed["wakes"] >= 1
    assert replayed["usd"] < min(other["usd"] for other in replayed["compared"]) * 1.5


async def prepared(make_cluster: MakeCluster, provider: str, *files: str) -> LiveCluster:
    """A cluster of that provider's look, with the examples' models in its hub and their storage."""
    cluster = await make_cluster(TOPOLOGIES[provider])
    for file in files:
        (tier,) = documents(file)
        offer(cluster.paths.hub / tier["spec"]["model"]["source"].removeprefix("hf://"))
        cache = tier["spec"]["cache"]
        if "storageClassName" in cache:
            await cluster.kube.apply(STORAGE_CLASS, storage_class(cache))
    return cluster


def offer(repo: Path) -> None:
    """A tiny model under that name, with a context as long as the real one's."""
    write_tiny_repo(repo)
    config = json.loads((repo / "config.json").read_text())
    (repo / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40_960}))


def storage_class(cache: Json) -> Json:
    zonal = cache["accessMode"] == "ReadWriteOnce"
    return {
        "apiVersion": STORAGE_CLASS.api_version,
        "kind": STORAGE_CLASS.kind,
        "metadata": {"name": cache["storageClassName"]},
        "provisioner": f"spotinference.dev/{'zonal' if zonal else 'shared'}",
        "volumeBindingMode": "WaitForFirstConsumer" if zonal else "Immediate",
    }


async def node_of(cluster: LiveCluster, tier: str) -> Json | None:
    """The node of the tier's first engine pod that is bound to one."""
    selector = f"{names.LABEL_TIER}={tier},{names.LABEL_ROLE}={names.ROLE_ENGINE}"
    pods = await cluster.kube.list(POD, "default", label_selector=selector)
    bound = [pod["spec"]["nodeName"] for pod in pods.items if pod["spec"].get("nodeName")]
    return await cluster.kube.get(NODE, bound[0]) if bound else None


def test_every_example_is_covered() -> None:
    tested = {file for files in CASES.values() for file in files} | {
        "on-demand-bridge.yaml",
        REPLAYED,
    }
    found = {
        str(path.relative_to(EXAMPLES))
        for path in EXAMPLES.rglob("*.yaml")
        if "argocd" not in path.parts and path.name != "pools.yaml"
    }
    assert found == tested
