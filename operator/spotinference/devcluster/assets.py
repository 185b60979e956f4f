"""Finds the programs of the control plane, and makes them when there are none.

In this order: a folder given by `--assets` or `KUBEBUILDER_ASSETS`; the user's cache, keyed by
version; official releases, checked by SHA-256; `go build` from the module files that ship with
this package. The versions stand in those module files and nowhere else. Two processes never
prepare at once, and a file appears in the cache only when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spotinference import assets, errors
from spotinference.devcluster import downloads, gobuild
from spotinference.devcluster.paths import cache_dir
from spotinference.devcluster.progress import Progress

BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
TOOLS = ("helm", "kubeconform", "argocd")
LOCK_DEADLINE_S = 3600.0
"""A cold build of everything on a small machine takes ten minutes; an hour means it hangs."""
LOCK_POLL_S = 0.2

ENV_FOLDER = "KUBEBUILDER_ASSETS"
_MODULES = "tools/controlplane"
_VERSION = "k8s.io/component-base/version"


@dataclass(frozen=True, slots=True)
class Source:
    """Where things come from; tests name a local server and a false Go."""

    sites: downloads.Sites = field(default_factory=downloads.Sites.from_environment)
    go: str = "go"
    modules: Path | None = None
    """The folder with one go.mod per family; None: the one that ships with us"""

    def module(self, family: str) -> Path:
        return (self.modules or assets.find(_MODULES)) / family


def control_plane(
    folder: Path | None, progress: Progress, source: Source | None = None
) -> dict[str, Path]:
    """Path of each of `BINARIES`; `ConfigInvalid` says what to do when there is no way to them."""
    source = source or Source()
    given = _given(folder, progress)
    if given is not None:
        return given
    version = module_version(source.module("kubernetes"), "k8s.io/kubernetes")
    target = cache_dir() / "controlplane" / version
    found = {name: target / name for name in BINARIES}
    if all(_is_program(path) for path in found.values()):
        return found
    with _only_one(target, progress):
        missing = [name for name in BINARIES if not _is_program(target / name)]
        if missing:
            _prepare(missing, version, target, progress, source)
    return found


def tools(
    names: Iterable[str], progress: Progress, source: Source | None = None
) -> dict[str, Path]:
    """Path of each test tool (of `TOOLS`), built into `<cache>/tools/NAME-VERSION` when absent."""
    source = source or Source()
    found: dict[str, Path] = {}
    for name in names:
        if name not in TOOLS:
            raise errors.ConfigInvalid(f"no tool {name!r}; there are {', '.join(TOOLS)}")
        module = source.module(name)
        package = gobuild.tool_packages(module)[0]
        target = cache_dir() / "tools"
        program = target / f"{name}-{module_version(module, package)}"
        if not _is_program(program):
            with _only_one(program, progress):
                if not _is_program(program):
                    job = gobuild.Job(module, {program.name: package}, "-s -w")
                    _build(job, target, progress, source.go)
        found[name] = program
    return found


def module_version(module: Path, package: str) -> str:
    """The version by which a go.mod requires the module that `package` lies in."""
    text = (module / "go.mod").read_text()
    best = ""
    version = ""
    for required, stated in re.findall(r"^\s+(\S+) (v\S+)", text, re.MULTILINE):
        inside = package == required or package.startswith(f"{required}/")
        if inside and len(required) > len(best):
            best, version = required, stated
    if not version:
        raise errors.ConfigInvalid(f"{module / 'go.mod'} requires no module for {package}")
    return version


def _given(folder: Path | None, progress: Progress) -> dict[str, Path] | None:
    """The folder that a person named, when it holds everything."""
    named = folder or (Path(os.environ[ENV_FOLDER]) if os.environ.get(ENV_FOLDER) else None)
    if named is None:
        return None
    found = {name: (named / name).absolute() for name in BINARIES}
    missing = [name for name, path in found.items() if not _is_program(path)]
    if not missing:
        return found
    if folder is not None:
        raise errors.ConfigInvalid(
            f"--assets {folder} lacks {', '.join(missing)}; "
            "name a folder that holds all of " + ", ".join(BINARIES)
        )
    # envtest's folder holds the API server only, and mixed versions do not work together.
    progress.note(f"{ENV_FOLDER}={named} lacks {', '.join(missing)}; not used")
    return None


def _prepare(
    missing: list[str], version: str, target: Path, progress: Progress, source: Source
) -> None:
    etcd_module = source.module("etcd")
    etcd_version = module_version(etcd_module, "go.etcd.io/etcd/server/v3")
    refusal = ""
    try:
        with _staging(target) as staging:
            wanted = downloads.Wanted(version, etcd_version, tuple(missing))
            downloads.fetch(wanted, staging, progress, source.sites)
            _publish(staging, target, missing)
            return
    except downloads.Unavailable as error:
        refusal = str(error)
        progress.note(f"no download: {refusal}")
    jobs = []
    if "etcd" in missing:
        jobs.append(gobuild.Job(etcd_module, {"etcd": gobuild.ETCD_PACKAGE}, "-s -w"))
    kubernetes = {name: f"k8s.io/kubernetes/cmd/{name}" for name in missing if name != "etcd"}
    if kubernetes:
        flags = _kubernetes_flags(version)
        jobs.append(gobuild.Job(source.module("kubernetes"), kubernetes, flags))
    for job in jobs:
        _build(job, target, progress, source.go, refusal)


def _build(job: gobuild.Job, target: Path, progress: Progress, go: str, refusal: str = "") -> None:
    log = cache_dir() / "logs" / f"build-{job.module.name}.log"
    try:
        with _staging(target) as staging:
            gobuild.build(job, staging, log, progress, go)
            _publish(staging, target, list(job.packages))
    except gobuild.NoGo as error:
        no_download = f"the official releases are out of reach ({refusal}) and " if refusal else ""
        raise errors.ConfigInvalid(
            f"no way to {', '.join(job.packages)}: {no_download}{error}. Do one of these: install "
            f"Go {gobuild.go_version(job.module)} or newer (https://go.dev/dl), connect to the "
            f"network, or set {ENV_FOLDER} to a folder with " + ", ".join(BINARIES)
        ) from error


def _kubernetes_flags(version: str) -> str:
    """Without these the API server reports v0.0.0-master, and Helm's kubeVersion checks fail."""
    major, minor = version.removeprefix("v").split(".")[:2]
    stamps = {
        "gitVersion": version,
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
    }
    return "-s -w " + " ".join(f"-X {_VERSION}.{key}={value}" for key, value in stamps.items())


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder on the target's file system, gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".staging-") as folder:
        yield Path(folder)


def _publish(staging: Path, target: Path, names: Iterable[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        program = staging / name
        program.chmod(0o755)
        program.replace(target / name)


@contextlib.contextmanager
def _only_one(target: Path, progress: Progress) -> Iterator[None]:
    """Holds the lock of a cache entry; waits, visibly, while another process prepares it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.with_name(f".{target.name}.lock")
    with lock.open("w") as file:
        if not _locked(file.fileno()):
            until = time.monotonic() + LOCK_DEADLINE_S
            with progress.task(f"another process prepares {target.name}") as task:
                while not _locked(file.fileno()):
                    if time.monotonic() > until:
                        raise errors.ConfigInvalid(
                            f"another process has held {lock} for {LOCK_DEADLINE_S:.0f} s; "
                            "find it with `fuser`, end it and try again"
                        )
                    task.say("waiting")
                    time.sleep(LOCK_POLL_S)
        yield


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
