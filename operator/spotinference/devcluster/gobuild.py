"""Builds programs from a go.mod of ours: exact versions, checked by go.sum, no C compiler.

Called by `assets` only, which holds the lock and publishes the result.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from spotinference import errors
from spotinference.devcluster.processes import log_excerpt
from spotinference.devcluster.progress import Progress, Task

ETCD_PACKAGE = "go.etcd.io/etcd/server/v3"
LIST_TIMEOUT_S = 900.0
"""Counting the packages downloads the modules first."""
ENVIRONMENT = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}


class NoGo(Exception):
    """There is no Go on this machine that could build it."""


@dataclass(frozen=True, slots=True)
class Job:
    module: Path
    """The folder with go.mod and go.sum; may be read-only"""
    packages: Mapping[str, str]
    """Program name → package; with several, each is named like its package's last element"""
    ldflags: str


def build(job: Job, target: Path, log: Path, progress: Progress, go: str = "go") -> None:
    """Puts the programs into `target`; a failure names the log file and its last lines."""
    program = shutil.which(go)
    if program is None:
        raise NoGo("there is no `go` on PATH")
    _require_version(program, job.module)
    log.parent.mkdir(parents=True, exist_ok=True)
    names = ", ".join(job.packages)
    with tempfile.TemporaryDirectory(prefix="spotinference-build-") as folder, log.open("w") as out:
        for file in ("go.mod", "go.sum"):
            shutil.copy(job.module / file, folder)
        with progress.task(f"building {names}") as task:
            task.say("downloading modules")
            task.expect(_count_packages(program, job, Path(folder), out, log))
            _compile(program, job, target, Path(folder), out, log, task)


def tool_packages(module: Path) -> list[str]:
    """The packages that a go.mod declares as its tools."""
    return re.findall(r"^tool (\S+)$", (module / "go.mod").read_text(), re.MULTILINE)


def go_version(module: Path) -> str:
    """The least Go version that a go.mod asks for, e.g. `1.26.0`."""
    found = re.search(r"^go (\S+)$", (module / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise errors.ConfigInvalid(f"{module / 'go.mod'} states no Go version")
    return found[1]


def _require_version(program: str, module: Path) -> None:
    output = subprocess.run(
        [program, "env", "GOVERSION"], capture_output=True, text=True, timeout=30, check=False,
        env={**os.environ, **ENVIRONMENT}, cwd=tempfile.gettempdir(),
    ).stdout  # fmt: skip
    found = re.match(r"go(\d+(?:\.\d+)*)", output.strip())
    if found is None:
        raise NoGo(f"{program} does not say its version")
    needed = go_version(module)
    if _numbers(found[1]) < _numbers(needed):
        raise NoGo(f"{program} is Go {found[1]}, older than {needed}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _count_packages(program: str, job: Job, folder: Path, out: IO[str], log: Path) -> int:
    """How many packages the build consists of: the length of the progress bar."""
    argv = [program, "list", "-deps", *job.packages.values()]
    listing = subprocess.run(
        argv,
        stdout=subprocess.PIPE,
        stderr=out,
        text=True,
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        timeout=LIST_TIMEOUT_S,
        check=False,
    )
    if listing.returncode != 0:
        raise errors.ConfigInvalid(
            f"`go list` for {', '.join(job.packages)} failed; {log_excerpt(log)}"
        )
    return len(set(listing.stdout.split()))


def _compile(
    program: str, job: Job, target: Path, folder: Path, out: IO[str], log: Path, task: Task
) -> None:
    """One `go build` for all programs, so that their compiling and linking overlap."""
    packages = list(job.packages.values())
    # With a folder as -o, Go names each program after its package; a single one is named by us.
    output = f"{target}/" if len(packages) > 1 else str(target / next(iter(job.packages)))
    process = subprocess.Popen(
        [program, "build", "-v", "-trimpath", "-ldflags", job.ldflags, "-o", output, *packages],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:  # -v: one line per package as it is compiled
            out.write(line)
            task.advance()
            task.say(line.strip()[:60])
        code = process.wait()
    finally:  # Ctrl-C
        process.kill()
        process.stderr.close()
        process.wait()
    out.flush()
    if code != 0:
        names = ", ".join(job.packages)
        raise errors.ConfigInvalid(f"building {names} failed; {log_excerpt(log)}")
