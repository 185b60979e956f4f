"""Official releases of the control plane, each file checked against its published SHA-256.

A site that does not answer is given up within `GIVE_UP_S`, name resolution and all: somebody
without a network must not wait for one. Called by `assets` only.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import platform
import re
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spotinference import errors
from spotinference.devcluster.progress import Progress, Task

ENV_KUBERNETES = "SPOTINFERENCE_KUBERNETES_RELEASES"
ENV_ETCD = "SPOTINFERENCE_ETCD_RELEASES"
GIVE_UP_S = 5.0
PROBE_TIMEOUT_S = 4.0
"""Of one socket operation in the probe; below GIVE_UP_S so that its own error is the one shown."""
STALL_S = 20.0
"""A download that delivers nothing this long is given up."""
CHUNK_BYTES = 1 << 20
MAX_CHECKSUM_BYTES = 65_536
MAX_FILE_BYTES = 512 << 20
"""kube-apiserver has some 90 MB; a server that sends without end must not fill the disk."""
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


class Unavailable(Exception):
    """No download: out of reach, or not published for this machine. The message says why."""


@dataclass(frozen=True, slots=True)
class Sites:
    """Where the releases lie. A mirror can be named in the environment."""

    kubernetes: str
    etcd: str

    @classmethod
    def from_environment(cls) -> Sites:
        return cls(
            os.environ.get(ENV_KUBERNETES, "https://dl.k8s.io/release"),
            os.environ.get(ENV_ETCD, "https://github.com/etcd-io/etcd/releases/download"),
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    kubernetes_version: str
    etcd_version: str
    names: tuple[str, ...]


def fetch(wanted: Wanted, target: Path, progress: Progress, sites: Sites) -> None:
    """Downloads the programs into `target`.

    `Unavailable` when a site is out of reach; `ConfigInvalid` when a file is not what its
    publisher says: that is never passed over.
    """
    arch = _ARCHITECTURES.get(platform.machine().lower())
    if arch is None:
        raise Unavailable(f"nothing is published for {platform.machine()}")
    urls = {name: _url(name, wanted, sites, arch) for name in wanted.names}
    with progress.task("looking for official releases") as task:
        sums = _within_deadline(urls)
        task.say("found")
    for name, url in urls.items():
        with progress.task(f"downloading {name}", total=None) as task:
            if name == "etcd":
                archive = target / "etcd.tar.gz"
                _download(url, archive, sums[name], task)
                _extract(archive, "etcd", target / "etcd")
                archive.unlink()
            else:
                _download(url, target / name, sums[name], task)


def _url(name: str, wanted: Wanted, sites: Sites, arch: str) -> str:
    if name == "etcd":
        version = wanted.etcd_version
        return f"{sites.etcd}/{version}/etcd-{version}-linux-{arch}.tar.gz"
    return f"{sites.kubernetes}/{wanted.kubernetes_version}/bin/linux/{arch}/{name}"


def _within_deadline(urls: Mapping[str, str]) -> dict[str, str]:
    """The published checksum of every file; all asked at once, all answered in `GIVE_UP_S`."""
    until = time.monotonic() + GIVE_UP_S
    answers = {name: _in_thread(partial(_checksum, name, url)) for name, url in urls.items()}
    sums: dict[str, str] = {}
    for name, answer in answers.items():
        try:
            sums[name] = answer.result(max(0.0, until - time.monotonic()))
        except TimeoutError as error:
            host = urls[name].split("/")[2]
            raise Unavailable(f"{host} does not answer within {GIVE_UP_S:.0f} s") from error
    return sums


def _in_thread(work: Callable[[], str]) -> Future[str]:
    """A daemon thread, because name resolution cannot be cut short and must not delay the exit."""
    future: Future[str] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _checksum(name: str, url: str) -> str:
    """The 64 hex digits that the publisher states for this file."""
    listing = url.rpartition("/")[0] + "/SHA256SUMS" if name == "etcd" else f"{url}.sha256"
    with _open(listing, PROBE_TIMEOUT_S) as response:
        text = response.read(MAX_CHECKSUM_BYTES).decode(errors="replace")
    file = url.rpartition("/")[2]
    for line in text.splitlines():
        fields = line.split()
        names_it = fields[1:] == [file] or (name != "etcd" and len(fields) == 1)
        if names_it and re.fullmatch(r"[0-9a-f]{64}", fields[0]):
            return fields[0]
    raise Unavailable(f"{listing} states no SHA-256 for {file}")


def _download(url: str, target: Path, expected: str, task: Task) -> None:
    """Writes the file while hashing it; a wrong sum deletes it and is an error for a person."""
    digest = hashlib.sha256()
    size = 0
    try:
        with _open(url, STALL_S) as response, target.open("wb") as file:
            length = response.headers.get("Content-Length")
            if length:
                task.expect(float(length))
            while chunk := response.read(CHUNK_BYTES):
                size += len(chunk)
                if size > MAX_FILE_BYTES:
                    raise Unavailable(f"{url} is larger than {MAX_FILE_BYTES >> 20} MiB")
                digest.update(chunk)
                file.write(chunk)
                task.advance(len(chunk))
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{url}: {error}") from error
    if digest.hexdigest() != expected:
        target.unlink()
        raise errors.ConfigInvalid(
            f"{url} has SHA-256 {digest.hexdigest()}, but its publisher states {expected}: "
            "something on the way changed it. Nothing was installed; try another network"
        )


def _extract(archive: Path, name: str, target: Path) -> None:
    """Takes one program out of the archive, and nothing else."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.rpartition("/")[2] == name:
                source = tar.extractfile(member)
                assert source is not None
                with source, target.open("wb") as file:
                    while chunk := source.read(CHUNK_BYTES):
                        file.write(chunk)
                return
    raise Unavailable(f"{archive.name} holds no {name}")


def _open(url: str, timeout_s: float) -> http.client.HTTPResponse:
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(url, timeout=timeout_s)  # noqa: S310 - http(s) of Sites only
    except urllib.error.HTTPError as error:
        error.close()
        raise Unavailable(f"{url}: HTTP {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise Unavailable(f"{url.split('/')[2]}: {reason}") from error
    return response
