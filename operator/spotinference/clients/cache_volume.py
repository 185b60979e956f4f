"""The cache volume as a fetch sees it: one directory per commit, a manifest, a lock, free space.

DEST/<commit>/config.json …                    the files
DEST/<commit>/.spotinference-manifest.json     written last: the directory is complete
DEST/.spotinference-fetch.lock                 held by the one who fetches
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from spotinference.clients.hub import HubError, Snapshot, bytes_in, human

MANIFEST = ".spotinference-manifest.json"
LOCK = ".spotinference-fetch.lock"
LOCK_POLL_S = 1.0
SPARE_BYTES = 64 * 1024 * 1024
"""Left free beside the weights: the engine's compile cache lies on the same volume."""

_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF})


def is_complete(folder: Path) -> bool:
    """Whether the manifest exists and every file it names has the size it says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
        return bool(files) and all(
            (folder / name).stat().st_size == entry["size"] for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def size_of(folder: Path) -> int:
    """Bytes of a complete directory, by its manifest."""
    manifest = json.loads((folder / MANIFEST).read_text())
    return sum(int(entry["size"]) for entry in manifest["files"].values())


def check_space(folder: Path, snapshot: Snapshot) -> None:
    """HubError `CacheFull` with both numbers when the rest of the files will not fit."""
    needed = max(0, snapshot.total_bytes - bytes_in(folder))
    free = shutil.disk_usage(folder).free
    if needed and needed + SPARE_BYTES > free:
        raise HubError(
            "CacheFull",
            f"{snapshot.repo_id} needs {human(needed)} more, the cache volume has {human(free)} "
            "free: raise cache.size",
        )


def complete(folder: Path, snapshot: Snapshot) -> None:
    """Writes the manifest, last and durably: files first, then its name, then the directory."""
    for file in snapshot.files:
        _sync(folder / file.path)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's own bookkeeping
    body = {
        "version": 1,
        "repository": snapshot.repo_id,
        "commit": snapshot.commit,
        "files": {file.path: {"size": file.size, "sha256": file.sha256} for file in snapshot.files},
    }
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(body, indent=1, sort_keys=True))
    _sync(temporary)
    temporary.replace(folder / MANIFEST)
    _sync_directory(folder)
    _sync_directory(folder.parent)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _sync_directory(path: Path) -> None:
    """As far as the file system can: SMB shares and some FUSE volumes refuse (EINVAL)."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


@contextmanager
def locked(dest: Path, *, deadline_s: float, say: Callable[[str], None]) -> Iterator[None]:
    """Only one process fetches into this volume; others wait, and then find the work done.

    The kernel drops the lock with its holder, so a killed fetch never blocks the next. On a volume
    whose file system knows no locks (some object stores) the fetch goes on without one: files are
    written under temporary names there too, so two fetchers waste bytes but break nothing.
    """
    until = time.monotonic() + deadline_s
    number = os.open(dest / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        waiting = False
        while True:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waiting:
                    say(f"another fetch holds this volume ({_owner(number)}); waiting")
                    waiting = True
                if time.monotonic() > until:
                    raise HubError(
                        "LockHeld",
                        f"another fetch ({_owner(number)}) held the volume for {deadline_s:g} s",
                        retryable=True,
                    ) from None
                time.sleep(LOCK_POLL_S)
            except OSError as error:
                say(f"this volume knows no locks ({error.strerror}); going on without one")
                break
            else:
                os.ftruncate(number, 0)
                os.pwrite(number, f"{socket.gethostname()} pid {os.getpid()}".encode(), 0)
                break
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_UN)
        os.close(number)


def _owner(number: int) -> str:
    return os.pread(number, 200, 0).decode(errors="replace") or "unknown"
