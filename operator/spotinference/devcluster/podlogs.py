"""The log files of containers: one per start, bounded in size and number."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from spotinference.api.kinds import Json

LIMIT_BYTES = 16 * 1024 * 1024
CHECK_S = 10.0
KEPT = 5
"""Of one container: the logs of its latest restarts."""


def file_name(pod: Json, container: str, restarts: int) -> str:
    meta = pod["metadata"]
    return f"{meta['namespace']}_{meta['name']}_{container}_{restarts}.log"


def tail(path: Path, limit: int) -> str:
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - limit))
        return file.read().decode(errors="replace").strip()


def _older(log_file: Path) -> Path:
    return log_file.with_suffix(".log.1")


def forget(log_file: Path) -> None:
    log_file.unlink(missing_ok=True)
    _older(log_file).unlink(missing_ok=True)


async def keep_bounded(path: Path) -> None:
    """Keeps a container's log below its bound: the older half goes to `.1`, which it replaces.

    The container appends, so its next line goes to the new end of the emptied file.
    """
    while True:
        await asyncio.sleep(CHECK_S)
        with contextlib.suppress(OSError):
            if path.stat().st_size > LIMIT_BYTES:
                await asyncio.to_thread(_rotate, path)


def _rotate(path: Path) -> None:
    _older(path).write_bytes(path.read_bytes())
    with path.open("r+b") as file:
        file.truncate(0)
