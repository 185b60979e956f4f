"""Local processes of an embedded cluster: started, marked, logged, stopped, never left behind.

Every process carries two variables in its environment, the cluster's name and its state
directory. They are how a later `dev up` or `dev down` recognises what a killed supervisor left.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import spotinference
from spotinference import errors
from spotinference.devcluster.paths import ClusterPaths

MARKER = "SPOTINFERENCE_CLUSTER"
MARKER_DIR = "SPOTINFERENCE_CLUSTER_DIR"
STOP_GRACE_S = 10.0
KILL_DEADLINE_S = 5.0
"""A killed process is gone in milliseconds; longer means an uninterruptible sleep."""
TAIL_LINES = 15
TAIL_BYTES = 16_384
SWEEP_POLL_S = 0.05

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def marker_env(paths: ClusterPaths) -> dict[str, str]:
    """What every process of the cluster, containers included, carries in its environment."""
    return {MARKER: paths.name, MARKER_DIR: str(paths.root)}


def python_env() -> dict[str, str]:
    """Lets `sys.executable -m spotinference` find this package from anywhere, installed or not."""
    own = str(Path(spotinference.__file__).parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": f"{own}{os.pathsep}{inherited}" if inherited else own,
        "PYTHONUNBUFFERED": "1",
    }


def die_with_parent() -> None:
    """In a child before exec: the kernel kills it when the thread that started it ends.

    Only safe for children started from the main thread, which lives as long as its process.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_with_parent() -> None:
    """Like `die_with_parent`, but SIGTERM: for a child that has to clean up itself."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class ManagedProcess:
    """One process in a session of its own, its output in a log file."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        paths: ClusterPaths,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log or paths.log(name)
        self._env = {**os.environ, **(env or {}), **marker_env(paths)}
        self._cwd = paths.root
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process id, which is the id of its group and session too; 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def returncode(self) -> int | None:
        return self._process.returncode if self._process else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=self._env,
                    cwd=self._cwd,
                    start_new_session=True,
                    preexec_fn=die_with_parent,  # one prctl call, no Python locks
                )
            except OSError as error:
                raise errors.ConfigInvalid(
                    f"{self.name} does not start: {self.argv[0]}: {error.strerror}"
                ) from error

    async def wait(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return await self._process.wait()

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """SIGTERM to the process, SIGKILL to its whole group after the grace; idempotent."""
        if self._process is None:
            return
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace_s)
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL to the group, also when its leader is gone already."""
        if self._process is None:
            return
        _signal_group(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), KILL_DEADLINE_S)

    def failure(self, what: str) -> str:
        """A sentence with the log file's name and its last lines."""
        code = self.returncode
        ended = "" if code is None else f" (exit code {code})"
        return f"{self.name} {what}{ended}; {log_excerpt(self.log)}"


def log_excerpt(log: Path, lines: int = TAIL_LINES) -> str:
    """`log FILE, last lines:` and these lines, indented."""
    tail = log_tail(log, lines)
    if not tail:
        return f"its log {log} is empty"
    return f"log {log}, last lines:\n" + "\n".join(f"    {line}" for line in tail)


def log_tail(log: Path, lines: int = TAIL_LINES) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def marked(paths: ClusterPaths) -> list[int]:
    """Living processes of this user that carry the cluster's markers, this one apart."""
    name = f"{MARKER}={paths.name}".encode()
    folder = f"{MARKER_DIR}={paths.root}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # another user's, or gone
            continue
        if name in variables and folder in variables:
            found.append(int(entry.name))
    return found


def sweep(paths: ClusterPaths, deadline_s: float = KILL_DEADLINE_S) -> list[int]:
    """Kills everything that carries the cluster's markers; returns the ids it killed."""
    killed: set[int] = set()
    until = time.monotonic() + deadline_s
    while left := marked(paths):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(left)
        if time.monotonic() > until:
            raise errors.ConfigInvalid(
                f"processes {left} of cluster {paths.name!r} cannot be killed; "
                "look at them with `ps -fp PID`"
            )
        time.sleep(SWEEP_POLL_S)
    return sorted(killed)


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
