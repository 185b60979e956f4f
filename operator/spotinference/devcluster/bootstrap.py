"""Fills a fresh API server: resources, identities with their rights, storage, pools, an API key.

Everything is applied as admin with one field manager and may be applied again. Operator and
gateway get ServiceAccounts, the chart's own rules and tokens of their own; never more.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

import yaml

from spotinference import assets, errors
from spotinference.api import keys
from spotinference.api.kinds import (
    CLUSTER_ROLE,
    CLUSTER_ROLE_BINDING,
    CRD,
    GROUP,
    NAMESPACE,
    POOL,
    ROLE,
    ROLE_BINDING,
    SERVICE_ACCOUNT,
    STORAGE_CLASS,
    Json,
    Kind,
)
from spotinference.clients.kube import Kube
from spotinference.devcluster import kubeconfig
from spotinference.devcluster.paths import ClusterPaths
from spotinference.devcluster.state import write_private
from spotinference.devcluster.topology import PoolTopology, Topology

SYSTEM_NAMESPACE = "spotinference"
TENANT_NAMESPACE = "default"
"""What the cluster's own API key opens."""
OPERATOR, GATEWAY = "spotinference-operator", "spotinference-gateway"
TOKEN_LIFETIME_S = 365 * 24 * 3600
CRD_DEADLINE_S = 30.0
POLL_S = 0.05

ZONAL_PROVISIONER = f"{GROUP}/zonal"
SHARED_PROVISIONER = f"{GROUP}/shared"


async def resources(kube: Kube, topology: Topology) -> None:
    """CRDs, namespace, roles, bindings, storage classes and pools; returns when CRDs serve."""
    crds = [yaml.safe_load(file.read_text()) for file in sorted(assets.find("crds").glob("*.yaml"))]
    await asyncio.gather(
        kube.apply(NAMESPACE, _object(NAMESPACE.api_version, "Namespace", SYSTEM_NAMESPACE)),
        *(kube.apply(CRD, crd) for crd in crds),
        *(kube.apply(STORAGE_CLASS, body) for body in storage_classes()),
    )
    await asyncio.gather(*(_identity(kube, name) for name in (OPERATOR, GATEWAY)))
    for crd in crds:
        await _established(kube, crd["metadata"]["name"])
    for pool in topology.pools:
        if pool.publish:
            await _apply_pool(kube, gpu_pool(pool))


async def credentials(kube: Kube, paths: ClusterPaths, server: str, ca: Path) -> None:
    """Kubeconfigs of operator and gateway, each with its own ServiceAccount's token."""
    files = {OPERATOR: paths.operator_kubeconfig, GATEWAY: paths.gateway_kubeconfig}
    for account, file in files.items():
        request: Json = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"name": account, "namespace": SYSTEM_NAMESPACE},
            "spec": {"expirationSeconds": TOKEN_LIFETIME_S},
        }
        answer = await kube.create(SERVICE_ACCOUNT, request, subresource="token")
        token = answer["status"]["token"]
        kubeconfig.with_token(file, paths.name, server, ca, token, SYSTEM_NAMESPACE)


def api_key(paths: ClusterPaths) -> str:
    """Writes the gateway's key file with one new key, and returns that key."""
    secret = keys.KEY_PREFIX + secrets.token_urlsafe(32)
    entry = keys.ApiKey(id="dev", sha256=keys.digest(secret), namespace=TENANT_NAMESPACE)
    write_private(paths.keys_file, keys.KeyFile(keys=[entry]).text() + "\n")
    return secret


def storage_classes() -> list[Json]:
    """`shared`: RWX, everywhere. `zonal`: RWO, where its first pod starts. The agent provisions.

    `shared` is the default, because a tier that says nothing about its cache asks for RWX.
    """
    shared = _object(STORAGE_CLASS.api_version, "StorageClass", "shared")
    shared["metadata"]["annotations"] = {"storageclass.kubernetes.io/is-default-class": "true"}
    shared |= {
        "provisioner": SHARED_PROVISIONER,
        "volumeBindingMode": "Immediate",
        "reclaimPolicy": "Delete",
    }
    zonal = _object(STORAGE_CLASS.api_version, "StorageClass", "zonal")
    zonal |= {
        "provisioner": ZONAL_PROVISIONER,
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
    }
    return [shared, zonal]


def gpu_pool(pool: PoolTopology) -> Json:
    """The `GPUPool` by which tiers name this pool's nodes."""
    body = _object(POOL.api_version, POOL.kind, pool.name)
    body["spec"] = {
        "capacityType": pool.capacity_type,
        "provider": pool.provider,
        "nodeSelector": pool.node_selector(),
        "tolerations": pool.tolerations(),
        "zones": pool.zones,
        "noticeSeconds": round(pool.notice),
        "refusalAfter": "60s",  # nodes boot in seconds here, not in minutes
    }
    if pool.price:
        body["spec"]["price"] = {"microUSDPerHour": round(pool.price * 1_000_000)}
    return body


async def _identity(kube: Kube, name: str) -> None:
    """A ServiceAccount bound to the rules that the chart gives it: in the cluster, at home."""
    part = name.removeprefix("spotinference-")
    account = _object("v1", "ServiceAccount", name)
    account["metadata"]["namespace"] = SYSTEM_NAMESPACE
    await kube.apply(SERVICE_ACCOUNT, account)
    await _grant(kube, name, f"{part}-rules.yaml", CLUSTER_ROLE, CLUSTER_ROLE_BINDING)
    await _grant(kube, name, f"{part}-namespace-rules.yaml", ROLE, ROLE_BINDING)


async def _grant(kube: Kube, name: str, rules: str, role_kind: Kind, binding_kind: Kind) -> None:
    role = _object(role_kind.api_version, role_kind.kind, name)
    file = assets.find(f"charts/spotinference/files/{rules}")
    role["rules"] = yaml.safe_load(file.read_text())
    binding = _object(binding_kind.api_version, binding_kind.kind, name)
    binding |= {
        "roleRef": {
            "apiGroup": role_kind.group,
            "kind": role_kind.kind,
            "name": name,
        },
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": SYSTEM_NAMESPACE}],
    }
    for kind, body in ((role_kind, role), (binding_kind, binding)):
        if kind.namespaced:
            body["metadata"]["namespace"] = SYSTEM_NAMESPACE
        await kube.apply(kind, body)


async def _established(kube: Kube, name: str) -> None:
    until = time.monotonic() + CRD_DEADLINE_S
    while time.monotonic() < until:
        conditions = (await kube.get(CRD, name)).get("status", {}).get("conditions") or []
        by_type = {condition["type"]: condition for condition in conditions}
        if by_type.get("Established", {}).get("status") == "True":
            return
        refused = by_type.get("NamesAccepted", {})
        if refused.get("status") == "False":
            raise errors.ConfigInvalid(f"CRD {name} is refused: {refused.get('message')}")
        await asyncio.sleep(POLL_S)
    raise errors.ApiUnavailable(f"CRD {name} is not established after {CRD_DEADLINE_S:.0f} s")


async def _apply_pool(kube: Kube, body: Json) -> None:
    """An established CRD may still answer 404 for a moment."""
    until = time.monotonic() + CRD_DEADLINE_S
    while True:
        try:
            await kube.apply(POOL, body)
        except errors.NotFound:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(POLL_S)
        else:
            return


def _object(api_version: str, kind: str, name: str) -> Json:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}}
