"""Which engine serves in a cluster, and which model its hub offers."""

from __future__ import annotations

import json
import random
from pathlib import Path

from spotinference.devcluster import images
from spotinference.devcluster.state import Engine
from spotinference.devcluster.topology import Topology

DEMO_MODEL = "spotinference/demo"
SIM_WEIGHTS_BYTES = 2 << 20
"""Enough to be listed as a large file and to show in the hub's log."""


def images_of(engine: Engine, topology: Topology) -> images.ImageTable:
    """What the image names of pods stand for."""
    if engine == "sim":
        return images.table(engine_env=images.sim_engine_env(topology.engine))
    raise NotImplementedError


def provide(engine: Engine, hub: Path) -> None:
    """Puts the demo model into the hub's folder."""
    if engine == "vllm":
        raise NotImplementedError
    folder = hub / DEMO_MODEL
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    weights = random.Random(DEMO_MODEL).randbytes(SIM_WEIGHTS_BYTES)  # always the same commit
    (folder / "model.safetensors").write_bytes(weights)
