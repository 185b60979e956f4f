"""Images of the embedded cluster: which local program an image stands for.

There is no registry: an image that nobody mapped fails as a pull would (`ErrImagePull`). Built by
the supervisor, read by the node agent.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import spotinference
from spotinference.devcluster.topology import SimEngine

ENGINE_IMAGES = ("vllm/vllm-openai*", "*/vllm/vllm-openai*")
OWN_IMAGES = ("ghcr.io/spotinference/spotinference*",)
SHELL_IMAGES = ("busybox*", "docker.io/library/busybox*")
PYTHON_IMAGES = ("python*", "docker.io/library/python*")


class ImageUnknown(Exception):
    """No local program stands for this image; the message lists those that have one."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a container of this image runs."""

    entrypoint: tuple[str, ...] = ()
    programs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Programs "inside" the image, by name: a pod's `command` is looked up here, then on PATH."""
    env: Mapping[str, str] = field(default_factory=dict)
    host_flag: bool = False
    """Its program listens on all addresses unless told otherwise by `--host`."""


@dataclass(frozen=True, slots=True)
class ImageTable:
    """Patterns in order; the first that matches wins."""

    entries: tuple[tuple[str, Image], ...]

    def find(self, reference: str) -> Image:
        for pattern, image in self.entries:
            if fnmatchcase(reference, pattern):
                return image
        known = ", ".join(sorted({pattern for pattern, _ in self.entries}))
        raise ImageUnknown(
            f'failed to pull image "{reference}": the embedded cluster has no registry; '
            f"it runs {known}"
        )


def table(
    engine_argv: Sequence[str] | None = None, engine_env: Mapping[str, str] | None = None
) -> ImageTable:
    """The images of a cluster; `engine_argv` replaces `vllm serve`, by default the sim engine."""
    argv = tuple(engine_argv or sim_engine_argv())
    own = own_argv()
    engine = Image(
        entrypoint=argv,
        programs={"vllm": argv[:-1] if argv[-1] == "serve" else argv},
        env={**_own_env(argv), **(engine_env or {})},
        host_flag=True,
    )
    ours = Image(entrypoint=own, programs={"spotinference": own}, env=_own_env(own))
    python = (sys.executable,)
    scripts = Image(programs={"python": python, "python3": python}, entrypoint=python)
    return ImageTable(
        tuple((pattern, engine) for pattern in ENGINE_IMAGES)
        + tuple((pattern, ours) for pattern in OWN_IMAGES)
        + tuple((pattern, scripts) for pattern in PYTHON_IMAGES)
        + tuple((pattern, Image()) for pattern in SHELL_IMAGES)
    )


def sim_engine_env(engine: SimEngine) -> dict[str, str]:
    """The load model of a topology as the simulated engine's environment."""
    return {
        "SPOTINFERENCE_SIM_START_DELAY_S": f"{engine.start_delay:g}",
        "SPOTINFERENCE_SIM_COMPILE_S": f"{engine.compile:g}",
        "SPOTINFERENCE_SIM_TOKENS_PER_S": f"{engine.tokens_per_second:g}",
        "SPOTINFERENCE_SIM_PREFILL_TOKENS_PER_S": f"{engine.prefill_tokens_per_second:g}",
        "SPOTINFERENCE_SIM_STEP_PER_SEQ_S": f"{engine.step_per_sequence:g}",
        **engine.env,
    }


def sim_engine_argv() -> tuple[str, ...]:
    return (sys.executable, "-m", "spotinference.devcluster.simengine", "serve")


def own_argv() -> tuple[str, ...]:
    return (sys.executable, "-m", "spotinference")


def _own_env(argv: Sequence[str]) -> dict[str, str]:
    """Our own modules must be found from any working directory, installed or not."""
    if argv[0] != sys.executable:
        return {}
    return {"PYTHONPATH": str(Path(spotinference.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
