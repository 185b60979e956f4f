"""Starting and stopping the supervisor of a cluster from the command line, with progress."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from spotinference import errors
from spotinference.devcluster import assets, leftovers, models, processes, screen, state
from spotinference.devcluster.options import Options
from spotinference.devcluster.paths import ClusterPaths
from spotinference.devcluster.progress import Progress
from spotinference.devcluster.topology import Topology

UP_DEADLINE_S = 300.0
DOWN_DEADLINE_S = 20.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Request:
    """What `dev up` was asked for."""

    paths: ClusterPaths
    engine: state.Engine
    topology: Topology
    assets: Path | None = None
    operator: bool = True
    gateway: bool = True
    gateway_port: int = 0


def up(request: Request, *, detach: bool) -> None:
    """Returns when the cluster is ready (detached), or when it was taken down (foreground)."""
    with Progress() as progress:
        supervisor, found = start(request, progress, bound_to_us=not detach)
    print(summary(request.paths, found), flush=True)
    if detach:
        return
    print("Ctrl-C takes it down.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        screen.follow(found, lambda: supervisor.poll() is not None)
        code = supervisor.wait()
        if code == 0:  # `dev down` in another terminal
            print(f"cluster {request.paths.name} was taken down")
            return
        raise errors.ApiUnavailable(
            f"the cluster ended by itself (exit code {code}); "
            + processes.log_excerpt(request.paths.log("supervisor"))
        )
    print("taking the cluster down …", flush=True)
    stop(supervisor)


def start(
    request: Request, progress: Progress, *, bound_to_us: bool
) -> tuple[subprocess.Popen[bytes], state.ClusterState]:
    """A ready cluster and its supervisor, which ends with this thread when bound to it."""
    if state.is_running(request.paths):
        with state.Ownership(request.paths):  # says what to do
            pass
    binaries = assets.control_plane(request.assets, progress)
    engine = models.real_engine(progress) if request.engine == "vllm" else None
    options = Options(
        name=request.paths.name,
        engine=request.engine,
        topology=request.topology,
        binaries=binaries,
        vllm=engine and engine.vllm,
        demo_model=engine and engine.model,
        operator=request.operator,
        gateway=request.gateway,
        gateway_port=request.gateway_port,
    )
    supervisor = _spawn(request.paths, options, bound_to_us=bound_to_us)
    try:
        return supervisor, _wait_ready(request.paths, supervisor, progress)
    except BaseException:
        stop(supervisor)
        raise


def stop(supervisor: subprocess.Popen[bytes]) -> None:
    """Asks it to take its cluster down; kills it when it does not."""
    supervisor.terminate()
    try:
        supervisor.wait(DOWN_DEADLINE_S)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()


def down(paths: ClusterPaths, *, keep: bool) -> bool:
    """Ends the cluster of this name, however it is; False when there was none."""
    found = state.load(paths)
    existed = paths.root.exists()
    if found is not None and state.is_running(paths):
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.supervisor_pid, signal.SIGTERM)
        until = time.monotonic() + DOWN_DEADLINE_S
        while state.is_running(paths) and time.monotonic() < until:
            time.sleep(POLL_S)
    leftovers.clean(paths)  # also a supervisor that did not end
    with state.Ownership(paths) as ownership:
        if not keep:
            shutil.rmtree(paths.root, ignore_errors=True)
            paths.start_log.unlink(missing_ok=True)
            ownership.unlink()
    return existed


def summary(paths: ClusterPaths, found: state.ClusterState) -> str:
    rows = {
        "engine": found.engine,
        "API server": found.apiserver_url,
        "gateway": found.gateway_url and f"{found.gateway_url}/v1",
        "API key": found.api_key,
        "kubeconfig": found.kubeconfig,
        "logs": str(paths.logs),
    }
    lines = [f"cluster {found.name} is {found.stage}"]
    lines += [f"  {key:11} {value}" for key, value in rows.items() if value]
    return "\n".join(lines)


def find_log(paths: ClusterPaths, what: str) -> Path:
    """The log of a process, or the newest of a pod (by name, or `namespace/name`)."""
    for file in (paths.log(what), paths.logs / f"{what}.jsonl"):
        if file.is_file() and "/" not in what:
            return file
    namespace, _, pod = what.rpartition("/")
    matches = [
        entry
        for entry in paths.pod_logs.glob("*.log")
        if (parts := entry.name.split("_"))[1:2] == [pod] and namespace in {"", parts[0]}
    ]
    if matches:
        return max(matches, key=lambda entry: entry.stat().st_mtime)
    known = sorted(entry.stem for entry in paths.logs.glob("*.log"))
    raise errors.NotFound(
        f"no log of {what!r} in cluster {paths.name!r}: not a pod that ran, "
        f"nor one of {', '.join(known) or '(none: the cluster never ran)'}"
    )


def kubectl_program() -> Path:
    with Progress() as progress:
        return assets.control_plane(None, progress)["kubectl"]


def _spawn(paths: ClusterPaths, options: Options, *, bound_to_us: bool) -> subprocess.Popen[bytes]:
    paths.root.parent.mkdir(parents=True, exist_ok=True)
    env = {
        **os.environ,
        **processes.marker_env(paths),
        **processes.python_env(),
    }
    with paths.start_log.open("wb") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "spotinference.devcluster.cluster"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=env,
            cwd=paths.root.parent,
            start_new_session=True,
            preexec_fn=processes.end_with_parent if bound_to_us else None,  # noqa: PLW1509 - one thread
        )
    assert supervisor.stdin is not None
    supervisor.stdin.write(options.model_dump_json(by_alias=True).encode())
    supervisor.stdin.close()
    return supervisor


def _wait_ready(
    paths: ClusterPaths, supervisor: subprocess.Popen[bytes], progress: Progress
) -> state.ClusterState:
    until = time.monotonic() + UP_DEADLINE_S
    with progress.task("starting the cluster") as task:
        while True:
            found = state.load(paths)
            if found is not None and found.supervisor_pid == supervisor.pid:
                if found.stage == "ready":
                    return found
                task.say(found.doing)
            if supervisor.poll() is not None:
                raise errors.ApiUnavailable(_failure(paths, "the cluster did not start"))
            if time.monotonic() > until:
                what = f"the cluster is not up after {UP_DEADLINE_S:.0f} s"
                raise errors.ApiUnavailable(_failure(paths, what))
            time.sleep(POLL_S)


def _failure(paths: ClusterPaths, what: str) -> str:
    """The supervisor's own sentence when it wrote one, else its last lines."""
    log = paths.start_log if paths.start_log.exists() else paths.log("supervisor")
    lines = processes.log_tail(log, 60)
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if starts:
        return f"{what}: " + "\n".join(lines[starts[0] :]).removeprefix("error: ")
    return f"{what}; {processes.log_excerpt(log)}"
