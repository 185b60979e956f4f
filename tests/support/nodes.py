"""A cluster for tests of the node agent: every provider's nodes, quick boots, no operator.

`nodes` is the running cluster as a vocabulary: make a pod, wait for what becomes of it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from spotinference import errors
from spotinference.api.kinds import EVENT, NODE, POD, PVC, Json
from spotinference.core.observed import Market
from spotinference.devcluster import billing, topology
from tests.support.cluster import LiveCluster, Started, connect, start
from tests.support.eventually import eventually

TOPOLOGY = """
cpu: {capacity: 4, bootDelay: 100ms, idleAfter: 2s}
pools:
  - name: gke
    provider: gke
    bootDelay: 300ms
    idleAfter: 2s
    price: 1.0
    markets:
      - {zone: zone-a, capacity: 8}
      - {zone: zone-b, capacity: 2}
      - {zone: zone-empty, capacity: 0}
      - {zone: zone-slow, capacity: 1, bootDelay: 30s}
  - {name: eks, provider: eks, bootDelay: 0, idleAfter: 2s, markets: [{zone: zone-a}]}
  - {name: karpenter, provider: karpenter, bootDelay: 0, idleAfter: 2s, markets: [{zone: zone-a}]}
  - {name: nth, provider: nth, bootDelay: 0, idleAfter: 2s, markets: [{zone: zone-a}]}
  - {name: aks, provider: aks, bootDelay: 0, idleAfter: 2s, markets: [{zone: zone-a}]}
  - {name: plain, provider: generic, bootDelay: 0, idleAfter: 2s, markets: [{zone: zone-a}]}
"""
SHAPE = topology.parse(TOPOLOGY, "the agent tests' topology")
SLEEP = "import time; time.sleep(600)"
SERVE = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8000, bind='{ip}')"
"""Answers 200 on / and 404 elsewhere, on the pod's own address."""


