"""The Hugging Face hub: a revision becomes a commit, and its files become a directory.

Only what an engine loads is taken: safetensors, JSON, tokenizer files. Never pickles, never Python.
A directory is complete when its manifest exists, and the manifest is written last: whoever was
killed before leaves a directory that the next run resumes and no engine accepts.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tenacity

from spotinference import errors

DEFAULT_ENDPOINT = "https://huggingface.co"
REQUEST_TIMEOUT_S = 30.0
ATTEMPTS = 6
MAX_BACKOFF_S = 30.0
WORKERS = 4
PROGRESS_EVERY_S = 5.0

WANTED = (
    "*.safetensors",
    "*.json",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "vocab.txt",
    "merges.txt",
    "LICENSE*",
)
"""What an engine reads. Pickled weights (*.bin, *.pt, *.pth) run code when loaded."""
UNWANTED = ("original/*", "*/checkpoint-*", "onnx/*", "openvino/*", ".*", "*/.*")

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SOURCE = re.compile(r"hf://([\w.-]{1,96})/([\w.-]{1,96})")


class HubError(errors.SpotinferenceError):
    """A fetch failed; `reason` is one word for conditions, `retryable` says whether to try again."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retryable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class HubFile:
    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is to be fetched: a commit and the files of it that an engine reads."""

    repo_id: str
    commit: str
    files: tuple[HubFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


def repo_of(source: str) -> str:
    """`org/name` of `hf://org/name`."""
    match = _SOURCE.fullmatch(source)
    if match is None or ".." in source:
        raise HubError("SourceInvalid", f"source {source!r}: use hf://ORG/NAME")
    return f"{match[1]}/{match[2]}"


class Hub:
    """One hub, as one token. Blocking: runs in a process of its own."""

    def __init__(self, endpoint: str = DEFAULT_ENDPOINT, token: str | None = None) -> None:
        if not endpoint.startswith(("http://", "https://")) or "@" in endpoint:
            raise HubError(
                "EndpointInvalid",
                f"endpoint {_without_userinfo(endpoint)}: use http(s)://HOST[:PORT], no credentials",
            )
        self.endpoint = endpoint.rstrip("/")
        self._token = token
        _quiet_environment()
        from huggingface_hub import HfApi

        self._api = HfApi(endpoint=self.endpoint, token=token or False)

    def resolve(self, repo_id: str, revision: str) -> str:
        """The commit a branch, tag or commit means now."""
        info = self._call(
            f"{repo_id}@{revision}",
            lambda: self._api.model_info(repo_id, revision=revision, timeout=REQUEST_TIMEOUT_S),
        )
        commit = str(info.sha or "")
        if _COMMIT.fullmatch(commit) is None:  # it becomes the name of a directory
            raise HubError("NotAHub", f"{self.endpoint} named no commit for {repo_id}@{revision}")
        return commit

    def snapshot(self, repo_id: str, commit: str) -> Snapshot:
        """The files of a commit that an engine reads; an error when there are no weights."""
        from huggingface_hub.hf_api import RepoFile

        tree = self._call(
            f"{repo_id}@{commit}",
            lambda: list(self._api.list_repo_tree(repo_id, recursive=True, revision=commit)),
        )
        files = tuple(
            HubFile(entry.path, int(entry.size), entry.lfs.sha256 if entry.lfs else None)
            for entry in tree
            if isinstance(entry, RepoFile) and wanted(entry.path)
        )
        names = {file.path for file in files}
        if "config.json" not in names:
            raise HubError("NotAModel", f"{repo_id}@{commit[:12]} has no config.json")
        if not any(name.endswith(".safetensors") for name in names):
            raise HubError(
                "NoSafetensors",
                f"{repo_id}@{commit[:12]} has no *.safetensors file; pickled weights are not "
                "fetched: choose a repository or revision with safetensors",
            )
        return Snapshot(repo_id, commit, files)

    def download(self, snapshot: Snapshot, folder: Path, *, deadline_s: float) -> None:
        """All files into `folder`, resuming what is there; sizes and digests are checked."""
        until = time.monotonic() + deadline_s
        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="fetch")
        try:
            jobs = [pool.submit(self._file, snapshot, file, folder) for file in snapshot.files]
            done, pending = wait(jobs, timeout=max(0.0, until - time.monotonic()))
            _raise_first(done)
            if pending:
                raise HubError(
                    "DeadlineExceeded",
                    f"{len(pending)} of {len(jobs)} files were not fetched within {deadline_s:g} s",
                    retryable=True,
                )
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _file(self, snapshot: Snapshot, file: HubFile, folder: Path) -> None:
        from huggingface_hub import hf_hub_download

        target = folder / file.path
        if target.is_file():
            # Of a run that was cut off, perhaps with its node: the size may be right although
            # blocks never reached the disk.
            if target.stat().st_size == file.size and _digest_holds(target, file, unknown=False):
                return
            target.unlink()
        name = f"{snapshot.repo_id}/{file.path}"
        self._call(
            name,
            lambda: hf_hub_download(
                snapshot.repo_id,
                file.path,
                revision=snapshot.commit,
                local_dir=folder,
                endpoint=self.endpoint,
                token=self._token or False,
                etag_timeout=REQUEST_TIMEOUT_S,
            ),
        )
        size = target.stat().st_size
        if size != file.size:
            target.unlink()
            raise HubError(
                "SizeMismatch",
                f"{name}: {size} bytes arrived, the hub lists {file.size}",
                retryable=True,
            )
        if not _digest_holds(target, file, unknown=True):
            target.unlink()
            raise HubError(
                "WeightsCorrupt",
                f"{name}: the content is not what the hub lists (SHA-256); it is fetched again",
                retryable=True,
            )

    def _call(self, what: str, call: Callable[[], Any]) -> Any:
        """`call` with retries of what may pass, and every failure as a HubError."""

        def once() -> Any:
            try:
                return call()
            except Exception as error:  # noqa: BLE001  (every failure of the library gets a reason)
                raise self._mapped(what, error) from None

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, HubError) and e.retryable),
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=_backoff,
            reraise=True,
        )
        return retrying(once)

    def _mapped(self, what: str, error: Exception) -> HubError:
        if isinstance(error, HubError):
            return error
        text = " ".join(str(error).split())[:400]
        if self._token:
            text = text.replace(self._token, "***")
        where = f"{what} at {self.endpoint}"
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return HubError("CacheFull", f"{what}: no space left on the cache volume")
        kind = type(error).__name__
        status = getattr(getattr(error, "response", None), "status_code", None)
        if kind == "RevisionNotFoundError":
            return HubError("RevisionNotFound", f"{where}: no such branch, tag or commit")
        if kind == "GatedRepoError":
            return HubError(
                "Gated", f"{where}: accept the model's licence with the account of HF_TOKEN"
            )
        if status == 401:
            wrong = "the hub rejected HF_TOKEN" if self._token else "needs a token: set HF_TOKEN"
            return HubError(
                "Unauthorized",
                f"{where}: not found, or private ({wrong} from model.tokenSecretRef)",
            )
        if status == 403:
            return HubError("Forbidden", f"{where}: HF_TOKEN has no access (403)")
        if status == 404 or kind in {"RepositoryNotFoundError", "RemoteEntryNotFoundError"}:
            return HubError("NotFound", f"{where}: no such model (404)")
        if status == 429:
            return HubError(
                "RateLimited",
                f"{where}: too many requests (429)",
                retryable=True,
                retry_after_s=_retry_after(error),
            )
        if isinstance(status, int) and status >= 500:
            return HubError("HubUnavailable", f"{where}: {status}", retryable=True)
        if kind in _NOT_A_HUB or isinstance(error, (KeyError, TypeError)):
            return HubError("NotAHub", f"{where}: the answer is not a hub's ({kind}: {text})")
        return HubError("HubUnavailable", f"{where}: {kind}: {text}", retryable=True)


_NO_SPACE = frozenset({28, 122})
"""ENOSPC, EDQUOT"""
_NOT_A_HUB = frozenset({"JSONDecodeError", "FileMetadataError", "HFValidationError"})


def wanted(path: str) -> bool:
    """Whether an engine reads this file; hidden, foreign and pickled ones are left out, and paths
    that would lead out of the commit's directory (`..` is hidden).
    """
    if path.startswith("/") or any(fnmatch.fnmatch(path, pattern) for pattern in UNWANTED):
        return False
    return any(fnmatch.fnmatch(Path(path).name, pattern) for pattern in WANTED)


@contextmanager
def progress(
    folder: Path, total: int, say: Callable[[str], None], every_s: float = PROGRESS_EVERY_S
) -> Iterator[None]:
    """Says how much of `total` bytes lies in `folder`, each `every_s`, while the block runs."""
    stop = threading.Event()
    began, first = time.monotonic(), bytes_in(folder)

    def watch() -> None:
        while not stop.wait(every_s):
            have = bytes_in(folder)
            speed = max(1.0, (have - first) / (time.monotonic() - began))
            share = 100 * have // max(1, total)
            left = max(0.0, (total - have) / speed)
            say(
                f"fetched {human(have)} of {human(total)} ({share} %), {human(speed)}/s, {left:.0f} s left"
            )

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=1)


def bytes_in(folder: Path) -> int:
    """Bytes below `folder`, unfinished downloads included."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                total += path.stat().st_size
        except OSError:
            continue  # renamed under us
    return total


