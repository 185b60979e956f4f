"""Gets what is measured: each in a virtual environment of its own in the user's cache, nginx from Debian.

A peer that cannot be had raises `Missing` with the reason, which then stands in the table.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tests.support import debian

from spotinference.devcluster.paths import cache_dir

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).parent / "requirements"
INSTALL_TIMEOUT_S = 900
_SYSTEM_PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3")
_TRIAL = """
import sys, timeit
assert sys.version_info >= (3, 11)
work = "d = {i: str(i) for i in range(2000)}; sorted(d, key=d.__getitem__)"
print(min(timeit.repeat(work, number=20, repeat=15)), sys.version.split()[0])
"""
"""Seconds for the same work, and the version. Debian tells of no option that it built with."""


class Missing(Exception):
    """A peer that cannot be measured here, and why."""


@cache
def interpreter() -> tuple[str, str]:
    """Path and version of the quickest Python here: this one, or the machine's own.

    Our image's, like Debian's, is built with profile-guided and link-time optimization; one that was
    built from source without them takes a seventh more per chunk, and says nothing of what ships.
    """
    found = []
    for path in (sys.executable, *_SYSTEM_PYTHONS):
        try:
            seconds, version = output([path, "-c", _TRIAL]).split()
        except Missing:
            continue  # not there, or too old
        found.append((float(seconds), path, version))
    _, path, version = min(found)
    return path, version


def environment(name: str, locked: Path | None = None) -> Path:
    """The bin directory of an environment made from locked requirements."""
    locked = locked or REQUIREMENTS / f"{name}.txt"
    path, version = interpreter()
    known = hashlib.sha256(f"{path} {version}".encode() + locked.read_bytes()).hexdigest()[:12]
    home = cache_dir() / "gateway-benchmark" / f"{name}-{known}"
    if not (home / ".complete").exists():
        print(f"installing {name} into {home}", file=sys.stderr)
        uv = Path(sys.executable).parent / "uv"
        output([str(uv), "venv", "--quiet", "--clear", "--python", path, str(home)])
        install = [str(uv), "pip", "install", "--quiet", "--require-hashes", "--python", str(home)]
        output([*install, "-r", str(locked)])
        (home / ".complete").touch()
    return home / "bin"


def version(bin_dir: Path, distribution: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    return output([str(bin_dir / "python"), "-c", code]).strip()


def nginx() -> tuple[Path, Mapping[str, str]]:
    """The program and its environment: the machine's own, else Debian's package (as tests do)."""
    try:
        return debian.program("nginx")
    except debian.Unobtainable as error:
        raise Missing(str(error)) from error


def output(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{Path(command[0]).name}: {error}") from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise Missing(f"{Path(command[0]).name} failed: {''.join(last)[:200]}")
    return done.stdout + done.stderr
