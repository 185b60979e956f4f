"""A node agent that is killed, and the next one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from spotinference.api.kinds import POD
from spotinference.clients.kube import Kube
from spotinference.devcluster import billing, images, network, topology
from spotinference.devcluster.agent import NodeAgent
from spotinference.devcluster.paths import ClusterPaths
from tests.support.eventually import eventually
from tests.support.nodes import Nodes, alive

SHAPE = """
pools:
  - {name: second, provider: generic, gpu: {count: 2}, bootDelay: 0, markets: [{zone: zone-x}]}
"""
NAME = "second-agent"
CHILD = (
    "import subprocess, time\n"
    "child = subprocess.Popen(['sleep', '600'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)\n"
)
ONE_GPU = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
PLACE = {
    "nodeSelector": topology.parse(SHAPE, "test").pools[0].node_selector(),
    "tolerations": [{"operator": "Exists"}],
}


async def run_agent(kubeconfig: Path, root: Path) -> None:
    """Runs an agent of a cluster of its own beside the session's: another name, other markets."""
    async with make_agent(kubeconfig, root) as agent:
        await agent.run()


@contextlib.asynccontextmanager
async def make_agent(kubeconfig: Path, root: Path) -> AsyncIterator[NodeAgent]:
    block = network.allocate(NAME)
    try:
        async with await Kube.connect(field_manager=NAME, kubeconfig=kubeconfig) as kube:
            yield NodeAgent(
                kube,
                ClusterPaths(NAME, root),
                topology.parse(SHAPE, "test"),
                images.table(),
                addresses=block.pods(),
                host_ip=f"{block.prefix}.0.1",
            )
    finally:
        block.release()


async def test_the_next_agent_ends_what_the_killed_one_left_and_restarts_its_pods(
    nodes: Nodes, ns: str, tmp_path: Path
) -> None:
    kubeconfig = Path(nodes.live.state.kubeconfig)
    log = tmp_path / "logs" / "pods" / f"{ns}_p_main_0.log"
    first = subprocess.Popen(  # noqa: ASYNC220 - starting does not wait
        [sys.executable, "-m", __name__, str(kubeconfig), str(tmp_path)],
        cwd=Path(__file__).parents[2],
    )
    try:
        for name, policy in (("p", "Always"), ("once", "Never")):
            spec = {**PLACE, "restartPolicy": policy}
            await nodes.pod(ns, name, script=CHILD, container=ONE_GPU, spec=spec)
            pod = await nodes.running(ns, name)
        child = int(await eventually(lambda: log.exists() and str(log.read_text()), 10))
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert alive(child)
    node = pod["spec"]["nodeName"]
    async with make_agent(kubeconfig, tmp_path) as second, asyncio.timeout(60):
        running = asyncio.create_task(second.run())
        await nodes.until(
            ns,
            "p",
            lambda pod: (
                pod["status"]["containerStatuses"][0]["restartCount"] == 1
                and pod["status"]["phase"] == "Running"
            ),
        )
        assert not alive(child)
        once = await nodes.until(ns, "once", lambda pod: pod["status"]["phase"] == "Failed")
        state = once["status"]["containerStatuses"][0]["state"]["terminated"]
        assert state["reason"] == "ContainerStatusUnknown"
        assert [n["name"] for n in second.status()["nodes"]] == [node]
        await second.reclaim(node, None)
        for name in ("p", "once"):
            await nodes.kube.delete(POD, name, ns, grace_s=0)
        running.cancel()
        await asyncio.wait([running])
    events = [e["event"] for e in billing.read(tmp_path / "nodes.jsonl") if e["node"] == node]
    assert events == ["launch", "ready", "end"], json.dumps(events)


if __name__ == "__main__":
    asyncio.run(run_agent(Path(sys.argv[1]), Path(sys.argv[2])))