def human(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _digest_holds(path: Path, file: HubFile, *, unknown: bool) -> bool:
    """Whether the file has the digest that the hub lists; `unknown` where it lists none."""
    if file.sha256 is None:
        return unknown
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def _raise_first(jobs: set[Future[None]]) -> None:
    for job in jobs:
        error = job.exception()
        if error is not None:
            raise error


def _backoff(state: tenacity.RetryCallState) -> float:
    """The hub's Retry-After when it gave one, else exponential with jitter; both capped."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, HubError) and error.retry_after_s is not None:
        return min(error.retry_after_s, MAX_BACKOFF_S)
    return float(tenacity.wait_random_exponential(multiplier=0.5, max=MAX_BACKOFF_S)(state))


def _retry_after(error: Exception) -> float | None:
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return float(headers.get("Retry-After", ""))
    except ValueError:
        return None


def _without_userinfo(endpoint: str) -> str:
    return re.sub(r"//[^@/]*@", "//***@", endpoint)


def _quiet_environment() -> None:
    """Settings the library reads when it is imported first."""
    for name, value in (
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        # xet keeps a second copy of every chunk in HF_HOME, which is no volume of ours.
        ("HF_HUB_DISABLE_XET", "1"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", str(int(REQUEST_TIMEOUT_S))),
    ):
        os.environ.setdefault(name, value)
