"""Which embedded cluster a `spotinference dev …` command means."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from spotinference import errors
from spotinference.devcluster import paths, state

DEFAULT_NAME = "default"

Name = Annotated[
    str | None, typer.Option("--name", help="Which cluster.", show_default=DEFAULT_NAME)
]


def cluster_paths(ctx: typer.Context, name: str | None) -> paths.ClusterPaths:
    """By --name of the command or of `dev`, the environment, or the default."""
    return paths.cluster(name or ctx.obj or os.environ.get("SPOTINFERENCE_DEV_NAME", DEFAULT_NAME))


def running(where: paths.ClusterPaths) -> state.ClusterState:
    """Its state; `NotFound` when no such cluster runs."""
    found = state.load(where)
    if found is None or not state.is_running(where):
        raise errors.NotFound(
            f"no cluster {where.name!r} is running; "
            f"start it with `spotinference dev up --name {where.name}`"
        )
    return found
