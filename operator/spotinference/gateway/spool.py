"""Usage records on disk: append-only segments, one folder per process, bounded, safe to kill.

    <root>/<process>/lock             held by the process that writes there
    <root>/<process>/<number>-<uuid>.open     being written: whole lines but perhaps the last
    <root>/<process>/<number>-<uuid>.jsonl    closed, to be shipped; the uuid is its idempotency key

All of it blocks: only the writer thread (`usage`), worker threads and the CLI call it. What
`append` returned from is on the disk. A process that starts takes over the folders of those that
died, so a restart with the same volume loses nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import orjson
import structlog

log = structlog.get_logger(__name__)

SEGMENT_BYTES = 1024 * 1024
"""About 1,500 records: one shipment."""
OPEN, CLOSED = ".open", ".jsonl"


class SpoolFull(Exception):
    """The bound is reached: what is new is dropped, what waits is kept."""


class Spool:
    def __init__(self, root: Path, process: str, max_bytes: int) -> None:
        """Makes its folder and takes over what dead processes left; `OSError` when it cannot."""
        self._root = root
        self._max_bytes = max_bytes
        name = f"{process}-{uuid.uuid4().hex[:8]}"
        hidden = root / f".{name}"  # nobody may take it over before it is locked
        hidden.mkdir(parents=True)
        self._lock = _locked(hidden)
        self.folder = hidden.rename(root / name)
        self._number = 0
        self._file: BinaryIO | None = None
        self._path = self.folder
        self._good = 0
        """bytes of the open segment that are on the disk"""
        self._taken = 0
        """bytes of all segments, at most: what was shipped since the last count is still in it"""
        self.adopt()
        self._taken = self.size()

    def adopt(self) -> int:
        """Takes over the segments of processes that are no more; returns how many.

        Nothing once it is closed: its folder is gone, or another's to take.
        """
        taken = 0
        if self._lock is None:
            return taken
        for folder in sorted(self._root.iterdir()):
            if folder == self.folder or folder.name.startswith(".") or not folder.is_dir():
                continue
            lock = _locked(folder)
            if lock is None:
                continue
            with lock:
                taken += self._take_over(folder)
        if taken:
            _sync_folder(self.folder)
            log.info("usage.taken_over", segments=taken)
        return taken

    def _take_over(self, folder: Path) -> int:
        """The segments of a folder that is locked; how many. Of several that come for one folder
        the later ones find it empty, or half gone: the rest is the first one's, too.
        """
        taken = 0
        try:
            for path in _segments(folder):
                repair(path)
                if path.stat().st_size:
                    self._number += 1
                    name = path.stem.partition("-")[2]
                    path.rename(self.folder / f"{self._number:010d}-{name}{CLOSED}")
                    taken += 1
        except FileNotFoundError:
            return taken
        shutil.rmtree(folder, ignore_errors=True)
        return taken

    def append(self, lines: bytes) -> None:
        """Whole lines; on return they survive a kill and a power cut. `SpoolFull`, `OSError`."""
        if self._taken + len(lines) > self._max_bytes:
            self._taken = self.size()
        if self._taken + len(lines) > self._max_bytes:
            raise SpoolFull(f"{self._root}: {self._max_bytes} bytes of usage records wait")
        if self._file is None:
            self._number += 1
            self._path = self.folder / f"{self._number:010d}-{uuid.uuid4().hex}{OPEN}"
            self._file = self._path.open("xb", buffering=0)
            self._good = 0
            _sync_folder(self.folder)
        try:
            written = 0
            while written < len(lines):
                written += self._file.write(lines[written:])
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), self._good)  # a half line must not meet a whole one
            self._file.seek(self._good)
            raise
        self._good += len(lines)
        self._taken += len(lines)
        if self._good >= SEGMENT_BYTES:
            with contextlib.suppress(OSError):  # the lines are there: never again for this
                self.roll()

    def roll(self) -> None:
        """Closes the open segment, so that it can be shipped."""
        if self._file is not None:
            self._path.rename(self._path.with_suffix(CLOSED))  # fails: written on, and tried again
            self._file.close()
            self._file = None
            _sync_folder(self.folder)
            self._taken = self.size()  # segments that were taken over meanwhile count, too

    def closed(self) -> list[Path]:
        """What can be shipped, oldest first."""
        return sorted(self.folder.glob(f"*{CLOSED}"))

    def size(self) -> int:
        return sum(_size(path) for path in _segments(self.folder))

    def close(self) -> None:
        lock, self._lock = self._lock, None
        self.roll()
        if not _segments(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
        if lock is not None:
            lock.close()


def repair(path: Path) -> int:
    """Cuts a torn last line off; returns the bytes that went. Records before it are untouched."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    return len(data) - end


def read(root: Path) -> Iterator[dict[str, object]]:
    """All records that wait below a spool, of running processes too; torn lines are left out."""
    if not root.is_dir():
        return
    for folder in sorted(root.iterdir()):
        for path in _segments(folder):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue  # shipped meanwhile
            for line in data[: data.rfind(b"\n") + 1].splitlines():
                with contextlib.suppress(orjson.JSONDecodeError):
                    yield orjson.loads(line)


def _segments(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix in {OPEN, CLOSED})


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _locked(folder: Path) -> BinaryIO | None:
    """The folder's lock, or None while its process lives."""
    try:
        file = (folder / "lock").open("ab")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
