"""The node agent as storage provisioner: volumes outlive pods and nodes."""

from __future__ import annotations

from pathlib import Path

from spotinference import errors
from spotinference.api.kinds import NODE, POD, PV, PVC, Json
from spotinference.core.observed import Market
from tests.support.eventually import eventually
from tests.support.nodes import Nodes

GKE_A = Market("gke", "zone-a")
APPEND = (
    "import sys, time\n"
    "with open(sys.argv[1] + '/log', 'a+') as f:\n"
    "    f.seek(0); print('found:', f.read(), flush=True); f.write(sys.argv[2])\n"
    "time.sleep(600)\n"
)


async def claim(
    nodes: Nodes, ns: str, storage_class: str, mode: str, annotations: dict[str, str] | None = None
) -> Json:
    body: Json = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "c", "namespace": ns, "annotations": annotations or {}},
        "spec": {
            "storageClassName": storage_class,
            "accessModes": [mode],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    return await nodes.kube.create(PVC, body)


async def user(nodes: Nodes, ns: str, name: str, market: Market, word: str) -> Json:
    """A pod that appends a word to a file on the claim, and says what it found there."""
    container = {"volumeMounts": [{"name": "v", "mountPath": "/cache"}]}
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]
    await nodes.pod(
        ns,
        name,
        market=market,
        script=APPEND,
        args=["/cache", word],
        container=container,
        spec={"volumes": volumes},
    )
    return await nodes.running(ns, name)


async def test_a_zonal_volume_survives_its_node_and_serves_the_next_pod_of_the_zone(
    nodes: Nodes, ns: str
) -> None:
    await claim(nodes, ns, "zonal", "ReadWriteOnce")
    first = await user(nodes, ns, "first", GKE_A, "one ")
    await nodes.says(first, "found:")
    bound = await nodes.bound(ns, "c")
    volume = await nodes.kube.get(PV, bound["spec"]["volumeName"])
    terms = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert terms[0]["matchExpressions"][0]["values"] == ["zone-a"]
    await nodes.live.reclaim(first["spec"]["nodeName"])
    await nodes.kube.delete(POD, "first", ns, grace_s=0)
    second = await user(nodes, ns, "second", GKE_A, "two ")
    assert second["spec"]["nodeName"] != first["spec"]["nodeName"]
    await nodes.says(second, "found: one")


async def test_a_zonal_volume_keeps_a_pod_out_of_other_zones(nodes: Nodes, ns: str) -> None:
    await claim(nodes, ns, "zonal", "ReadWriteOnce")
    await user(nodes, ns, "first", Market("cpu", "zone-a"), "one")
    await nodes.kube.delete(POD, "first", ns, grace_s=0)
    container = {"volumeMounts": [{"name": "v", "mountPath": "/cache"}]}
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]
    await nodes.pod(ns, "free", container=container, spec={"volumes": volumes})
    pod = await nodes.running(ns, "free")
    node = await nodes.kube.get(NODE, pod["spec"]["nodeName"])
    assert node["metadata"]["labels"]["topology.kubernetes.io/zone"] == "zone-a"


async def test_a_shared_volume_is_there_in_every_zone(nodes: Nodes, ns: str) -> None:
    await claim(nodes, ns, "shared", "ReadWriteMany")
    await nodes.bound(ns, "c")
    first = await user(nodes, ns, "first", GKE_A, "one ")
    await nodes.says(first, "found:")
    await nodes.kube.delete(POD, "first", ns)
    await nodes.gone(ns, "first")
    second = await user(nodes, ns, "second", Market("gke", "zone-b"), "two ")
    await nodes.says(second, "found: one")


async def test_a_claim_whose_chosen_node_is_gone_is_set_free(nodes: Nodes, ns: str) -> None:
    await claim(
        nodes,
        ns,
        "zonal",
        "ReadWriteOnce",
        {"volume.kubernetes.io/selected-node": "gke-zone-a-long-gone"},
    )

    async def free() -> bool:
        found = await nodes.kube.get(PVC, "c", ns)
        annotations = found["metadata"].get("annotations") or {}
        return "volume.kubernetes.io/selected-node" not in annotations

    await eventually(free, 10, "selected-node cleared")


async def test_a_deleted_claim_takes_volume_and_folder_with_it(nodes: Nodes, ns: str) -> None:
    await claim(nodes, ns, "shared", "ReadWriteMany")
    bound = await nodes.bound(ns, "c")
    volume = await nodes.kube.get(PV, bound["spec"]["volumeName"])
    folder = Path(volume["spec"]["hostPath"]["path"])
    assert folder.is_dir()
    await nodes.kube.delete(PVC, "c", ns)

    async def deleted() -> bool:
        try:
            await nodes.kube.get(PV, volume["metadata"]["name"])
        except errors.NotFound:
            return True
        return False

    await eventually(deleted, 30, "volume deleted")
    assert not folder.exists()
