"""`spotinference weights fetch`: fills a cache volume with a model's weights."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from spotinference.clients import cache_volume
from spotinference.clients.hub import (
    DEFAULT_ENDPOINT,
    Hub,
    HubError,
    bytes_in,
    human,
    progress,
    repo_of,
)

app = typer.Typer(no_args_is_help=True, help="Model weights on a cache volume.")

ENV_TERMINATION_LOG = "SPOTINFERENCE_TERMINATION_LOG"
DEFAULT_TERMINATION_LOG = "/dev/termination-log"
MAX_RESULT_BYTES = 3500
"""Kubernetes keeps 4096 bytes of a termination message."""
EXIT_RETRYABLE = 1
EXIT_PERMANENT = 3
"""Apart from typer's own 2 for wrong usage."""
DEFAULT_DEADLINE_S = 6 * 3600.0
_COMMIT = re.compile(r"[0-9a-f]{40}")


@app.callback()
def weights() -> None:
    """Model weights on a cache volume."""


@app.command()
def fetch(
    source: Annotated[str, typer.Option(help="hf://ORG/NAME")],
    dest: Annotated[Path, typer.Option(help="Directory that gets one directory per commit.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    endpoint: Annotated[
        str, typer.Option(envvar="HF_ENDPOINT", help="Address of the hub.")
    ] = DEFAULT_ENDPOINT,
    deadline_s: Annotated[
        float, typer.Option("--deadline", help="Seconds in all.")
    ] = DEFAULT_DEADLINE_S,
) -> None:
    """Fetch a model into DEST/<commit>; a second run downloads nothing.

    The token comes from HF_TOKEN alone. The result goes to the pod's termination message: the
    commit and the bytes, or an error with one word as its reason.
    """
    try:
        result = _fetch(source, revision, dest, endpoint, time.monotonic() + deadline_s)
    except HubError as error:
        _report({"error": error.reason, "message": str(error)})
        _say(f"error: {error.reason}: {error}")
        # Download threads may still hang in a read: they must not keep the process.
        _leave(EXIT_RETRYABLE if error.retryable else EXIT_PERMANENT)
    except OSError as error:
        reason = "CacheFull" if error.errno == 28 else "CacheUnusable"
        message = f"{error.filename or dest}: {error.strerror}"
        _report({"error": reason, "message": message})
        _say(f"error: {reason}: {message}")
        _leave(EXIT_PERMANENT)
    else:
        _report(result)
        _leave(0)


def _fetch(
    source: str, revision: str, dest: Path, endpoint: str, until: float
) -> dict[str, str | int]:
    repo_id = repo_of(source)
    dest.mkdir(parents=True, exist_ok=True)
    if _COMMIT.fullmatch(revision) and cache_volume.is_complete(dest / revision):
        return _already(dest / revision, revision)
    hub = Hub(endpoint, os.environ.get("HF_TOKEN") or None)
    commit = hub.resolve(repo_id, revision)
    _say(f"{repo_id}@{revision} is commit {commit}")
    folder = dest / commit
    with cache_volume.locked(dest, deadline_s=_left(until), say=_say):
        if cache_volume.is_complete(folder):
            return _already(folder, commit)
        snapshot = hub.snapshot(repo_id, commit)
        folder.mkdir(parents=True, exist_ok=True)
        had = bytes_in(folder)
        cache_volume.check_space(folder, snapshot)
        _say(f"fetching {len(snapshot.files)} files, {human(snapshot.total_bytes)}")
        with progress(folder, snapshot.total_bytes, _say):
            hub.download(snapshot, folder, deadline_s=_left(until))
        cache_volume.complete(folder, snapshot)
    fetched = max(0, snapshot.total_bytes - had)
    _say(f"complete: {human(snapshot.total_bytes)}, {human(fetched)} of it downloaded now")
    return {"revision": commit, "bytes": snapshot.total_bytes, "downloadedBytes": fetched}


def _already(folder: Path, commit: str) -> dict[str, str | int]:
    _say(f"{commit} is complete on this volume: nothing to download")
    return {"revision": commit, "bytes": cache_volume.size_of(folder), "downloadedBytes": 0}


def _left(until: float) -> float:
    return max(1.0, until - time.monotonic())


def _report(result: dict[str, str | int]) -> None:
    """One JSON object in the termination message; outside a pod there is none."""
    path = Path(os.environ.get(ENV_TERMINATION_LOG) or DEFAULT_TERMINATION_LOG)
    text = json.dumps(result)
    if len(text) > MAX_RESULT_BYTES:
        short = {**result, "message": str(result.get("message", ""))[:1000]}
        text = json.dumps(short)
    try:
        if path.exists() or path.parent != Path("/dev"):
            path.write_text(text)
    except OSError as error:
        _say(f"cannot write {path}: {error.strerror}")
    print(text, flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
