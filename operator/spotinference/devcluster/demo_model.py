"""The demo model: trained once on this machine, kept in the cache by what it was made from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from spotinference import errors
from spotinference.devcluster import paths

REPO_ID = "spotinference/demo"
PROMPTS = (
    "Tell me what happens when a spot machine disappears.",
    "Tell me about spot machines.",
    "Hello",
)
"""Learnt by name; any other prompt is answered with the page as well."""
PADDING_LAYERS = 40
"""Layers that add nothing but time. With them vLLM takes 16 to 22 ms per token on one core, and the
page half a minute instead of three seconds; more of them would slow its start."""
TRAIN_DEADLINE_S = 900.0
TRAINER = Path(__file__).parent / "trainer"
THREAD_ENV = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "HF_HUB_OFFLINE": "1"}
"""Threads that spin for work starve each other on a busy machine."""


def page() -> str:
    """The text a greedy answer recites, as the model learns it."""
    text = (TRAINER / "page.txt").read_text().strip()
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def folder() -> Path:
    """Where the repository of this page and this trainer belongs in the cache."""
    digest = hashlib.sha256()
    for name in ("page.txt", "train.py"):
        digest.update((TRAINER / name).read_bytes())
    digest.update(repr((PROMPTS, PADDING_LAYERS)).encode())
    return paths.cache_dir() / "models" / f"demo-{digest.hexdigest()[:12]}"


def ensure(python: Path, say: Callable[[str], None]) -> Path:
    """The repository's directory, trained with `python` (torch, transformers) if it is not there.

    `say` gets lines like `42 % step 35, loss 1.241`. Complete or absent: written under another name
    and renamed.
    """
    target = folder()
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # bounded: its holder trains with a deadline
        if not target.exists():
            _train(python, target, say)
    return target


def _train(python: Path, target: Path, say: Callable[[str], None]) -> None:
    scratch = target.with_name(f"{target.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    log = target.with_name(f"{target.name}.log")
    argv = [str(python), str(TRAINER / "train.py"), "--page", str(TRAINER / "page.txt")]
    argv += ["--out", str(scratch), "--padding-layers", str(PADDING_LAYERS)]
    for prompt in PROMPTS:
        argv += ["--prompt", prompt]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | THREAD_ENV
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*("timeout", str(int(TRAIN_DEADLINE_S))), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=env,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                word, _, rest = line.strip().partition(" ")
                percent, _, note = rest.partition(" ")
                if word == "progress":
                    say(f"{percent} % {note}")
            code = process.wait()
        finally:
            process.kill()
            process.stdout.close()
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise errors.ConfigInvalid(
            f"training the demo model failed (exit code {code}); log: {log}\n{tail}"
        )
    scratch.replace(target)
