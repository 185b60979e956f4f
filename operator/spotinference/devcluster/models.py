"""Which engine serves in a cluster, and which model its hub offers."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from spotinference.devcluster import demo_model, engine_env, engine_install, images
from spotinference.devcluster.simengine.model import write_tiny_repo
from spotinference.devcluster.state import Engine
from spotinference.devcluster.topology import Topology

DEMO_MODEL = "spotinference/demo"


def images_of(engine: Engine, topology: Topology) -> images.ImageTable:
    """What the image names of pods stand for."""
    if engine == "sim":
        return images.table(engine_env=images.sim_engine_env(topology.engine))
    vllm = engine_install.engine_path()
    return images.table(engine_argv=(str(vllm), "serve"), engine_env=engine_env.vllm_env())


def provide(engine: Engine, hub: Path) -> None:
    """Puts the demo model into the hub's folder."""
    if engine == "sim":
        write_tiny_repo(hub / DEMO_MODEL)
        return
    # Trained by `dev up` before it came here; this finds it in the cache.
    python = engine_install.engine_python(engine_install.engine_path())
    trained = demo_model.ensure(python, lambda line: print(line, file=sys.stderr, flush=True))
    shutil.copytree(trained, hub / DEMO_MODEL, dirs_exist_ok=True)
