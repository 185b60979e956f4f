"""`dev up`, `dev down` and what happens when either is killed: nothing is ever left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spotinference import errors
from spotinference.api.kinds import NAMESPACE, POD, Json
from spotinference.devcluster import assets, launch, paths, processes, state, supervisor
from spotinference.devcluster.progress import Progress
from tests.support.cluster import LiveCluster, MakeCluster, connect, spotinference, start
from tests.support.eventually import eventually

pytestmark = pytest.mark.cluster

BARE = ("--engine", "sim", "--no-operator", "--no-gateway")
"""Starts in half the time."""


@pytest.fixture
def name(cluster_home: Path) -> Iterator[str]:
    """A cluster name that is free, and free again afterwards."""
    name = f"life{os.getpid()}"
    launch.down(paths.cluster(name), keep=False)
    yield name
    launch.down(paths.cluster(name), keep=False)


def sleeper(pod: str) -> Json:
    """A pod whose process does nothing for long, on a CPU node."""
    container = {"name": "main", "image": "busybox:1", "command": ["sleep", "1000"]}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    metadata = {"name": pod, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


async def running(live: LiveCluster, pod: str) -> Json:
    async def is_running() -> Json | None:
        found = await live.kube.get(POD, pod, "default")
        return found if found.get("status", {}).get("phase") == "Running" else None

    found = await eventually(is_running, 30, f"pod {pod} runs")
    assert found is not None
    return found


async def test_up_status_kubectl_logs_and_down_by_the_command_line(name: str) -> None:
    up = spotinference("dev", "up", "--name", name, "--engine", "sim", "--detach")
    assert up.returncode == 0, up.stderr
    assert f"cluster {name} is ready" in up.stdout
    assert "starting the cluster: done in" in up.stderr  # plain lines: not a terminal

    status = spotinference("dev", "status", "--name", name, "--json")
    seen = json.loads(status.stdout)
    assert seen["stage"] == "ready"
    assert {row["healthy"] for row in seen["processes"].values()} == {True}
    assert set(seen["processes"]) >= {"etcd", "apiserver", "operator", "gateway"}
    assert {(m["pool"], m["zone"]) for m in seen["markets"]} >= {
        ("spot-l4", "zone-a"),
        ("spot-l4", "zone-b"),
        ("on-demand-l4", "zone-a"),
    }
    pools = spotinference("dev", "--name", name, "kubectl", "get", "gpool", "-o", "name")
    assert "gpupool.spotinference.dev/spot-a100" in pools.stdout
    config = spotinference("dev", "kubeconfig", "--name", name).stdout.strip()
    assert Path(config).is_file()
    log = spotinference("dev", "logs", "operator", "--name", name)
    assert "operator.started" in log.stdout

    down = spotinference("dev", "down", "--name", name)
    assert (down.returncode, down.stdout) == (0, f"cluster {name} is down\n")
    where = paths.cluster(name)
    assert processes.marked(where) == []
    assert not where.root.exists()
    assert spotinference("dev", "down", "--name", name).stdout.endswith("nothing to do\n")


async def test_two_clusters_run_side_by_side(
    cluster: LiveCluster, make_cluster: MakeCluster
) -> None:
    other = await make_cluster(operator=False, gateway=False)
    assert other.state.apiserver_url != cluster.state.apiserver_url
    await other.namespace("only-here")
    with pytest.raises(errors.NotFound):
        await cluster.kube.get(NAMESPACE, "only-here")
    assert set(processes.marked(other.paths)).isdisjoint(processes.marked(cluster.paths))


async def test_a_cluster_of_a_name_that_runs_is_refused_with_the_way_out(
    cluster: LiveCluster,
) -> None:
    again = spotinference("dev", "up", "--name", cluster.name, *BARE, "--detach")
    assert again.returncode == 1
    assert f"`spotinference dev down --name {cluster.name}` stops it" in again.stderr


async def test_up_after_a_killed_supervisor_leaves_nothing_of_the_first(name: str) -> None:
    first = start(operator=False, gateway=False, name=name)
    async with connect(first) as live:
        await live.kube.create(POD, sleeper("survivor"))
        await running(live, "survivor")
    old = processes.marked(first.paths)
    assert len(old) >= 6  # supervisor, four of the control plane, the pod
    first.supervisor.kill()
    first.supervisor.wait()

    second = start(operator=False, gateway=False, name=name)
    try:
        assert [pid for pid in old if Path(f"/proc/{pid}").exists()] == []
        async with connect(second) as live:
            with pytest.raises(errors.NotFound):
                await live.kube.get(POD, "survivor", "default")
    finally:
        second.stop()


async def test_down_after_a_killed_supervisor_leaves_nothing(name: str) -> None:
    started = start(operator=False, gateway=False, name=name)
    started.supervisor.kill()
    started.supervisor.wait()
    assert spotinference("dev", "down", "--name", name).returncode == 0
    assert processes.marked(started.paths) == []
    assert not started.paths.root.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_a_foreground_up_takes_its_cluster_with_it(name: str, number: signal.Signals) -> None:
    """Ctrl-C tears down; a killed `dev up` cannot, so its supervisor does."""
    where = paths.cluster(name)
    argv = [sys.executable, "-m", "spotinference", "dev", "up", "--name", name, *BARE]
    quiet = asyncio.subprocess.DEVNULL
    # A test run in a shell's background inherits an ignored SIGINT, and would pass it on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    up = await asyncio.create_subprocess_exec(*argv, stdout=quiet, stderr=quiet)
    try:
        await eventually(lambda: _is_ready(where), 60, "the cluster is ready")
        up.send_signal(number)
        code = await asyncio.wait_for(up.wait(), 30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            up.kill()
    # 130: Ctrl-C came between "ready" and the screen that follows it.
    assert code in ({0, 130} if number is signal.SIGINT else {-signal.SIGKILL})
    await eventually(lambda: not state.is_running(where), 20, "the supervisor ends")
    await eventually(lambda: processes.marked(where) == [], 10, "all its processes end")


def _is_ready(where: paths.ClusterPaths) -> bool:
    found = state.load(where)
    return found is not None and found.stage == "ready"


async def test_a_process_that_dies_is_restarted_and_the_log_says_so(
    make_cluster: MakeCluster,
) -> None:
    live = await make_cluster(operator=False, gateway=False)
    before = live.state.pids["scheduler"]
    os.kill(before, signal.SIGKILL)

    async def is_back() -> bool:
        row = (await live.ask("status"))["processes"]["scheduler"]
        return bool(row["healthy"]) and row["pid"] != before

    await eventually(is_back, 15, "the scheduler is back")
    assert '"process": "scheduler"' in live.paths.log("supervisor").read_text()
    await live.process("apiserver", "kill")
    with pytest.raises(errors.ApiUnavailable):
        await live.kube.list(NAMESPACE)
    await live.process("apiserver", "start")
    assert (await live.kube.list(NAMESPACE)).items


def test_a_start_that_fails_names_the_process_its_log_and_its_last_words(
    name: str, tmp_path: Path
) -> None:
    for binary in assets.BINARIES:
        script = tmp_path / binary
        script.write_text(f"#!/bin/sh\necho {binary}: out of paper\nexit 3\n")
        script.chmod(0o755)
    up = spotinference("dev", "up", "--name", name, *BARE, "--detach", "--assets", str(tmp_path))
    assert up.returncode == 1
    assert "ended while starting (exit code 3)" in up.stderr
    assert str(paths.cluster(name).logs) in up.stderr
    assert "out of paper" in up.stderr
    assert processes.marked(paths.cluster(name)) == []


def test_a_component_that_gives_up_on_a_slow_api_server_is_started_again(
    name: str, tmp_path: Path
) -> None:
    real = assets.control_plane(None, Progress())
    gave_up = tmp_path / "gave-up"
    for binary, path in real.items():
        (tmp_path / binary).symlink_to(path)
    impatient = tmp_path / "kube-controller-manager"
    impatient.unlink()
    impatient.write_text(
        f"#!/bin/sh\n[ -e {gave_up} ] || {{ touch {gave_up}; exit 1; }}\n"
        f'exec {real[impatient.name]} "$@"\n'
    )
    impatient.chmod(0o755)
    up = spotinference("dev", "up", "--name", name, *BARE, "--detach", "--assets", str(tmp_path))
    assert up.returncode == 0, up.stderr
    assert gave_up.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("status",), "no cluster 'nobody' is running; start it with `spotinference dev up"),
        (("kubeconfig",), "no cluster 'nobody' is running"),
        (("logs", "operator"), "no log of 'operator' in cluster 'nobody'"),
        (("market", "spot-l4", "--capacity", "1"), "write POOL/ZONE, e.g. spot-l4/zone-a"),
        (("reclaim", "n1", "--notice", "soon"), "--notice: 'soon' is not a duration"),
        (("up", "--engine", "tgi"), "--engine tgi: use vllm or sim"),
        (("up", "--topology", "/nowhere.yaml"), "topology file /nowhere.yaml: No such file"),
    ],
)
def test_a_command_that_cannot_work_says_why_in_one_sentence(
    cluster_home: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    result = spotinference("dev", *arguments, "--name", "nobody")
    assert result.returncode == 1
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


async def test_nodes_and_markets_that_do_not_exist_are_refused_by_name(
    cluster: LiveCluster,
) -> None:
    with pytest.raises(errors.ConfigInvalid, match="no market spot-l4/zone-x in this cluster"):
        await cluster.set_capacity("spot-l4", "zone-x", 1)
    with pytest.raises(errors.SpotinferenceError, match="nonesuch"):
        await cluster.reclaim("nonesuch")


async def test_the_control_api_wants_its_token(cluster: LiveCluster) -> None:
    with pytest.raises(errors.ConfigInvalid, match="wrong token"):
        await supervisor.control(cluster.state.control_url, "guess", "status")
