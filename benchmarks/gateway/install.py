"""Gets the peers: each in a virtual environment of its own in the user's cache, nginx from Debian.

A peer that cannot be had raises `Missing` with the reason, which then stands in the table.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support import debian

from spotinference.devcluster.paths import cache_dir

REQUIREMENTS = Path(__file__).parent / "requirements"
INSTALL_TIMEOUT_S = 900


class Missing(Exception):
    """A peer that cannot be measured here, and why."""


def environment(name: str) -> Path:
    """The bin directory of a peer's environment, made from its locked requirements."""
    locked = REQUIREMENTS / f"{name}.txt"
    known = hashlib.sha256(locked.read_bytes()).hexdigest()[:12]
    home = cache_dir() / "gateway-benchmark" / f"{name}-{known}"
    if not (home / ".complete").exists():
        print(f"installing {name} into {home}", file=sys.stderr)
        uv = Path(sys.executable).parent / "uv"
        output([str(uv), "venv", "--quiet", "--clear", "--python", sys.executable, str(home)])
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
