"""A recorded market played in the embedded cluster: nodes go and may come as the trace says."""

from __future__ import annotations

import json
from pathlib import Path

from spotinference.api.kinds import NODE, POD, Json
from tests.support.cluster import MakeCluster, spotinference
from tests.support.eventually import eventually

SHAPE = """
pools:
  - name: spot
    provider: generic
    bootDelay: 0s
    idleAfter: 600s
    markets: [{zone: zone-a, capacity: 2}, {zone: zone-b, capacity: 0}]
"""


def gpu_pod(name: str) -> Json:
    limits = {"nvidia.com/gpu": "1"}
    container = {
        "name": "main",
        "image": "busybox:1",
        "command": ["sleep", "1000"],
        "resources": {"limits": limits},
    }
    spec = {
        "containers": [container],
        "terminationGracePeriodSeconds": 1,
        "tolerations": [{"operator": "Exists"}],
    }
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


async def test_a_trace_takes_the_surplus_and_gives_capacity_elsewhere(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    live = await make_cluster(SHAPE, operator=False, gateway=False)
    for name in ("one", "two"):
        await live.kube.create(POD, gpu_pod(name))

    async def both() -> bool:
        pods = [await live.kube.get(POD, name, "default") for name in ("one", "two")]
        return len({pod["spec"].get("nodeName") for pod in pods} - {None}) == 2

    await eventually(both, 30, "two pods have a node each")
    for zone, data in (("zone-a", [2, 1]), ("zone-b", [0, 3])):
        body = {"metadata": {"gap_seconds": 60}, "data": data}
        (tmp_path / f"{zone}.json").write_text(json.dumps(body))
    played = spotinference(
        "dev", "trace", "play", f"spot/zone-a={tmp_path}/zone-a.json", str(tmp_path / "zone-b.json"),
        "--name", live.name, "--speed", "120",
    )  # fmt: skip
    assert played.returncode == 0, played.stderr
    assert "1 nodes taken" in played.stderr
    (left,) = await live.gpu_nodes()
    markets = {m["zone"]: m for m in (await live.ask("status"))["markets"] if m["pool"] == "spot"}
    assert (markets["zone-a"]["capacity"], markets["zone-a"]["nodes"]) == (1, 1)
    assert markets["zone-b"]["capacity"] == 3
    await live.kube.create(POD, gpu_pod("three"))

    async def third() -> bool:
        return {
            n["metadata"]["labels"]["topology.kubernetes.io/zone"] for n in await live.gpu_nodes()
        } == {"zone-a", "zone-b"}

    await eventually(third, 30, "the third pod gets a node where there is capacity")
    assert left["metadata"]["name"] in {
        n["metadata"]["name"] for n in (await live.kube.list(NODE)).items
    }


async def test_a_cluster_that_does_not_run_is_named(tmp_path: Path) -> None:
    done = spotinference("dev", "trace", "play", "a.json", "--name", "nowhere")
    assert done.returncode == 1
    assert "spotinference dev up --name nowhere" in done.stderr
