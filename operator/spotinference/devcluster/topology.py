"""The topology of an embedded cluster: which markets exist, what they hold and how they behave.

A YAML file (`dev up --topology FILE`) or the default below. Parsed once; an error names the field.
Read by the node agent (nodes, markets), by bootstrap (GPUPools) and by nobody else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from spotinference import errors
from spotinference.api import durations
from spotinference.api.model import ApiModel

MAX_CAPACITY = 1000
MAX_MARKETS = 64
NVIDIA_TAINT_KEY = "nvidia.com/gpu"
GPU_RESOURCE = "nvidia.com/gpu"

Provider = Literal["gke", "eks", "karpenter", "nth", "aks", "generic"]
CapacityType = Literal["spot", "on-demand"]


def _seconds(value: object) -> object:
    return durations.seconds(value) if isinstance(value, str) else value


def _not_negative(value: float) -> float:
    if value < 0:
        raise ValueError("must not be negative")
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), AfterValidator(_not_negative)]
"""A duration: `30s`, `1m30s`, or a number of seconds."""
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=40, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
]


class Gpu(ApiModel):
    """What a node of the pool carries."""

    product: str = "NVIDIA-L4"
    count: int = Field(default=1, ge=1, le=16)
    memory_gib: int = Field(default=24, ge=1, le=1024)


class MarketSpec(ApiModel):
    """One zone of a pool. Unset fields are the pool's."""

    zone: Name
    capacity: int = Field(default=4, ge=0, le=MAX_CAPACITY)
    boot_delay: Seconds | None = None
    price: float | None = Field(default=None, ge=0)


class Taint(ApiModel):
    key: str
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class PoolTopology(ApiModel):
    """A kind of GPU node: one `GPUPool` and its markets."""

    name: Name
    capacity_type: CapacityType = "spot"
    provider: Provider = "gke"
    gpu: Gpu = Gpu()
    markets: list[MarketSpec] = Field(min_length=1, max_length=MAX_MARKETS)
    boot_delay: Seconds = 1.0
    notice: Seconds = 30.0
    price: float = Field(default=0.0, ge=0, description="US dollars per node and hour.")
    idle_after: Seconds = Field(default=15.0, description="An empty node goes away after this.")
    cpu: str = "8"
    memory: str = "32Gi"
    labels: dict[str, str] = Field(default={}, description="More node labels.")
    taints: list[Taint] = Field(default=[], description="More node taints.")
    publish: bool = Field(default=True, description="Create the GPUPool of the same name.")

    @model_validator(mode="after")
    def _zones_are_unique(self) -> Self:
        zones = [market.zone for market in self.markets]
        for zone in zones:
            if zones.count(zone) > 1:
                raise ValueError(f"markets name zone {zone!r} twice; merge the two entries")
        return self

    @property
    def zones(self) -> list[str]:
        return [market.zone for market in self.markets]

    def node_labels(self) -> dict[str, str]:
        """What the provider puts on every node of this pool (zone and hostname apart)."""
        selector = pool_label(self.provider, self.name)
        return {
            "nvidia.com/gpu.product": self.gpu.product,
            "nvidia.com/gpu.count": str(self.gpu.count),
            "nvidia.com/gpu.memory": str(self.gpu.memory_gib * 1024),
            "nvidia.com/gpu.present": "true",
            **_gpu_labels(self.provider, self.gpu),
            **capacity_labels(self.provider, self.capacity_type),
            **selector,
            **self.labels,
        }

    def node_taints(self) -> list[Taint]:
        taints = [Taint(key=NVIDIA_TAINT_KEY, value="present")]
        if self.capacity_type == "spot" and self.provider in _SPOT_TAINTS:
            taints.append(_SPOT_TAINTS[self.provider])
        return taints + self.taints

    def node_selector(self) -> dict[str, str]:
        """What tells this pool's nodes from all others: the `GPUPool`'s nodeSelector."""
        return {
            **capacity_labels(self.provider, self.capacity_type),
            **pool_label(self.provider, self.name),
        }

    def tolerations(self) -> list[dict[str, str]]:
        return [
            {"key": taint.key, "operator": "Exists", "effect": taint.effect}
            for taint in self.node_taints()
        ]


class CpuPool(ApiModel):
    """Nodes without a GPU, one kind in every zone: cache jobs run there."""

    capacity: int = Field(default=8, ge=0, le=MAX_CAPACITY, description="Nodes per zone.")
    boot_delay: Seconds = 0.2
    idle_after: Seconds = 60.0
    cpu: str = "16"
    memory: str = "64Gi"


class SimEngine(ApiModel):
    """The load model of the simulated engine; 0 tokens per second: as fast as it can."""

    start_delay: Seconds = Field(default=1.0, description="From start to ready.")
    compile: Seconds = Field(default=0.0, description="More at a start without a compile cache.")
    tokens_per_second: float = Field(default=50.0, ge=0, le=100_000, description="Per stream.")
    prefill_tokens_per_second: float = Field(default=0.0, ge=0)
    step_per_sequence: Seconds = Field(
        default=0.0, description="A batch step gets longer by this much per running stream."
    )
    env: dict[str, str] = Field(default={}, description="More environment for engine pods.")


