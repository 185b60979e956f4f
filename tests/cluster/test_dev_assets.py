"""Where the control plane's programs come from, in order, and how each way fails."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import platform
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from spotinference import errors
from spotinference.devcluster import assets, downloads, gobuild
from spotinference.devcluster.assets import BINARIES, Source
from spotinference.devcluster.downloads import Sites
from spotinference.devcluster.progress import Progress

pytestmark = pytest.mark.cluster

KUBERNETES, ETCD = "v1.36.3", "v3.7.3"
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "amd64")
NOWHERE = Sites("http://127.0.0.1:9/k", "http://127.0.0.1:9/e")
"""The discard port: refused at once."""


@dataclass(slots=True)
class Desk:
    """A person's machine: an empty cache, and what was printed."""

    cache: Path
    output: io.StringIO
    modules: Path

    def find(
        self, folder: Path | None = None, *, sites: Sites = NOWHERE, go: str = "no-such-go"
    ) -> dict[str, Path]:
        console = Console(file=self.output, width=200)
        with Progress(console) as progress:
            return assets.control_plane(folder, progress, Source(sites, go, self.modules))

    @property
    def target(self) -> Path:
        return self.cache / "controlplane" / KUBERNETES

    @property
    def said(self) -> str:
        return self.output.getvalue()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    cache = tmp_path / "cache"
    monkeypatch.setenv("SPOTINFERENCE_CACHE_DIR", str(cache))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    for family, required in {
        "kubernetes": f"k8s.io/kubernetes {KUBERNETES}",
        "etcd": f"go.etcd.io/etcd/server/v3 {ETCD}",
    }.items():
        module = tmp_path / "modules" / family
        module.mkdir(parents=True)
        (module / "go.mod").write_text(f"module x\n\ngo 1.26.0\n\nrequire (\n\t{required}\n)\n")
        (module / "go.sum").touch()
    return Desk(cache, io.StringIO(), tmp_path / "modules")


