"""Which engine serves in a cluster, and which model its hub offers."""

from __future__ import annotations

from pathlib import Path

from spotinference.devcluster import images
from spotinference.devcluster.simengine.model import write_tiny_repo
from spotinference.devcluster.state import Engine
from spotinference.devcluster.topology import Topology

DEMO_MODEL = "spotinference/demo"


def images_of(engine: Engine, topology: Topology) -> images.ImageTable:
    """What the image names of pods stand for."""
    if engine == "sim":
        return images.table(engine_env=images.sim_engine_env(topology.engine))
    raise NotImplementedError


def provide(engine: Engine, hub: Path) -> None:
    """Puts the demo model into the hub's folder."""
    if engine == "sim":
        write_tiny_repo(hub / DEMO_MODEL)
        return
    raise NotImplementedError
