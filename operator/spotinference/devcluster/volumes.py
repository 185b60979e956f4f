"""The dynamic provisioner: a volume is a folder that outlives pods and nodes.

Two storage classes: `zonal` (one zone, one node at a time, provisioned where the first pod is
scheduled) and `shared` (any node, provisioned at once). A volume whose claim is deleted goes with
its folder.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from spotinference import errors
from spotinference.api.kinds import PV, PVC, Json
from spotinference.api.names import ZONE_LABEL
from spotinference.clients.kube import Kube
from spotinference.clients.reflector import Key, key_of
from spotinference.devcluster.bootstrap import SHARED_PROVISIONER, ZONAL_PROVISIONER
from spotinference.devcluster.events import Events
from spotinference.devcluster.sources import Missing

log = structlog.get_logger(__name__)

STORAGE_PROVISIONER = "volume.kubernetes.io/storage-provisioner"
ZONAL_CLASS, SHARED_CLASS = "zonal", "shared"
PROVISIONERS = {ZONAL_CLASS: ZONAL_PROVISIONER, SHARED_CLASS: SHARED_PROVISIONER}
"""Storage class → provisioner, as bootstrap creates them."""
SELECTED_NODE = "volume.kubernetes.io/selected-node"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
RETRY_S = 1.0
ZoneOf = Callable[[str], str | None]
"""Node name → its zone; None when there is no such node (any more)."""


class Provisioner:
    """Fed with claims and volumes as they change; `run` does the work, event by event."""

    def __init__(self, kube: Kube, folder: Path, events: Events, zone_of: ZoneOf) -> None:
        self._kube = kube
        self._folder = folder
        self._events = events
        self._zone_of = zone_of
        self._claims: Mapping[Key, Json] = {}
        self._volumes: Mapping[Key, Json] = {}
        self._wake = asyncio.Event()

    def read_from(self, claims: Mapping[Key, Json], volumes: Mapping[Key, Json]) -> None:
        self._claims, self._volumes = claims, volumes

    def poke(self) -> None:
        """Something changed: a claim, a volume, a node."""
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._reconcile()
            except errors.Retryable as error:
                log.warning("volumes.retry", error=str(error))
                await asyncio.sleep(RETRY_S)
                self._wake.set()
            except Exception:  # one odd claim must not take the cluster down
                log.exception("volumes.failed")

    async def _reconcile(self) -> None:
        for claim in list(self._claims.values()):
            if _is_ours(claim) and not claim["spec"].get("volumeName"):
                await self._provision(claim)
        for volume in list(self._volumes.values()):
            if _released(volume):
                await self._reclaim(volume)

    async def _provision(self, claim: Json) -> None:
        meta = claim["metadata"]
        name = f"pvc-{meta['uid']}"
        if meta.get("deletionTimestamp") or ("", name) in self._volumes:
            return
        zone: str | None = None
        if _provisioner(claim) == ZONAL_PROVISIONER:
            node = (meta.get("annotations") or {}).get(SELECTED_NODE)
            if node is None:
                return
            zone = self._zone_of(node)
            if zone is None:
                await self._deselect(claim)
                return
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            await self._kube.create(PV, _volume(name, claim, folder, zone))
        except errors.Conflict:
            return
        self._events.normal(claim, "ProvisioningSucceeded", f"Provisioned volume {name}")

    async def _deselect(self, claim: Json) -> None:
        """The chosen node is gone: the scheduler must choose again, or the claim is stuck."""
        meta = claim["metadata"]
        patch = {
            "metadata": {
                "resourceVersion": meta["resourceVersion"],
                "annotations": {SELECTED_NODE: None},
            }
        }
        try:
            await self._kube.merge_patch(PVC, meta["name"], meta["namespace"], patch)
        except (errors.Conflict, errors.NotFound):
            return  # it changed: the change brings us here again
        self._events.warning(claim, "ProvisioningFailed", "the selected node is gone; rescheduling")

    async def _reclaim(self, volume: Json) -> None:
        meta = volume["metadata"]
        folder = Path(volume["spec"]["hostPath"]["path"])
        if folder.parent == self._folder:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        await self._kube.delete(PV, meta["name"], uid=meta["uid"])

    async def claim_folder(self, namespace: str, claim: str) -> Path:
        """The folder of a bound claim; `Missing` while it is not bound."""
        found = self._claims.get((namespace, claim))
        if found is None or not found["spec"].get("volumeName"):
            try:  # our copy may be older than the pod
                found = await self._kube.get(PVC, claim, namespace)
            except errors.NotFound:
                raise Missing(f'persistentvolumeclaim "{claim}" not found') from None
        name = found["spec"].get("volumeName")
        if not name:
            raise Missing(f'persistentvolumeclaim "{claim}" is not bound')
        volume = self._volumes.get(("", name)) or await self._kube.get(PV, name)
        if "hostPath" not in volume["spec"]:
            raise Missing(f"volume {name} was not made by the embedded cluster")
        return Path(volume["spec"]["hostPath"]["path"])

    def node_terms(self, pod: Json) -> tuple[Json, ...]:
        """Where the pod's bound claims allow it to run: one entry of alternatives per volume."""
        terms: list[Json] = []
        for source in pod["spec"].get("volumes") or []:
            if "persistentVolumeClaim" not in source:
                continue
            key = (pod["metadata"]["namespace"], source["persistentVolumeClaim"]["claimName"])
            name = (self._claims.get(key) or {"spec": {}})["spec"].get("volumeName")
            affinity = (self._volumes.get(("", name or "")) or {"spec": {}})["spec"].get(
                "nodeAffinity"
            )
            if affinity:
                terms.append({"terms": affinity["required"]["nodeSelectorTerms"]})
        return tuple(terms)


def _provisioner(claim: Json) -> str | None:
    """Whose the claim is: the annotation that the controller-manager sets from its class.

    Our own classes are known by name, which saves waiting for the annotation.
    """
    annotations = claim["metadata"].get("annotations") or {}
    by_class = PROVISIONERS.get(claim["spec"].get("storageClassName") or "")
    return by_class or annotations.get(STORAGE_PROVISIONER)


def _is_ours(claim: Json) -> bool:
    return _provisioner(claim) in PROVISIONERS.values()


def _released(volume: Json) -> bool:
    return (
        (volume["metadata"].get("annotations") or {}).get(PROVISIONED_BY) in PROVISIONERS.values()
        and (volume.get("status") or {}).get("phase") == "Released"
        and volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
        and not volume["metadata"].get("deletionTimestamp")
    )


def _volume(name: str, claim: Json, folder: Path, zone: str | None) -> Json:
    namespace, claim_name = key_of(claim)
    spec: Json = {
        "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
        "accessModes": claim["spec"]["accessModes"],
        "persistentVolumeReclaimPolicy": "Delete",
        "storageClassName": claim["spec"]["storageClassName"],
        "volumeMode": "Filesystem",
        "hostPath": {"path": str(folder)},
        "claimRef": {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": namespace,
            "name": claim_name,
            "uid": claim["metadata"]["uid"],
        },
    }
    if zone is not None:
        expression = {"key": ZONE_LABEL, "operator": "In", "values": [zone]}
        spec["nodeAffinity"] = {
            "required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
        }
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "annotations": {PROVISIONED_BY: _provisioner(claim)},
        },
        "spec": spec,
    }