def programs(folder: Path, names: tuple[str, ...] = BINARIES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


# --- given folders and the cache ------------------------------------------------------------------


def test_a_named_folder_wins_over_environment_and_cache(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(desk.target)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(programs(tmp_path / "env")))
    assert desk.find(programs(tmp_path / "named"))["etcd"] == tmp_path / "named" / "etcd"
    assert desk.find()["etcd"] == tmp_path / "env" / "etcd"


def test_a_named_folder_that_lacks_a_program_is_refused_with_its_name(
    desk: Desk, tmp_path: Path
) -> None:
    folder = programs(tmp_path / "named", ("etcd", "kube-apiserver", "kubectl"))
    with pytest.raises(
        errors.ConfigInvalid, match="lacks kube-controller-manager, kube-scheduler;"
    ):
        desk.find(folder)


def test_an_incomplete_envtest_folder_is_passed_over_with_a_word(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = programs(tmp_path / "env", ("etcd", "kube-apiserver", "kubectl"))
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(folder))
    programs(desk.target)
    assert desk.find()["kubectl"] == desk.target / "kubectl"
    assert "lacks kube-controller-manager, kube-scheduler; not used" in desk.said


def test_the_cache_is_used_without_network_and_go(desk: Desk) -> None:
    programs(desk.target)
    assert desk.find() == {name: desk.target / name for name in BINARIES}


# --- downloads ------------------------------------------------------------------------------------


class ReleaseServer:
    """Serves what dl.k8s.io and etcd's releases would; `files` may be tampered with."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        files = self.files

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = files.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self._publish()

    @property
    def sites(self) -> Sites:
        base = f"http://127.0.0.1:{self._server.server_port}"
        return Sites(f"{base}/k", f"{base}/e")

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _publish(self) -> None:
        for name in BINARIES[1:]:
            path = f"/k/{KUBERNETES}/bin/linux/{ARCH}/{name}"
            body = f"released {name}".encode()
            self.files[path] = body
            self.files[f"{path}.sha256"] = hashlib.sha256(body).hexdigest().encode()
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            for name in ("README.md", "etcdctl", "etcd"):
                body = f"released {name}".encode()
                member = tarfile.TarInfo(f"etcd-{ETCD}-linux-{ARCH}/{name}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
        file = f"etcd-{ETCD}-linux-{ARCH}.tar.gz"
        digest = hashlib.sha256(archive.getvalue()).hexdigest()
        self.files[f"/e/{ETCD}/{file}"] = archive.getvalue()
        sums = f"{'0' * 64}  other.tar.gz\n{digest}  {file}\n"
        self.files[f"/e/{ETCD}/SHA256SUMS"] = sums.encode()


@pytest.fixture
def releases() -> Iterator[ReleaseServer]:
    server = ReleaseServer()
    yield server
    server.close()


def test_an_empty_cache_is_filled_from_the_official_releases(
    desk: Desk, releases: ReleaseServer
) -> None:
    found = desk.find(sites=releases.sites)
    for name in BINARIES:
        assert found[name].read_text() == f"released {name}"
        assert os.access(found[name], os.X_OK)
    assert desk.find() == found


def test_only_what_is_missing_is_downloaded(desk: Desk, releases: ReleaseServer) -> None:
    programs(desk.target, ("kubectl",))
    found = desk.find(sites=releases.sites)
    assert found["kubectl"].read_text() == "#!/bin/sh\n"
    assert found["etcd"].read_text() == "released etcd"


@pytest.mark.parametrize(
    "path",
    [
        f"/k/{KUBERNETES}/bin/linux/{ARCH}/kube-scheduler",
        f"/e/{ETCD}/etcd-{ETCD}-linux-{ARCH}.tar.gz",
    ],
)
def test_a_file_with_another_checksum_is_refused_and_nothing_installed(
    desk: Desk, releases: ReleaseServer, path: str
) -> None:
    releases.files[path] = b"evil"
    with pytest.raises(errors.ConfigInvalid, match=r"SHA-256 .* but its publisher states"):
        desk.find(sites=releases.sites)
    assert not desk.target.exists()
    assert list((desk.cache / "controlplane").glob(".staging-*")) == []


def test_a_release_without_a_checksum_is_not_used(desk: Desk, releases: ReleaseServer) -> None:
    releases.files[f"/e/{ETCD}/SHA256SUMS"] = b"nothing here\n"
    with pytest.raises(errors.ConfigInvalid, match="states no SHA-256"):
        desk.find(sites=releases.sites)


@pytest.fixture
def black_hole() -> Iterator[Sites]:
    """Accepts connections (in the kernel) and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield Sites(f"{base}/k", f"{base}/e")


def test_a_silent_network_is_given_up_within_five_seconds_with_a_sentence_what_to_do(
    desk: Desk, black_hole: Sites
) -> None:
    began_at = time.monotonic()
    with pytest.raises(errors.ConfigInvalid) as caught:
        desk.find(sites=black_hole)
    assert time.monotonic() - began_at < downloads.GIVE_UP_S + 0.5
    sentence = str(caught.value)
    for part in ("out of reach", "127.0.0.1", "install Go 1.26.0", "KUBEBUILDER_ASSETS"):
        assert part in sentence


# --- building -------------------------------------------------------------------------------------

FAKE_GO = """#!/bin/sh
case "$1" in
env) echo {version} ;;
list) echo example.com/a; echo example.com/b ;;
build)
  echo "$CGO_ENABLED $GOTOOLCHAIN $GOFLAGS" "$@" >> {record}
  echo example.com/a >&2
  {build}
  while [ "$1" != -o ]; do shift; done
  out="$2"; shift 2
  for package in "$@"; do
    case "$out" in */) file="$out${{package##*/}}" ;; *) file="$out" ;; esac
    echo built > "$file"
  done ;;
esac
"""


def fake_go(folder: Path, *, version: str = "go1.26.8", build: str = ":") -> str:
    script = folder / "go"
    record = folder / "record"
    script.write_text(FAKE_GO.format(version=version, build=build, record=record))
    script.chmod(0o755)
    return str(script)


def test_without_network_everything_is_built_from_the_module_files(
    desk: Desk, tmp_path: Path
) -> None:
    found = desk.find(go=fake_go(tmp_path))
    assert {path.read_text() for path in found.values()} == {"built\n"}
    etcd, kubernetes = (tmp_path / "record").read_text().splitlines()
    assert etcd.startswith("0 local -mod=readonly build")
    assert etcd.endswith("/etcd go.etcd.io/etcd/server/v3")
    assert f"-X k8s.io/component-base/version.gitVersion={KUBERNETES} " in kubernetes
    assert kubernetes.endswith("k8s.io/kubernetes/cmd/kubectl")
    assert "building etcd: done in" in desk.said


def test_a_failed_build_names_its_log_and_the_last_lines(desk: Desk, tmp_path: Path) -> None:
    go = fake_go(tmp_path, build="echo 'undefined: frobnicate' >&2; exit 1")
    with pytest.raises(errors.ConfigInvalid) as caught:
        desk.find(go=go)
    assert str(desk.cache / "logs" / "build-etcd.log") in str(caught.value)
    assert "undefined: frobnicate" in str(caught.value)
    assert not desk.target.exists()


def test_a_go_that_is_too_old_is_named_with_the_version_needed(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigInvalid, match=r"is Go 1.9.2, older than 1.26.0"):
        desk.find(go=fake_go(tmp_path, version="go1.9.2"))


def test_two_processes_do_not_prepare_at_once(desk: Desk, tmp_path: Path) -> None:
    """The second waits for the first, and then finds everything there."""
    desk.target.parent.mkdir(parents=True)
    lock = (desk.target.parent / f".{KUBERNETES}.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def first_process() -> None:
        programs(desk.target)
        lock.close()

    timer = threading.Timer(0.5, first_process)
    timer.start()
    found = desk.find()  # there is neither network nor Go
    timer.join()
    assert found["etcd"].read_text() == "#!/bin/sh\n"
    assert "another process prepares v1.36.3" in desk.said


def test_the_shipped_module_files_state_one_version_of_each_program() -> None:
    shipped = Source()
    version = assets.module_version(shipped.module("kubernetes"), "k8s.io/kubernetes/cmd/kubectl")
    assert version.startswith("v1.")
    for name in assets.TOOLS:
        assert gobuild.tool_packages(shipped.module(name))
