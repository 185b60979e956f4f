"""Process sessions: the container runtime of the embedded cluster.

A container is a process in a session of its own (`setsid`). Whatever it forks belongs to the
session, so that nothing survives it: vLLM's engine core, say, which outlives the SIGKILL of its
API process by half a minute. A ledger of sessions on disk lets the next agent find what a killed
one left behind, even when a program has overwritten its environment (as setproctitle does).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spotinference.devcluster import processes
from spotinference.devcluster.paths import ClusterPaths

MARK_POD = "SPOTINFERENCE_POD_UID"
"""In the environment beside the cluster's markers: this process belongs to a container."""


class Session:
    """One started container process and everything it forks."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def sid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit code as a container reports it (128 + signal); the rest is killed by then."""
        code = await self._process.wait()
        self.kill()
        return 128 - code if code < 0 else code

    def signal_leader(self, number: int) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the group at once, then to members that made groups of their own."""
        kill_session(self.sid)


async def start(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, output: Path | None
) -> Session:
    """Starts a session; OSError when the program is missing or not executable."""
    if output is None:
        sink = os.open(os.devnull, os.O_WRONLY)
    else:
        sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=processes.die_with_parent,  # one prctl call, no Python locks
        )
    finally:
        os.close(sink)
    return Session(process)


def kill_session(sid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(sid, signal.SIGKILL)
    for process in _all_processes():
        if process.session == sid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL)


def kill_leftovers(paths: ClusterPaths, ledger: Path) -> int:
    """Kills containers of a former agent of this cluster; says how many processes that were."""
    known = _read_ledger(ledger)
    marked = {pid for pid in processes.marked(paths) if _in_pod(pid)}
    killed = 0
    for process in _all_processes():
        recorded = known.get(process.session)
        ours = recorded is not None and process.started >= recorded
        if process.pid == os.getpid() or not (ours or process.pid in marked):
            continue
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
    ledger.unlink(missing_ok=True)
    return killed


def record(ledger: Path, session: Session) -> None:
    """One line per session: its id and its leader's start time (process ids are reused)."""
    started = _started(session.sid)
    if started is None:
        return
    with ledger.open("a") as file:
        file.write(json.dumps({"sid": session.sid, "started": started, "boot": _boot_id()}) + "\n")


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    session: int
    started: int


def _all_processes() -> list[_Process]:
    return [
        process
        for entry in os.scandir("/proc")
        if entry.name.isdigit() and (process := _stat(int(entry.name))) is not None
    ]


def _stat(pid: int) -> _Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    if fields[0] == "Z":
        return None
    return _Process(pid, session=int(fields[3]), started=int(fields[19]))


def _started(pid: int) -> int | None:
    process = _stat(pid)
    return None if process is None else process.started


def _in_pod(pid: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(entry.startswith(f"{MARK_POD}=".encode()) for entry in environment)


def _read_ledger(ledger: Path) -> dict[int, int]:
    sessions: dict[int, int] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in ledger.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError):  # a line cut by a crash
                entry = json.loads(line)
                if entry["boot"] == _boot_id():
                    sessions[int(entry["sid"])] = int(entry["started"])
    return sessions


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
