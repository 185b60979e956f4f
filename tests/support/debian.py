"""nginx and HAProxy for tests: the machine's own, else Debian's packages unpacked in the cache.

No root is needed: packages are downloaded and unpacked, not installed. `make proxies` calls this
module, so that a test run does not begin with a download; a test finds what is there.

    program, environment = debian.program("nginx")
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from spotinference import errors
from spotinference.devcluster.paths import cache_dir

PROXIES = ("nginx", "haproxy")
APT_TIMEOUT_S = 300.0
LOCK_DEADLINE_S = 600.0
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin")
_LIBRARY = re.compile(r"lib(?!c6$|c-bin$)")
"""What a program needs beside itself; never the C library, which must be the machine's own."""


class Unobtainable(errors.ConfigInvalid):
    """There is no such program here and no way to it; the message says what to do."""


@cache
def program(name: str) -> tuple[Path, Mapping[str, str]]:
    """The program and the environment to start it with."""
    found = shutil.which(name, path=os.pathsep.join((os.environ["PATH"], *_SYSTEM_FOLDERS)))
    if found is not None:
        return Path(found), os.environ
    with _only_one(_folder()):
        root = _cached(name) or _fetch(name)
    libraries = sorted({str(path.parent) for path in root.glob("**/*.so.*")})
    path = os.pathsep.join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")]).strip(os.pathsep)
    return root / "usr" / "sbin" / name, {**os.environ, "LD_LIBRARY_PATH": path}


def _folder() -> Path:
    return cache_dir() / "debian"


def _cached(name: str) -> Path | None:
    """The folder of the newest version that was unpacked here; it appears only when it is whole."""
    whole = [path for path in _folder().glob(f"{name}_*") if (path / "usr/sbin" / name).is_file()]
    return max(whole, key=lambda path: path.stat().st_mtime, default=None)


def _fetch(name: str) -> Path:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise _unobtainable(name, "this is no Debian or Ubuntu")
    with tempfile.TemporaryDirectory(dir=_folder(), prefix=".staging-") as staging:
        work = Path(staging)
        (work / "root").mkdir()
        try:
            _download(name, [], work)
        except Unobtainable:  # the machine's lists are absent or old: read our own
            _download(name, _own_lists(work), work)
        packages = list(work.glob("*.deb"))
        for package in packages:
            _run(name, ["dpkg-deb", "--extract", str(package), str(work / "root")])
        own = next(package for package in packages if package.name.startswith(f"{name}_"))
        target = _folder() / own.stem.replace("%3a", "-")
        shutil.rmtree(target, ignore_errors=True)
        (work / "root").replace(target)
    return target


def _download(name: str, options: Sequence[str], folder: Path) -> None:
    """The package and the libraries that the machine lacks for it."""
    simulated = _run(
        name, ["apt-get", *options, "--simulate", "--no-install-recommends", "install", name]
    )
    wanted = [
        package
        for package in re.findall(r"^Inst (\S+)", simulated, re.MULTILINE)
        if package == name or _LIBRARY.match(package)
    ]
    _run(name, ["apt-get", *options, "download", *wanted], folder)


def _own_lists(work: Path) -> list[str]:
    """Options for an apt with lists of its own: an ordinary user may not refresh the machine's."""
    state, archives = work / "state", work / "archives"
    (state / "lists" / "partial").mkdir(parents=True)
    (archives / "archives" / "partial").mkdir(parents=True)
    options = {
        "Dir::State": state,
        "Dir::Cache": archives,
        "Dir::State::status": "/var/lib/dpkg/status",
    }
    flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    _run("the package lists", ["apt-get", *flags, "update"])
    return flags


def _run(name: str, command: Sequence[str], folder: Path | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=APT_TIMEOUT_S,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise _unobtainable(name, f"`{command[0]}` says: {said[-1] if said else 'nothing'}")
    return done.stdout


def _unobtainable(name: str, why: str) -> Unobtainable:
    return Unobtainable(
        f"no {name} on this machine and none to be had: {why}. Install nginx and haproxy with "
        "your package manager, or connect to the network and run `make proxies`"
    )


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Two test processes never unpack at once."""
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + LOCK_DEADLINE_S
    with (folder / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > until:
                    raise errors.ConfigInvalid(
                        f"another process has held {file.name} for {LOCK_DEADLINE_S:.0f} s; "
                        "find it with `fuser`, end it and try again"
                    ) from None
                time.sleep(0.1)
            else:
                break
        yield


def main() -> int:
    """Makes all of them ready and prints where they are."""
    try:
        for name in PROXIES:
            print(f"{name}\t{program(name)[0]}")
    except errors.ConfigInvalid as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
