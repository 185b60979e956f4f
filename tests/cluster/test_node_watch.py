"""node-watch as a process: from a cloud's metadata service to a replica that is replaced."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spotinference.api import names, times
from spotinference.api.kinds import NODE, POD
from spotinference.core.notices import condition
from spotinference.core.providers import INTERRUPTION
from tests.cluster.operators import drop_tier, engines, make_tier, phase, replicas
from tests.support.cluster import LiveCluster
from tests.support.eventually import eventually
from tests.support.metadata import Ec2

pytestmark = pytest.mark.cluster


@contextlib.contextmanager
def node_watch(
    cluster: LiveCluster, node: str, url: str, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "spotinference", "node-watch", "--node", node]
    argv += ["--provider", "aws", "--metadata-url", url]
    argv += ["--kubeconfig", str(cluster.paths.kubeconfig)]
    with log.open("ab") as stderr:
        process = subprocess.Popen(argv, stderr=stderr, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(15)


@pytest.mark.fault(36)
async def test_what_the_metadata_announces_moves_the_replica_and_outlives_a_restart(
    cluster: LiveCluster, tmp_path: Path
) -> None:
    ns = await cluster.namespace("node-watch")
    await make_tier(cluster, "told", ns, scaling={"minReplicas": 1, "maxReplicas": 2})
    await phase(cluster, "told", ns, "Ready", 90)
    (before,) = await replicas(cluster, "told", ns)
    (pod,) = await engines(cluster, "told", ns)
    node, log = pod["spec"]["nodeName"], tmp_path / "log"
    ends = (datetime.now(UTC) + timedelta(seconds=300)).replace(microsecond=0)
    cloud = Ec2()

    async def doomed() -> str | None:
        live = await cluster.kube.get(POD, pod["metadata"]["name"], ns)
        said: str | None = (
            live["metadata"].get("annotations", {}).get(names.ANNOTATION_DOOMED_UNTIL)
        )
        return said

    async def moved() -> bool:
        now = await replicas(cluster, "told", ns)
        assert set(now) - {before}, now
        return True

    async def started() -> bool:
        assert any("instance-action" in ask for ask in cloud.asked), log.read_text()
        return True

    async with cloud.serving() as url:
        with node_watch(cluster, node, url, log):
            await eventually(started, 60, "node-watch asks")
            assert condition(await cluster.kube.get(NODE, node), INTERRUPTION) is None
            cloud.action = {"action": "terminate", "time": times.to_text(ends)}
            await eventually(moved, 20, "the replacement is asked for")
            assert times.parse(await eventually(doomed, 20, "the pod is doomed")) == ends
        live = await cluster.kube.get(NODE, node)
        shown = condition(live, INTERRUPTION)
        assert live["spec"]["unschedulable"] is True, "nothing new is to start there"
        cloud.asked.clear()
        with node_watch(cluster, node, url, log):
            await eventually(started, 60, "the new node-watch asks")
            cloud.fault = 500
            cloud.asked.clear()
            await eventually(lambda: len(cloud.asked) >= 2, 30, "it asks on")
            assert condition(await cluster.kube.get(NODE, node), INTERRUPTION) == shown
    await cluster.reclaim(node)
    await drop_tier(cluster, "told", ns)
