"""Where an embedded cluster keeps its files, and where the user's cache lies."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from spotinference import errors

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class ClusterPaths:
    """All paths of one cluster's state directory."""

    name: str
    root: Path

    @property
    def state_file(self) -> Path:
        return self.root / "cluster.json"

    @property
    def lock_file(self) -> Path:
        """Locked while a supervisor of this cluster lives; next to, not in, what `down` deletes."""
        return self.root.with_name(f".{self.name}.lock")

    @property
    def start_log(self) -> Path:
        """Where a supervisor writes until its state directory exists."""
        return self.root.with_name(f".{self.name}.log")

    @property
    def kubeconfig(self) -> Path:
        """Admin, for the person."""
        return self.root / "kubeconfig"

    @property
    def operator_kubeconfig(self) -> Path:
        return self.root / "operator.kubeconfig"

    @property
    def gateway_kubeconfig(self) -> Path:
        return self.root / "gateway.kubeconfig"

    @property
    def keys_file(self) -> Path:
        return self.root / "keys.json"

    @property
    def audit_log(self) -> Path:
        return self.root / "audit.log"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def etcd(self) -> Path:
        return self.root / "etcd"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def pod_logs(self) -> Path:
        """`<namespace>_<pod>_<container>_<restart>.log`"""
        return self.logs / "pods"

    @property
    def volumes(self) -> Path:
        return self.root / "volumes"

    @property
    def run(self) -> Path:
        """Files that processes need while they run."""
        return self.root / "run"

    @property
    def session_ledger(self) -> Path:
        """The node agent's list of container sessions, for whoever cleans up after it."""
        return self.run / "sessions.jsonl"

    @property
    def hub(self) -> Path:
        """`ORG/NAME/files…`: what the cluster's own model hub serves."""
        return self.root / "hub"

    @property
    def hub_log(self) -> Path:
        """Every request to the hub, with its bytes, as JSON lines."""
        return self.logs / "hub.jsonl"

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"

    def make(self) -> None:
        """Creates the folders; only this user may look inside (keys, tokens, certificates)."""
        for folder in (
            self.root,
            self.pki,
            self.logs,
            self.pod_logs,
            self.volumes,
            self.run,
            self.hub,
        ):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.chmod(0o700)


def clusters_dir() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "spotinference" / "clusters"


def cluster(name: str) -> ClusterPaths:
    """The paths of the cluster of this name, whether or not it exists."""
    if not _NAME.fullmatch(name):
        raise errors.ConfigInvalid(
            f"cluster name {name!r}: use 1 to 40 lower-case letters, digits and dashes"
        )
    return ClusterPaths(name, (clusters_dir() / name).absolute())


def existing() -> list[ClusterPaths]:
    """Every cluster that has a state directory."""
    folder = clusters_dir()
    if not folder.is_dir():
        return []
    return [
        cluster(entry.name)
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and _NAME.fullmatch(entry.name)
    ]


def cache_dir() -> Path:
    """`$SPOTINFERENCE_CACHE_DIR`, else `$XDG_CACHE_HOME/spotinference`, else ~/.cache/…"""
    own = os.environ.get("SPOTINFERENCE_CACHE_DIR")
    if own:
        return Path(own).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return (Path(home) / "spotinference").absolute()
