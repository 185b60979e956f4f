"""Removes what a killed supervisor left behind outside its state directory."""

from __future__ import annotations

from spotinference.devcluster import processes, sessions, shortcuts
from spotinference.devcluster.paths import ClusterPaths


def clean(paths: ClusterPaths) -> list[int]:
    """Kills all that carries the cluster's markers, containers that hide theirs included.

    Returns the ids of the marked ones. Call it before the state directory goes: the ledger of
    container sessions lies there.
    """
    sessions.kill_leftovers(paths, paths.session_ledger)
    killed = processes.sweep(paths)
    shortcuts.forget(paths.root)
    return killed
