"""cluster.json: what a running cluster tells other processes about itself. Mode 0600: it has keys."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from spotinference import errors
from spotinference.devcluster.paths import ClusterPaths

LOCK_POLL_S = 0.02
Engine = Literal["sim", "vllm"]
Stage = Literal["starting", "ready", "stopping"]


class ClusterState(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    engine: Engine
    stage: Stage = "starting"
    doing: str = ""
    """What is being waited for while starting, for people."""
    supervisor_pid: int
    started_at: str
    pids: dict[str, int] = {}
    apiserver_url: str = ""
    control_url: str = ""
    control_token: str = ""
    gateway_url: str = ""
    gateway_metrics_url: str = ""
    operator_metrics_url: str = ""
    operator_probes_url: str = ""
    hub_url: str = ""
    api_key: str = ""
    audit_log: str = ""
    kubeconfig: str = ""


def save(paths: ClusterPaths, state: ClusterState) -> None:
    write_private(paths.state_file, state.model_dump_json(indent=2) + "\n")


def load(paths: ClusterPaths) -> ClusterState | None:
    """None when there is no such cluster (or its file is not ours to understand)."""
    try:
        return ClusterState.model_validate_json(paths.state_file.read_text())
    except (FileNotFoundError, ValidationError):
        return None


def write_private(path: Path, text: str) -> None:
    """Atomic: a reader sees the old or the new file, only this user sees it at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:  # mkstemp makes it 0600
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class Ownership:
    """The right to run the cluster of this name: a lock that dies with its process."""

    def __init__(self, paths: ClusterPaths, *, patience_s: float = 0.0) -> None:
        self._paths = paths
        self._patience_s = patience_s
        self._handle: int | None = None

    def __enter__(self) -> Self:
        """`ConfigInvalid` when another supervisor runs it."""
        self._paths.lock_file.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + self._patience_s
        while self._handle is None:
            handle = os.open(self._paths.lock_file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(handle)
                if time.monotonic() < until:
                    time.sleep(LOCK_POLL_S)
                    continue
                name = self._paths.name
                raise errors.ConfigInvalid(
                    f"cluster {name!r} is running already; `spotinference dev down --name {name}` "
                    "stops it, another --name starts one beside it"
                ) from error
            if _is_file(handle, self._paths.lock_file):
                self._handle = handle
            else:  # unlinked by a `down` between our open and our lock
                os.close(handle)
        return self

    def unlink(self) -> None:
        """Removes the lock file while it is held: whoever waits for it looks again."""
        self._paths.lock_file.unlink(missing_ok=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _is_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def is_running(paths: ClusterPaths) -> bool:
    """Whether a supervisor of this cluster lives."""
    if not paths.lock_file.exists():
        return False
    try:
        with Ownership(paths):
            return False
    except errors.ConfigInvalid:
        return True
