"""What core renders, held to a real API server: accepted as it is, and then no difference left."""

from __future__ import annotations

import pytest
import yaml

from spotinference.api.kinds import (
    DEPLOYMENT,
    JOB,
    NAMESPACE,
    NETWORK_POLICY,
    PDB,
    PVC,
    SERVICE,
    SERVICE_ACCOUNT,
)
from spotinference.core.diff import difference
from tests.golden.test_manifests import TIERS, rendered
from tests.support.cluster import LiveCluster

pytestmark = pytest.mark.cluster

KINDS = {k.kind: k for k in (DEPLOYMENT, JOB, NETWORK_POLICY, PDB, PVC, SERVICE, SERVICE_ACCOUNT)}


@pytest.mark.parametrize("name", sorted(TIERS))
async def test_an_applied_child_shows_no_difference_so_that_steady_state_writes_nothing(
    cluster: LiveCluster, name: str
) -> None:
    namespace = await cluster.namespace(f"core-{name}")
    for desired in yaml.safe_load_all(rendered(name)):
        desired["metadata"]["namespace"] = namespace
        live = await cluster.kube.apply(KINDS[desired["kind"]], desired)
        assert difference(desired, live) == "", desired["kind"]


@pytest.mark.parametrize("name", sorted(TIERS))
async def test_pods_pass_pod_security_restricted(cluster: LiveCluster, name: str) -> None:
    namespace = "core-restricted"
    labels = {"pod-security.kubernetes.io/warn": "restricted"}
    metadata = {"name": namespace, "labels": labels}
    await cluster.kube.apply(
        NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    )
    workloads = [
        b for b in yaml.safe_load_all(rendered(name)) if b["kind"] in {"Deployment", "Job"}
    ]
    for body in workloads:
        body["metadata"]["namespace"] = namespace
    text = yaml.safe_dump_all(workloads)
    code, out, err = await cluster.try_kubectl("apply", "--dry-run=server", "-f", "-", stdin=text)
    assert code == 0, err
    assert out.count("dry run") == len(workloads)
    assert "PodSecurity" not in err
    broken = text.replace("runAsNonRoot: true", "runAsNonRoot: false")
    _, _, err = await cluster.try_kubectl("apply", "--dry-run=server", "-f", "-", stdin=broken)
    assert "would violate PodSecurity" in err  # the check can fail
