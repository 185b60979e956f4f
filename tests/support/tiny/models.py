"""Tiny models for the real vLLM, made on this machine in seconds and kept in its cache.

thinker   recites answers with reasoning and tool calls, by heart
seer      takes pictures; says nonsense that depends on them
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from spotinference.devcluster import engine_install, paths
from spotinference.devcluster.demo_model import THREAD_ENV

MAKE_DEADLINE_S = 280.0
HERE = Path(__file__).parent


def ensure(name: str) -> Path:
    """The model's folder: complete or absent. `CalledProcessError` says what its maker said."""
    maker = HERE / f"{name}.py"
    digest = hashlib.sha256(maker.read_bytes()).hexdigest()[:12]
    target = paths.cache_dir() / "models" / f"{name}-{digest}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # bounded: its holder makes it with a deadline
        if not target.exists():
            scratch = target.with_name(f"{target.name}.partial")
            shutil.rmtree(scratch, ignore_errors=True)
            _make(maker, scratch)
            scratch.replace(target)
    return target


def _make(maker: Path, into: Path) -> None:
    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    python = engine_install.engine_python(engine_install.install(say))
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | THREAD_ENV
    argv = [str(python), str(maker), str(into)]
    subprocess.run(argv, env=env, timeout=MAKE_DEADLINE_S, check=True)


def prompt_embeds() -> str:
    """A prompt of the thinker as `prompt_embeds` takes it."""
    return (ensure("thinker") / "embeds.txt").read_text()
