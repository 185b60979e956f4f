"""Pytest fixtures: a running embedded cluster with the sim engine.

    async def test_…(cluster: LiveCluster) -> None:        # one per test session, shared
    async def test_…(make_cluster: MakeCluster) -> None:   # own ones: await make_cluster(topology)

Each pytest process has clusters of its own names (so xdist workers and parallel runs do not
meet); what a crashed run left is removed by the next one. Request them through
`pytest_plugins = ["tests.support.cluster"]` in the top conftest.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from spotinference.api.kinds import NAMESPACE, Json
from spotinference.clients.kube import Kube
from spotinference.devcluster import launch, paths, state, supervisor, topology
from spotinference.devcluster.handle import ClusterHandle
from spotinference.devcluster.progress import Progress

KUBECTL_TIMEOUT_S = 60.0
MUTATING = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Request:
    """One mutating request, from the API server's audit log."""

    user: str
    """`operator`, `gateway`, or the Kubernetes user name."""
    verb: str
    resource: str
    """`deployments`, `inferencetiers/status`, …"""
    namespace: str
    name: str
    code: int
    at: str


class LiveCluster(ClusterHandle):
    """A running cluster as a test sees it; admin through `kube`."""

    async def ask(self, action: str, **body: object) -> Json:
        """A command of the supervisor's control API."""
        return await supervisor.control(
            self.state.control_url, self.state.control_token, action, **body
        )

    async def reclaim(self, node: str, notice: str | None = None) -> None:
        """The provider takes the node: at once, or after a notice such as `30s`."""
        seconds = None if notice is None else float(notice.removesuffix("s"))
        await self.ask("reclaim", node=node, notice=seconds)

    async def set_capacity(self, pool: str, zone: str, capacity: int) -> None:
        await self.ask("market", pool=pool, zone=zone, capacity=capacity)

    async def process(self, name: str, do: str) -> None:
        """`operator|gateway|apiserver|…`, start|stop|restart|kill (stays down)|crash (returns)."""
        await self.ask("process", name=name, do=do)

    async def kill_operator(self) -> None:
        """SIGKILL; it stays down until `restart_operator`."""
        await self.process("operator", "kill")

    async def restart_operator(self) -> None:
        """Returns when it is ready again."""
        await self.process("operator", "restart")

    def mark(self) -> int:
        """A position in the audit log, for `audit`."""
        return self.audit_mark()

    def audit(self, mark: int = 0, *, user: str | None = None) -> list[Request]:
        """Mutating requests since the mark, in order. The log is a moment behind the answers."""
        with Path(self.state.audit_log).open("rb") as log:
            log.seek(mark)
            lines = log.read().splitlines()
        found = [
            _request(event)
            for event in (json.loads(line) for line in lines if line.endswith(b"}"))
            if event["verb"] in MUTATING
            and event.get("stage") == "ResponseComplete"
            and event.get("objectRef", {}).get("resource", "").startswith("selfsubject") is False
        ]
        return [request for request in found if user in {None, request.user}]

    async def namespace(self, name: str) -> str:
        """Creates a namespace; tests that share the cluster keep apart by it."""
        await self.kube.apply(
            NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        )
        return name

    async def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Output of kubectl as admin; AssertionError with its stderr when it fails."""
        code, out, err = await self.try_kubectl(*arguments, stdin=stdin)
        assert code == 0, f"kubectl {' '.join(arguments)}: {err}"
        return out

    async def try_kubectl(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        """Exit code, stdout and stderr of kubectl as admin."""
        process = await asyncio.create_subprocess_exec(
            launch.kubectl_program(),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "KUBECONFIG": self.state.kubeconfig},
        )
        async with asyncio.timeout(KUBECTL_TIMEOUT_S):
            out, err = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


def _request(event: Json) -> Request:
    ref = event.get("objectRef", {})
    sub = ref.get("subresource")
    return Request(
        user=event["user"]["username"].removeprefix(
            "system:serviceaccount:spotinference:spotinference-"
        ),
        verb=event["verb"],
        resource=ref.get("resource", "") + (f"/{sub}" if sub else ""),
        namespace=ref.get("namespace", ""),
        name=ref.get("name", ""),
        code=int(event.get("responseStatus", {}).get("code", 0)),
        at=event["requestReceivedTimestamp"],
    )


@dataclass(slots=True)
class Started:
    """A supervisor that this pytest process started."""

    paths: paths.ClusterPaths
    supervisor: subprocess.Popen[bytes]

    def stop(self) -> None:
        launch.stop(self.supervisor)
        if not os.environ.get("SPOTINFERENCE_KEEP_TEST_CLUSTERS"):
            launch.down(self.paths, keep=False)


def start(
    shape: topology.Topology | None = None,
    *,
    operator: bool = True,
    gateway: bool = True,
    name: str | None = None,
) -> Started:
    """Starts a cluster with the sim engine; it ends with this process at the latest."""
    where = paths.cluster(name or f"t{os.getpid()}-{next(_numbers)}")
    request = launch.Request(
        paths=where,
        engine="sim",
        topology=shape or topology.default(),
        operator=operator,
        gateway=gateway,
    )
    with Progress() as progress:
        process, _ = launch.start(request, progress, bound_to_us=True)
    return Started(where, process)


@contextlib.asynccontextmanager
async def connect(started: Started) -> AsyncIterator[LiveCluster]:
    """The cluster seen from the running event loop."""
    found = state.load(started.paths)
    assert found is not None
    async with await Kube.connect(
        field_manager="test", kubeconfig=started.paths.kubeconfig
    ) as kube:
        yield LiveCluster(found.name, found, kube)


@pytest.fixture(scope="session")
def cluster_home() -> Iterator[Path]:
    """Where test clusters keep their state; first removes what a crashed run left there."""
    home = Path(tempfile.gettempdir()) / f"spotinference-tests-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(home))
        for left in paths.existing():
            if not state.is_running(left):
                launch.down(left, keep=False)
        yield home


@pytest.fixture(scope="session")
def cluster_process(cluster_home: Path) -> Iterator[Started]:
    """The session's shared cluster: default topology, operator and gateway running."""
    started = start()
    yield started
    started.stop()


@pytest.fixture
async def cluster(cluster_process: Started) -> AsyncIterator[LiveCluster]:
    """The session's shared cluster. Use own names or a `namespace` of your own in it."""
    async with connect(cluster_process) as live:
        yield live


MakeCluster = Callable[..., Awaitable[LiveCluster]]
"""`await make_cluster(topology_yaml=None, operator=True, gateway=True)`"""


@pytest.fixture
async def make_cluster(cluster_home: Path) -> AsyncIterator[MakeCluster]:
    """Makes clusters of the test's own; all are gone when it ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            shape: str | Json | None = None, *, operator: bool = True, gateway: bool = True
        ) -> LiveCluster:
            text = yaml.safe_dump(shape) if isinstance(shape, dict) else shape
            parsed = topology.parse(text, "the test's topology") if text else None
            # Not in a thread: the supervisor would end with that thread.
            started = start(parsed, operator=operator, gateway=gateway)
            stack.callback(started.stop)
            return await stack.enter_async_context(connect(started))

        yield make


def spotinference(
    *arguments: str, timeout_s: float = 120, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs our command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "spotinference", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
    )
