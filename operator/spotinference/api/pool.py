"""`GPUPool`: a kind of GPU node that an administrator offers; cluster-scoped."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from spotinference.api import rules as r
from spotinference.api.model import ApiModel
from spotinference.api.rules import Checked, Rule

LabelValue = Annotated[str, StringConstraints(max_length=63), Checked(r.LABEL_VALUE)]
Zone = Annotated[str, StringConstraints(min_length=1, max_length=63), Checked(r.LABEL_VALUE)]


class Toleration(ApiModel):
    """A taint of the pool's nodes that replicas tolerate."""

    rules: ClassVar[tuple[Rule, ...]] = r.TOLERATION_VALUE

    key: Annotated[
        str, StringConstraints(min_length=1, max_length=316), Checked(r.TOLERATION_KEY)
    ] = Field(description="The taint's key.")
    operator: Literal["Exists", "Equal"] = Field(
        default="Exists", description="Exists: any value. Equal: this value."
    )
    value: LabelValue | None = Field(default=None, description="The taint's value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="The taint's effect; default: all effects."
    )


class PriceSpec(ApiModel):
    """What a node of the pool costs."""

    source: Literal["static"] = Field(
        default="static", description="static: the price is written here."
    )
    micro_usd_per_hour: int = Field(
        alias="microUSDPerHour",
        ge=0,
        le=1_000_000_000,
        description="Micro-USD per node and hour: 350000 is $0.35.",
    )


class PoolSpec(ApiModel):
    """How nodes of this kind are recognised, and how they go."""

    capacity_type: Literal["spot", "on-demand", "reserved"] = Field(
        description="spot: cheap, and taken away at any time. on-demand: a bridge. reserved: paid "
        "for in any case, so it is filled first."
    )
    provider: Literal["auto", "gke", "eks", "karpenter", "nth", "aks", "generic"] = Field(
        default="auto",
        description="Whose signs of an interruption to look for; auto: known by each node's labels.",
    )
    node_selector: Annotated[dict[str, LabelValue], Checked(*r.SELECTOR_KEYS)] = Field(
        default={}, max_length=32, description="Labels that nodes of this pool carry."
    )
    tolerations: list[Toleration] = Field(
        default=[], max_length=32, description="Taints of these nodes that replicas tolerate."
    )
    zones: Annotated[list[Zone], Checked(r.unique("zone"))] = Field(
        min_length=1, max_length=16, description="Values of topology.kubernetes.io/zone."
    )
    cordoned: bool = Field(
        default=False,
        description="true: no replica is added here; those that have a node stay until they go.",
    )
    notice_seconds: int = Field(
        default=30, ge=0, le=3600, description="Warning before a reclaim; 0: none."
    )
    refusal_after: Annotated[
        str, StringConstraints(max_length=20), Checked(r.DURATION, r.duration_between("1s", "1h"))
    ] = Field(
        default="3m",
        description="A pod that stays unschedulable this long counts as a refused launch; longer than a node takes to boot.",
    )
    price: PriceSpec | None = Field(
        default=None,
        description="What a node costs; default: unknown, and pools are taken in the tier's order.",
    )


class PoolStatus(ApiModel):
    """What the operator sees of this pool."""

    nodes: int = Field(default=0, description="Nodes of this pool that exist now.")
    tiers: int = Field(default=0, description="Tiers that name this pool.")
