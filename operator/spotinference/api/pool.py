"""`GPUPool`: a kind of GPU node that an administrator offers; cluster-scoped."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from spotinference.api.model import ApiModel

LabelValue = Annotated[str, StringConstraints(max_length=63)]


class Toleration(ApiModel):
    key: Annotated[str, StringConstraints(min_length=1, max_length=316)]
    operator: Literal["Exists", "Equal"] = "Exists"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class PoolSpec(ApiModel):
    capacity_type: Literal["spot", "on-demand"]
    provider: Literal["gke", "eks", "karpenter", "nth", "aks", "generic"] = Field(
        default="generic", description="Whose signs of an interruption to look for."
    )
    node_selector: dict[str, LabelValue] = Field(default={}, max_length=32)
    tolerations: list[Toleration] = Field(default=[], max_length=32)
    zones: list[Annotated[str, StringConstraints(min_length=1, max_length=63)]] = Field(
        min_length=1, max_length=16, description="Values of topology.kubernetes.io/zone."
    )
    notice_seconds: int = Field(
        default=30, ge=0, le=3600, description="Warning before a reclaim; 0: none."
    )
    refusal_after: Annotated[str, StringConstraints(max_length=20)] = Field(
        default="60s",
        description="A pod that stays unschedulable this long counts as a refused launch.",
    )


class PoolStatus(ApiModel):
    nodes: int = Field(default=0, description="Nodes of this pool that exist now.")
    tiers: int = Field(default=0, description="Tiers that name this pool.")
