"""Processes under measurement: pinned to a core, with their CPU time and memory from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READY_S = 90.0
STOP_S = 10.0
REALTIME_PRIORITY = 5
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class NotReady(Exception):
    """It ended, or did not listen in time."""


@dataclass(frozen=True, slots=True)
class Group:
    """A process and its descendants: all of one session."""

    session: int

    def _stats(self) -> Iterator[list[str]]:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    text = (entry / "stat").read_text()
                except OSError:
                    continue  # it has just ended
                fields = text.rpartition(")")[2].split()
                if int(fields[3]) == self.session:
                    yield fields

    def cpu_s(self) -> float:
        """User and system time of all of them so far."""
        return sum(int(f[11]) + int(f[12]) for f in self._stats()) / _TICKS_PER_S

    def rss_bytes(self) -> int:
        return sum(int(f[21]) for f in self._stats()) * _PAGE_BYTES


@contextmanager
def pinned(
    command: list[str], cores: str, log: Path, environment: dict[str, str] | None = None
) -> Iterator[Group]:
    """Runs while the block does, on these cores only (as `taskset -c` names them)."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            ["taskset", "-c", cores, *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        yield Group(process.pid)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, timeout_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it left behind


@contextmanager
def before_other_work() -> Iterator[None]:
    """What is started in this block runs before the machine's other work; `PermissionError`.

    So do the kernel's threads that deliver packets when a core is busy: behind other work they
    would hold up a system under measurement for milliseconds, however urgent it is itself.
    """
    everyone = [0, *_packet_threads()]
    try:
        for process in everyone:
            priority = REALTIME_PRIORITY + bool(process)
            os.sched_setscheduler(process, os.SCHED_RR, os.sched_param(priority))
        yield
    finally:
        for process in everyone:
            with contextlib.suppress(PermissionError):
                os.sched_setscheduler(process, os.SCHED_OTHER, os.sched_param(0))


def _packet_threads() -> list[int]:
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _name(entry).startswith("ksoftirqd/")
    ]


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text()
    except OSError:
        return ""  # it has just ended


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until_answering(ip: str, port: int, request: bytes, log: Path) -> None:
    """Until this request is answered with a 200."""
    deadline = time.monotonic() + READY_S
    seen = "no connection"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((ip, port), timeout=5) as probe:
                probe.sendall(request)
                answer = probe.recv(4096)
                if b" 200 " in answer[:15]:
                    return
                seen = answer.partition(b"\r\n")[0].decode(errors="replace")
        except OSError as error:
            seen = str(error)
        time.sleep(0.2)
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    raise NotReady(f"no 200 within {READY_S:g} s: {seen} {''.join(last)[:200]}")
