"""One simulated node: its Node object, its heartbeats, the signs on it, its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from spotinference import errors
from spotinference.api import times
from spotinference.api.kinds import LEASE, NODE, Json
from spotinference.clients.clock import Clock
from spotinference.clients.kube import Kube
from spotinference.core.observed import Market
from spotinference.devcluster.containerstate import Timing
from spotinference.devcluster.events import Events
from spotinference.devcluster.market import HOSTNAME_LABEL, Offer
from spotinference.devcluster.notice import Signs

log = structlog.get_logger(__name__)

LEASE_NAMESPACE = "kube-node-lease"
LEASE_SECONDS = 40
KUBELET_VERSION = "v1.36.3"
PROVIDER_ID = "spotinference"
WRITE_ATTEMPTS = 20
WRITE_RETRY_S = 0.3
SHUTDOWN_MESSAGE = "node is shutting down"


@dataclass(frozen=True, slots=True)
class NodeContext:
    kube: Kube
    clock: Clock
    timing: Timing
    events: Events
    cluster: str
    host_ip: str


class SimNode:
    """A node that exists in the API (after `register`)."""

    def __init__(self, name: str, offer: Offer, context: NodeContext) -> None:
        self.name = name
        self.offer = offer
        self.notice_deadline: datetime | None = None
        self.silent = False
        self.leaving = False
        self._context = context
        self._ready = True
        self._ready_changed_at = context.clock.now()
        self._uid = ""

    @property
    def market(self) -> Market:
        return self.offer.market

    async def register(self) -> None:
        """Creates the Node object, ready at once, and its Lease; adopts one of the same name."""
        body = self._object()
        try:
            created = await self._context.kube.create(NODE, body)
        except errors.Conflict:
            created = await self._context.kube.get(NODE, self.name)
            await self._write_status()
        self._uid = created["metadata"]["uid"]
        await self._renew()

    async def beat(self) -> None:
        """Heartbeats until cancelled: the Lease each time, the status now and then (kubelet)."""
        timing = self._context.timing
        loop = asyncio.get_running_loop()
        status_at = loop.time() + timing.status_heartbeat_s
        while True:
            await asyncio.sleep(timing.heartbeat_s)
            if self.silent:
                return
            try:
                await self._renew()
                if loop.time() >= status_at:
                    await self._write_status()
                    status_at = loop.time() + timing.status_heartbeat_s
            except errors.SpotinferenceError as error:
                log.warning("node.heartbeat_failed", node=self.name, error=str(error))

    async def show(self, signs: Signs, deadline: datetime) -> None:
        """Puts the provider's signs of a coming reclaim on the node."""
        self.notice_deadline = deadline
        if signs.shutting_down:
            self._ready = False
            self._ready_changed_at = self._context.clock.now()
            await self._write_status()
        if signs.taints or signs.annotations or signs.cordon:
            await self._edit(lambda node: _with_signs(node, signs))
        if signs.event is not None:
            self._context.events.warning(self.reference(), *signs.event)

    async def taint(self, key: str) -> None:
        """Adds a NoSchedule taint: nothing new comes here."""
        taint = {"key": key, "effect": "NoSchedule"}
        await self._edit(lambda node: _with_signs(node, Signs(taints=(taint,))))

    async def untaint(self, key: str) -> None:
        await self._edit(
            lambda node: {
                "spec": {"taints": [t for t in _taints(node) if t["key"] != key]},
            }
        )

    async def delete(self) -> None:
        """Removes the Node object and its Lease."""
        for attempt in range(WRITE_ATTEMPTS):
            try:
                await self._context.kube.delete(NODE, self.name, grace_s=0)
                await self._context.kube.delete(LEASE, self.name, LEASE_NAMESPACE)
            except errors.Retryable as error:
                log.warning("node.delete_retry", node=self.name, error=str(error))
                await asyncio.sleep(WRITE_RETRY_S * (attempt + 1))  # a minute in all
            else:
                return

    def reference(self) -> Json:
        return {
            "kind": "Node",
            "apiVersion": "v1",
            "metadata": {"name": self.name, "uid": self.name},
        }

    # --- writes ----------------------------------------------------------------------------------

    async def _edit(self, change: Callable[[Json], Json]) -> None:
        """Reads, changes, writes with a precondition: taints have other writers too."""
        for _ in range(WRITE_ATTEMPTS):
            try:
                node = await self._context.kube.get(NODE, self.name)
                patch = change(node)
                patch["metadata"] = {
                    **patch.get("metadata", {}),
                    "resourceVersion": node["metadata"]["resourceVersion"],
                }
                await self._context.kube.merge_patch(NODE, self.name, None, patch)
            except errors.NotFound:
                return
            except errors.Retryable:
                await asyncio.sleep(WRITE_RETRY_S)
            else:
                return

    async def _write_status(self) -> None:
        status = {"conditions": self._conditions()}
        body: Json = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name},
            "status": status,
        }
        await self._context.kube.apply(NODE, body, subresource="status")

    async def _renew(self) -> None:
        now = times.to_micro_text(self._context.clock.now())
        spec = {
            "holderIdentity": self.name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": now,
        }
        try:
            await self._context.kube.merge_patch(LEASE, self.name, LEASE_NAMESPACE, {"spec": spec})
        except errors.NotFound:
            owner = {"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": self._uid}
            await self._context.kube.create(
                LEASE,
                {
                    "apiVersion": LEASE.api_version,
                    "kind": "Lease",
                    "metadata": {
                        "name": self.name,
                        "namespace": LEASE_NAMESPACE,
                        "ownerReferences": [owner],
                    },
                    "spec": spec,
                },
            )

    def _conditions(self) -> list[Json]:
        now = times.to_text(self._context.clock.now())
        pressures = [
            {
                "type": kind,
                "status": "False",
                "reason": reason,
                "message": "kubelet has sufficient resources available",
                "lastHeartbeatTime": now,
            }
            for kind, reason in (
                ("MemoryPressure", "KubeletHasSufficientMemory"),
                ("DiskPressure", "KubeletHasNoDiskPressure"),
                ("PIDPressure", "KubeletHasSufficientPID"),
            )
        ]
        ready = {
            "type": "Ready",
            "status": "True" if self._ready else "False",
            "reason": "KubeletReady" if self._ready else "KubeletNotReady",
            "message": "kubelet is posting ready status" if self._ready else SHUTDOWN_MESSAGE,
            "lastHeartbeatTime": now,
            "lastTransitionTime": times.to_text(self._ready_changed_at),
        }
        return [*pressures, ready]

    def _object(self) -> Json:
        offer, context = self.offer, self._context
        amounts = {
            name: str(int(amount)) if amount == int(amount) else str(amount)
            for name, amount in offer.room.items()
        }
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {**offer.labels, HOSTNAME_LABEL: self.name},
            },
            "spec": {
                "providerID": provider_id(context.cluster, offer.market, self.name),
                "taints": list(offer.taints),
            },
            "status": {
                "capacity": amounts,
                "allocatable": amounts,
                "conditions": self._conditions(),
                "addresses": [
                    {"type": "InternalIP", "address": context.host_ip},
                    {"type": "Hostname", "address": self.name},
                ],
                "nodeInfo": {
                    "machineID": "",
                    "systemUUID": "",
                    "bootID": "",
                    "kernelVersion": "",
                    "osImage": "spotinference embedded cluster",
                    "containerRuntimeVersion": "process://1",
                    "kubeletVersion": KUBELET_VERSION,
                    "kubeProxyVersion": "",
                    "operatingSystem": "linux",
                    "architecture": "amd64",
                },
            },
        }


def provider_id(cluster: str, market: Market, node: str) -> str:
    return f"{PROVIDER_ID}://{cluster}/{market.pool}/{market.zone}/{node}"


def market_of(node: Json, cluster: str) -> Market | None:
    """The market of one of this cluster's nodes; None for anybody else's."""
    prefix = f"{PROVIDER_ID}://{cluster}/"
    identity = str(node["spec"].get("providerID", ""))
    if not identity.startswith(prefix):
        return None
    pool, zone, _ = identity.removeprefix(prefix).split("/")
    return Market(pool, zone)


def _taints(node: Json) -> list[Json]:
    return list(node["spec"].get("taints") or [])


def _with_signs(node: Json, signs: Signs) -> Json:
    present = {taint["key"] for taint in signs.taints}
    taints = [t for t in _taints(node) if t["key"] not in present] + list(signs.taints)
    patch: Json = {"spec": {"taints": taints}}
    if signs.cordon:
        patch["spec"]["unschedulable"] = True
    if signs.annotations:
        patch["metadata"] = {"annotations": dict(signs.annotations)}
    return patch
