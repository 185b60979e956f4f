"""A cache volume is filled once, resumed when cut, and every failure has its reason."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import shutil
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spotinference.clients import cache_volume
from spotinference.clients.hub import HubError, HubFile, Snapshot, repo_of, wanted
from spotinference.devcluster.hub import HubFault, HubServer
from spotinference.devcluster.simengine.model import write_tiny_repo

REPO = "spotinference/demo"
WEIGHT_BYTES = 3_000_000
TOKEN = "hf_secret_value"


@dataclass(slots=True)
class Bench:
    """A hub, a volume, and the command as a pod runs it."""

    hub: HubServer
    volume: Path
    termination: Path
    said: str = ""

    async def fetch(
        self, *, source: str = f"hf://{REPO}", revision: str = "main", token: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        env = {k: v for k, v in os.environ.items() if k not in {"HF_TOKEN", "HF_ENDPOINT"}}
        env["SPOTINFERENCE_TERMINATION_LOG"] = str(self.termination)
        if token:
            env["HF_TOKEN"] = token
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "spotinference", "weights", "fetch"),
            *("--source", source, "--revision", revision, "--dest", str(self.volume)),
            *("--endpoint", self.hub.url, "--deadline", "60"),
            env={**env, "PYTHONPATH": str(Path(cache_volume.__file__).parents[2])},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 90)
        self.said = out.decode()
        return process.returncode or 0, json.loads(self.termination.read_text())

    def downloaded(self) -> int:
        assert self.hub.log is not None
        lines = [json.loads(line) for line in self.hub.log.read_text().splitlines()]
        return sum(line["bytes"] for line in lines if "/resolve/" in line["path"])


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    root = tmp_path / "hub"
    write_tiny_repo(root / REPO, weight_bytes=WEIGHT_BYTES)
    (root / REPO / "pytorch_model.bin").write_bytes(b"\x80pickle")
    (root / REPO / "modeling.py").write_text("import os")
    server = HubServer(root, log=tmp_path / "hub.log")
    await server.start()
    yield Bench(server, tmp_path / "volume", tmp_path / "termination")
    await server.stop()


async def test_a_second_fetch_downloads_nothing(bench: Bench) -> None:
    code, result = await bench.fetch()
    assert code == 0, bench.said
    folder = bench.volume / result["revision"]
    assert cache_volume.is_complete(folder)
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    first = bench.downloaded()
    assert first == result["downloadedBytes"] == result["bytes"]
    again = await bench.fetch()
    assert again == (0, {**result, "downloadedBytes": 0})
    assert bench.downloaded() == first


async def test_a_complete_commit_needs_no_hub_at_all(bench: Bench) -> None:
    _, result = await bench.fetch()
    await bench.hub.stop()
    code, again = await bench.fetch(revision=result["revision"])
    assert (code, again["downloadedBytes"]) == (0, 0)


async def test_a_cut_download_is_completed_and_a_short_file_is_fetched_again(bench: Bench) -> None:
    bench.hub.fault = HubFault(cut_after=1_000_000, match="safetensors")
    code, result = await bench.fetch()
    assert code == 0, bench.said
    folder = bench.volume / result["revision"]
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert not cache_volume.is_complete(folder)
    assert (await bench.fetch())[0] == 0
    assert cache_volume.is_complete(folder)


async def test_what_a_lost_node_left_with_the_right_size_is_fetched_again(bench: Bench) -> None:
    _, result = await bench.fetch()
    folder = bench.volume / result["revision"]
    sound = {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json")}
    (folder / cache_volume.MANIFEST).unlink()
    for name, content in sound.items():
        (folder / name).write_bytes(bytes(len(content)))  # blocks that never reached the disk
    assert (await bench.fetch())[0] == 0
    assert {name: (folder / name).read_bytes() for name in sound} == sound


async def test_weights_that_are_not_what_the_hub_lists_never_make_a_cache(bench: Bench) -> None:
    served = bench.hub.root / REPO / "model.safetensors"
    sound, before = served.read_bytes(), served.stat()
    bench.hub.revisions(REPO)  # the digests that it lists
    served.write_bytes(bytes(len(sound)))
    os.utime(served, ns=(before.st_atime_ns, before.st_mtime_ns))
    code, result = await bench.fetch()
    assert (code, result["error"]) == (1, "WeightsCorrupt"), bench.said
    (folder,) = (path for path in bench.volume.iterdir() if path.is_dir())
    assert not cache_volume.is_complete(folder)
    served.write_bytes(sound)
    os.utime(served, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (await bench.fetch())[0] == 0
    assert (folder / served.name).read_bytes() == sound


async def test_failures_that_pass_are_retried(bench: Bench) -> None:
    bench.hub.fault = HubFault(status=503, times=2)
    assert (await bench.fetch())[0] == 0
    shutil.rmtree(bench.volume)
    bench.hub.fault = HubFault(status=429, times=1, headers={"Retry-After": "0"})
    assert (await bench.fetch())[0] == 0


@pytest.mark.parametrize(
    ("fault", "reason", "code"),
    [
        (HubFault(status=401, times=99), "Unauthorized", 3),
        (HubFault(status=403, times=99), "Forbidden", 3),
        (HubFault(status=404, times=99), "NotFound", 3),
        (HubFault(status=200, times=99, body="<html>", content_type="text/html"), "NotAHub", 3),
        (HubFault(status=429, times=999, headers={"Retry-After": "0"}), "RateLimited", 1),
    ],
)
async def test_every_answer_of_the_hub_has_its_reason(
    bench: Bench, fault: HubFault, reason: str, code: int
) -> None:
    bench.hub.fault = fault
    assert (await bench.fetch(token=TOKEN))[0] == code
    result = json.loads(bench.termination.read_text())
    assert result["error"] == reason
    assert REPO in result["message"]
    assert TOKEN not in bench.said + json.dumps(result)


async def test_unknown_models_revisions_and_sources_are_told_apart(bench: Bench) -> None:
    assert (await bench.fetch(source="hf://no/such"))[1]["error"] == "NotFound"
    assert (await bench.fetch(revision="v9"))[1]["error"] == "RevisionNotFound"
    assert (await bench.fetch(source="s3://bucket/x"))[1]["error"] == "SourceInvalid"


@pytest.mark.parametrize("sha", ["../../elsewhere", "/etc", "main", ""])
async def test_a_commit_that_is_none_names_no_directory(bench: Bench, sha: str) -> None:
    body = json.dumps({"_id": "1", "id": REPO, "modelId": REPO, "sha": sha, "siblings": []})
    bench.hub.fault = HubFault(status=200, times=9, body=body, match="/api/models")
    code, result = await bench.fetch()
    assert (code, result["error"]) == (3, "NotAHub"), bench.said
    assert [path for path in bench.volume.iterdir() if path.is_dir()] == []


async def test_a_repository_without_safetensors_is_refused(bench: Bench) -> None:
    (bench.hub.root / REPO / "model.safetensors").unlink()
    code, result = await bench.fetch()
    assert (code, result["error"]) == (3, "NoSafetensors")


async def test_a_hub_that_is_gone_is_worth_another_try(bench: Bench) -> None:
    await bench.hub.stop()
    code, result = await bench.fetch()
    assert (code, result["error"]) == (1, "HubUnavailable")


async def test_two_fetches_at_once_download_once(bench: Bench) -> None:
    other = Bench(bench.hub, bench.volume, bench.termination.with_name("other"))
    one, two = await asyncio.gather(bench.fetch(), other.fetch())
    assert (one[0], two[0]) == (0, 0)
    assert 0 in (one[1]["downloadedBytes"], two[1]["downloadedBytes"])
    assert bench.downloaded() == one[1]["bytes"]


async def test_the_token_opens_a_private_model(bench: Bench) -> None:
    bench.hub.token = TOKEN
    assert (await bench.fetch())[1]["error"] == "Unauthorized"
    assert (await bench.fetch(token=TOKEN))[0] == 0


def test_too_little_space_is_said_in_numbers(tmp_path: Path) -> None:
    snapshot = Snapshot("org/huge", "c" * 40, (HubFile("model.safetensors", 10**17, None),))
    with pytest.raises(HubError, match=r"needs 100000\.0 TB more, the cache volume has") as caught:
        cache_volume.check_space(tmp_path, snapshot)
    assert caught.value.reason == "CacheFull"


def test_a_volume_that_cannot_sync_directories_is_completed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SMB shares of older kernels and some FUSE volumes answer EINVAL."""
    really = os.fsync

    def fsync(number: int) -> None:
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        really(number)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = tmp_path / "commit"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    cache_volume.complete(folder, Snapshot(REPO, "c" * 40, (HubFile("config.json", 2, None),)))
    assert cache_volume.is_complete(folder)


