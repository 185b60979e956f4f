"""RBAC of the embedded cluster is on: operator and gateway have their own rights and no more."""

from __future__ import annotations

import pytest

from spotinference import errors
from spotinference.api.kinds import DEPLOYMENT, LEASE, POD, SECRET, TIER
from spotinference.clients.kube import Kube
from tests.support.cluster import LiveCluster
from tests.support.eventually import eventually

pytestmark = pytest.mark.cluster

POD_BODY = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "intruder", "namespace": "default"},
    "spec": {"containers": [{"name": "a", "image": "busybox"}]},
}


async def test_the_gateway_sees_tiers_but_creates_no_pod_and_reads_no_secret(
    cluster: LiveCluster,
) -> None:
    path = cluster.paths.gateway_kubeconfig
    async with await Kube.connect(field_manager="test", kubeconfig=path) as gateway:
        await gateway.list(TIER)
        with pytest.raises(errors.Forbidden, match="cannot create resource"):
            await gateway.create(POD, POD_BODY)
        with pytest.raises(errors.Forbidden, match="cannot list resource"):
            await gateway.list(SECRET, "default")
        assert not await gateway.allowed("patch", DEPLOYMENT, "default")


async def test_the_operator_writes_deployments_but_reads_no_secret(cluster: LiveCluster) -> None:
    path = cluster.paths.operator_kubeconfig
    async with await Kube.connect(field_manager="test", kubeconfig=path) as operator:
        assert await operator.allowed("patch", DEPLOYMENT, "default")
        assert await operator.allowed("create", LEASE, "spotinference")
        with pytest.raises(errors.Forbidden, match="cannot list resource"):
            await operator.list(SECRET, "default")


async def test_files_with_keys_and_tokens_are_for_this_user_only(cluster: LiveCluster) -> None:
    where = cluster.paths
    files = [
        where.state_file,
        where.keys_file,
        where.kubeconfig,
        where.operator_kubeconfig,
        where.gateway_kubeconfig,
        *where.pki.iterdir(),
    ]
    assert [file for file in files if file.stat().st_mode & 0o077] == []
    assert where.root.stat().st_mode & 0o077 == 0


async def test_the_audit_log_says_who_wrote_what(cluster: LiveCluster) -> None:
    mark = cluster.mark()
    await cluster.namespace("audited")
    path = cluster.paths.operator_kubeconfig
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "audited", "namespace": "spotinference"},
    }
    async with await Kube.connect(field_manager="test", kubeconfig=path) as operator:
        await operator.create(LEASE, lease)

    def both_writes() -> bool:
        by_user = {
            (r.user, r.resource, r.name, r.code) for r in cluster.audit(mark) if r.name == "audited"
        }
        assert by_user == {
            ("spotinference-admin", "namespaces", "audited", 201),
            ("operator", "leases", "audited", 201),
        }
        return True

    await eventually(both_writes, 10, "both writes are in the audit log")
    assert cluster.audit(mark, user="gateway") == []
