"""What a supervisor is started with; light, because `dev up` waits for nothing else."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from spotinference.devcluster.state import Engine
from spotinference.devcluster.topology import Topology


class Options(BaseModel):
    """What `dev up` decided."""

    name: str
    engine: Engine
    topology: Topology
    binaries: dict[str, Path]
    vllm: Path | None = None
    """The real engine's executable; None: the simulated engine"""
    demo_model: Path | None = None
    """The repository that the hub offers; None: one that the simulated engine loads"""
    operator: bool = True
    gateway: bool = True
    gateway_port: int = 0
