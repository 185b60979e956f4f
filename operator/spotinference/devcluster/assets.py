"""temporary"""

from pathlib import Path

from spotinference.devcluster.paths import cache_dir
from spotinference.devcluster.progress import Progress

BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")


def control_plane(folder: Path | None, progress: Progress) -> dict[str, Path]:
    where = folder or cache_dir() / "controlplane" / "v1.36.3"
    return {name: where / name for name in BINARIES}
