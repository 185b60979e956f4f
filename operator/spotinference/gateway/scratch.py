"""A folder for the life of a process; the next process removes those whose owners were killed."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "spotinference-gateway-"
LOCK = "owner"
"""Locked for as long as the owner lives."""


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder but for its lock; gone at the end. `OSError` when there is no room for one."""
    _clear(Path(tempfile.gettempdir()))
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))  # nobody may clear it before it is locked
    with (hidden / LOCK).open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        folder = hidden.rename(hidden.with_name(hidden.name.removeprefix(".")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _clear(root: Path) -> None:
    """Of whoever is dead: what lives, and what is not ours to open, stays."""
    for lock in root.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), lock.open() as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