class Nodes:
    """The cluster, in the words of these tests."""

    def __init__(self, live: LiveCluster) -> None:
        self.live = live
        self.kube = live.kube

    # --- given -----------------------------------------------------------------------------------

    async def pod(
        self,
        namespace: str,
        name: str = "p",
        *,
        market: Market | None = None,
        script: str = SLEEP,
        args: Sequence[str] = (),
        container: Json | None = None,
        spec: Json | None = None,
        create: bool = True,
    ) -> Json:
        """A pod that runs a Python script; with a GPU market it asks for a GPU there."""
        engine: Json = {
            "name": "main",
            "image": "python:3",
            "command": ["python", "-u", "-c", script],
            "args": list(args),
            **(container or {}),
        }
        body: Json = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 5,
                "containers": [engine],
                **(spec or {}),
            },
        }
        if market is not None:
            body["spec"] |= place(market)
        if market is not None and market.pool != "cpu":
            engine["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
        return await self.kube.create(POD, body) if create else body

    # --- then ------------------------------------------------------------------------------------

    async def get(self, namespace: str, name: str = "p") -> Json | None:
        try:
            return await self.kube.get(POD, name, namespace)
        except errors.NotFound:
            return None

    async def running(self, namespace: str, name: str = "p") -> Json:
        return await self.until(namespace, name, lambda pod: pod["status"]["phase"] == "Running")

    async def until(
        self, namespace: str, name: str, holds: Callable[[Json], bool], deadline_s: float = 30
    ) -> Json:
        """The pod, once it is as it should be; fails with its last status."""
        seen: list[Json | None] = [None]

        async def check() -> Json | None:
            seen[0] = await self.get(namespace, name)
            assert seen[0] is not None, f"pod {namespace}/{name} does not exist"
            try:
                good = holds(seen[0])
            except (KeyError, IndexError):
                good = False
            assert good, json.dumps(seen[0]["status"])  # whole: pytest shortens reprs
            return seen[0]

        return await eventually(check, deadline_s, f"pod {namespace}/{name}")

    async def gone(self, namespace: str, name: str = "p", deadline_s: float = 30) -> None:
        async def check() -> bool:
            return await self.get(namespace, name) is None

        await eventually(check, deadline_s, f"end of pod {namespace}/{name}")

    async def node_gone(self, name: str, deadline_s: float = 30) -> None:
        async def check() -> bool:
            try:
                await self.kube.get(NODE, name)
            except errors.NotFound:
                return True
            return False

        await eventually(check, deadline_s, f"end of node {name}")

    async def bound(self, namespace: str, claim: str) -> Json:
        async def check() -> Json | None:
            found = await self.kube.get(PVC, claim, namespace)
            return found if found.get("status", {}).get("phase") == "Bound" else None

        return await eventually(check, 30, f"claim {namespace}/{claim} bound")

    async def event(self, namespace: str, reason: str, text: str = "") -> Json:
        """An Event of that reason whose message has the text."""

        async def check() -> Json | None:
            events = (await self.kube.list(EVENT, namespace)).items
            matching = [e for e in events if e["reason"] == reason and text in e["message"]]
            assert matching, [(e["reason"], e["message"]) for e in events]
            return matching[0]

        return await eventually(check, 30, f"event {reason}")

    def log(self, pod: Json, container: str = "main", restart: int = 0) -> str:
        meta = pod["metadata"]
        name = f"{meta['namespace']}_{meta['name']}_{container}_{restart}.log"
        file = self.state_dir / "logs" / "pods" / name
        return file.read_text() if file.exists() else ""

    async def says(self, pod: Json, text: str, container: str = "main", restart: int = 0) -> None:
        """The container's log has the text."""
        await eventually(lambda: text in self.log(pod, container, restart), 30, f"log has {text!r}")

    def bill(self, node: str) -> list[str]:
        """The events of one node on the bill, in order."""
        path = self.state_dir / "nodes.jsonl"
        return [str(e["event"]) for e in billing.read(path) if e["node"] == node]

    @property
    def state_dir(self) -> Path:
        return Path(self.live.state.kubeconfig).parent

    async def status(self) -> Json:
        return await self.live.ask("status")


def place(market: Market) -> Json:
    """What makes a pod fit the nodes of one market."""
    if market.pool == "cpu":
        return {"nodeSelector": {"topology.kubernetes.io/zone": market.zone}}
    pool = SHAPE.pool(market.pool)
    return {
        "nodeSelector": {
            **pool.node_selector(),
            "topology.kubernetes.io/zone": market.zone,
        },
        "tolerations": pool.tolerations(),
    }


def container_state(pod: Json, kind: str) -> Json:
    """The first container's state of that kind; KeyError when it is in another."""
    state: Json = pod["status"]["containerStatuses"][0]["state"][kind]
    return state


def condition(obj: Json, kind: str) -> Json | None:
    found = [c for c in obj["status"].get("conditions", []) if c["type"] == kind]
    return found[0] if found else None


def is_ready(pod: Json) -> bool:
    ready = condition(pod, "Ready")
    return ready is not None and ready["status"] == "True"


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="session")
def nodes_process(cluster_home: Path) -> Iterator[Started]:
    """The session's cluster for tests of the node agent."""
    started = start(SHAPE, operator=False, gateway=False)
    yield started
    started.stop()


@pytest.fixture
async def nodes(nodes_process: Started) -> AsyncIterator[Nodes]:
    async with connect(nodes_process) as live:
        yield Nodes(live)


@pytest.fixture
async def ns(nodes: Nodes, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A namespace of the test's own; its pods go with the test, so that others find capacity."""
    name = request.node.name.replace("_", "-").replace("[", "-").replace("]", "")
    namespace = f"n-{name.removeprefix('test-')[:50].strip('-')}".lower()
    yield await nodes.live.namespace(namespace)
    for pod in (await nodes.kube.list(POD, namespace)).items:
        await nodes.kube.delete(POD, pod["metadata"]["name"], namespace, grace_s=0)