def test_a_held_lock_ends_the_wait_at_the_deadline(tmp_path: Path) -> None:
    with (tmp_path / cache_volume.LOCK).open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with (
            pytest.raises(HubError, match="held the volume"),
            cache_volume.locked(tmp_path, deadline_s=0, say=lambda _: None),
        ):
            pass


@pytest.mark.parametrize("path", ["model.safetensors", "config.json", "a/b.safetensors"])
def test_what_an_engine_reads_is_wanted(path: str) -> None:
    assert wanted(path)


@pytest.mark.parametrize(
    "path", ["pytorch_model.bin", "x.pt", "modeling.py", ".env.json", "original/a.safetensors"]
)
def test_pickles_code_and_copies_are_not_wanted(path: str) -> None:
    assert not wanted(path)


@pytest.mark.parametrize("path", ["/etc/config.json", "../config.json", "a/../../b.safetensors"])
def test_a_path_out_of_the_directory_is_not_wanted(path: str) -> None:
    assert not wanted(path)


@pytest.mark.parametrize("source", ["hf://a", "hf://a/b/c", "hf://../x", "hf:///x", "hf://a/b\n"])
def test_a_source_that_is_no_repository_is_refused(source: str) -> None:
    with pytest.raises(HubError, match="use hf://ORG/NAME"):
        repo_of(source)