class Topology(ApiModel):
    pools: list[PoolTopology] = Field(min_length=1, max_length=16)
    cpu: CpuPool = CpuPool()
    engine: SimEngine = SimEngine()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [pool.name for pool in self.pools]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two pools are named {name!r}; give each its own name")
        return self

    @property
    def zones(self) -> list[str]:
        """All zones, sorted."""
        return sorted({zone for pool in self.pools for zone in pool.zones})

    def pool(self, name: str) -> PoolTopology:
        for pool in self.pools:
            if pool.name == name:
                return pool
        known = ", ".join(pool.name for pool in self.pools)
        raise errors.ConfigInvalid(f"no pool {name!r} in this cluster; it has {known}")

    def market(self, pool: str, zone: str) -> MarketSpec:
        for market in self.pool(pool).markets:
            if market.zone == zone:
                return market
        known = ", ".join(f"{pool}/{z}" for z in self.pool(pool).zones)
        raise errors.ConfigInvalid(f"no market {pool}/{zone} in this cluster; it has {known}")


_SPOT_TAINTS: dict[Provider, Taint] = {
    "gke": Taint(key="cloud.google.com/gke-spot", value="true"),
    "aks": Taint(key="kubernetes.azure.com/scalesetpriority", value="spot"),
}


def pool_label(provider: Provider, pool: str) -> dict[str, str]:
    """The label by which a provider names the node pool (group, set) that a node belongs to."""
    match provider:
        case "gke":
            return {"cloud.google.com/gke-nodepool": pool}
        case "eks" | "nth":
            return {"eks.amazonaws.com/nodegroup": pool}
        case "karpenter":
            return {"karpenter.sh/nodepool": pool}
        case "aks":
            return {"kubernetes.azure.com/agentpool": pool}
        case "generic":
            return {"node-pool": pool}


def capacity_labels(provider: Provider, capacity_type: CapacityType) -> dict[str, str]:
    """The label by which a provider tells spot nodes from others; some label on-demand nodes not."""
    spot = capacity_type == "spot"
    match provider:
        case "gke":
            return {"cloud.google.com/gke-spot": "true"} if spot else {}
        case "eks" | "nth":
            return {"eks.amazonaws.com/capacityType": "SPOT" if spot else "ON_DEMAND"}
        case "karpenter":
            return {"karpenter.sh/capacity-type": "spot" if spot else "on-demand"}
        case "aks":
            return {"kubernetes.azure.com/scalesetpriority": "spot"} if spot else {}
        case "generic":
            return {"capacity-type": capacity_type}


def _gpu_labels(provider: Provider, gpu: Gpu) -> dict[str, str]:
    match provider:
        case "gke":
            return {"cloud.google.com/gke-accelerator": gpu.product.lower()}
        case "karpenter":
            short = gpu.product.lower().removeprefix("nvidia-").removeprefix("tesla-")
            return {
                "karpenter.k8s.aws/instance-gpu-name": short,
                "karpenter.k8s.aws/instance-gpu-count": str(gpu.count),
            }
        case "eks" | "nth" | "aks" | "generic":
            return {}


DEFAULT = """
pools:
  - name: spot-l4
    provider: gke
    gpu: {product: NVIDIA-L4, memoryGib: 24}
    price: 0.28
    notice: 30s
    bootDelay: 1s
    markets:
      - {zone: zone-a, capacity: 4}
      - {zone: zone-b, capacity: 4}
  - name: spot-a100
    provider: karpenter
    gpu: {product: NVIDIA-A100-SXM4-40GB, memoryGib: 40}
    price: 1.15
    notice: 120s
    bootDelay: 1s
    markets:
      - {zone: zone-a, capacity: 2}
      - {zone: zone-b, capacity: 2}
  - name: on-demand-l4
    provider: gke
    capacityType: on-demand
    gpu: {product: NVIDIA-L4, memoryGib: 24}
    price: 0.71
    bootDelay: 1s
    markets:
      - {zone: zone-a, capacity: 4}
"""


def default() -> Topology:
    """Two spot pools in two zones each, and one on-demand pool."""
    return parse(DEFAULT, "the default topology")


def load(path: Path) -> Topology:
    try:
        text = path.read_text()
    except OSError as error:
        raise errors.ConfigInvalid(f"topology file {path}: {error.strerror}") from error
    return parse(text, f"topology file {path}")


def parse(text: str, origin: str) -> Topology:
    """`ConfigInvalid` names each wrong field by its path, and its value."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise errors.ConfigInvalid(f"{origin} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise errors.ConfigInvalid(f"{origin} must be a mapping with the key 'pools'")
    try:
        return Topology.model_validate(raw)
    except ValidationError as error:
        lines = [_sentence(problem) for problem in error.errors(include_url=False)]
        raise errors.ConfigInvalid(f"{origin}: " + "; ".join(lines)) from error


def _sentence(problem: object) -> str:
    assert isinstance(problem, dict)
    path = ""
    for part in problem["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    value = problem.get("input")
    shown = "" if isinstance(value, dict | list) else f" (is {value!r})"
    return f"{path.lstrip('.') or 'pools'}: {message}{shown}"
