"""`InferenceTier`: one served model. Spec and status as Python values.

The CRD is rendered from these models (`api/crd.py`); what is not acted on is not here. Limits and
rules stand beside the fields they guard; rules over several fields are CEL in `RULES`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from spotinference.api import durations
from spotinference.api.model import ApiModel

Name = Annotated[str, StringConstraints(min_length=1, max_length=63)]
Duration = Annotated[str, StringConstraints(max_length=20, pattern=durations.PATTERN)]
Quantity = Annotated[str, StringConstraints(min_length=1, max_length=20)]


class SecretKeyRef(ApiModel):
    """A key of a Secret in the tier's namespace."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    key: Annotated[str, StringConstraints(min_length=1, max_length=253)] = "token"


class ModelSpec(ApiModel):
    source: Annotated[str, StringConstraints(min_length=6, max_length=512)] = Field(
        description="hf://ORG/NAME, or pvc://CLAIM/PATH for weights on a claim of your own. "
        "Immutable: another model is another tier; its revision may change."
    )
    revision: Annotated[str, StringConstraints(min_length=1, max_length=128)] = Field(
        default="main",
        description="Branch, tag or commit of an hf:// source; resolved once to a commit (status.weights.revision).",
    )
    served_name: Annotated[str, StringConstraints(max_length=128)] | None = Field(
        default=None, description="Name clients ask for; default: the tier's name."
    )
    aliases: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        default=[], max_length=8, description="Further names clients may ask for."
    )
    token_secret_ref: SecretKeyRef | None = Field(
        default=None, description="Hub token for gated models; used by the cache job only."
    )


class EnvVar(ApiModel):
    name: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    value: Annotated[str, StringConstraints(max_length=4096)] = ""


class EngineSpec(ApiModel):
    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] = (
        "vllm/vllm-openai:v0.32.0"
    )
    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    max_model_len: int | None = Field(default=None, ge=1, le=10_485_760)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: Annotated[str, StringConstraints(max_length=63)] | None = None
    kv_cache_dtype: Annotated[str, StringConstraints(max_length=63)] | None = None
    max_num_seqs: int | None = Field(default=None, ge=1, le=65_536)
    max_num_batched_tokens: int | None = Field(default=None, ge=1, le=10_485_760)
    gpu_memory_utilization: Annotated[str, StringConstraints(max_length=6)] | None = Field(
        default=None, description='Share of GPU memory as a decimal string, e.g. "0.92".'
    )
    prefix_caching: bool = True
    tool_call_parser: Annotated[str, StringConstraints(max_length=63)] | None = None
    reasoning_parser: Annotated[str, StringConstraints(max_length=63)] | None = None
    startup: Duration = Field(
        default="10m", description="How long a replica may load before it is restarted."
    )
    extra_args: list[Annotated[str, StringConstraints(min_length=1, max_length=1024)]] = Field(
        default=[], max_length=64, description="Further `vllm serve` arguments."
    )
    env: list[EnvVar] = Field(default=[], max_length=64)


class GpuRequest(ApiModel):
    count: int = Field(default=1, ge=1, le=16)
    resource_name: Annotated[str, StringConstraints(min_length=1, max_length=253)] = (
        "nvidia.com/gpu"
    )


class ResourcesSpec(ApiModel):
    gpu: GpuRequest = Field(default_factory=GpuRequest)
    cpu: Quantity = "4"
    memory: Quantity = "16Gi"
    shared_memory: Quantity = "2Gi"


class OnDemandSpec(ApiModel):
    burst: bool = Field(
        default=True,
        description="Use on-demand pools of `placement.pools` while no spot market has capacity.",
    )


class PlacementSpec(ApiModel):
    pools: list[Name] = Field(
        min_length=1, max_length=16, description="GPUPools in order of preference."
    )
    on_demand: OnDemandSpec = Field(default_factory=OnDemandSpec)


class ScaleUpSpec(ApiModel):
    stabilization: Duration = Field(
        default="60s", description="Load must stay over target this long before replicas are added."
    )
    max_step: int = Field(default=2, ge=1, le=100)
    period: Duration = Field(
        default="120s", description="At most maxStep replicas are added per period."
    )


class ScaleDownSpec(ApiModel):
    stabilization: Duration = Field(
        default="300s", description="Load must stay under target this long before one goes."
    )


class ScalingSpec(ApiModel):
    min_replicas: int = Field(default=0, ge=0, le=1000)
    max_replicas: int = Field(default=1, ge=1, le=1000)
    target_waiting: int = Field(
        default=4, ge=1, le=10_000, description="Waiting requests per replica aimed at."
    )
    target_running: int = Field(
        default=64, ge=1, le=10_000, description="Running requests per replica aimed at."
    )
    idle_timeout: Duration = Field(
        default="10m", description="Without running, waiting or parked work this long: sleep."
    )
    scale_up: ScaleUpSpec = Field(default_factory=ScaleUpSpec)
    scale_down: ScaleDownSpec = Field(default_factory=ScaleDownSpec)


class WakeSpec(ApiModel):
    budget: Duration = Field(
        default="8m", description="What a wake should take; a slower one is reported."
    )
    cap: Duration = Field(default="10m", description="A request waits this long, then gets a 504.")
    max_parked: int = Field(
        default=1000, ge=1, le=100_000, description="Requests held per gateway; beyond it 429."
    )
    heartbeat: Literal["auto", "off"] = Field(
        default="auto", description="SSE comments to waiting streams."
    )


class InterruptionSpec(ApiModel):
    drain: Annotated[str, StringConstraints(max_length=20)] = Field(
        default="auto",
        description="How long running requests may finish when a replica goes: auto (25s), or a duration.",
    )
    continuation: Literal["auto", "off"] = Field(
        default="auto", description="Continue cut streams on another replica."
    )


class CacheSpec(ApiModel):
    size: Quantity = "100Gi"
    storage_class_name: Annotated[str, StringConstraints(max_length=253)] | None = None
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"] = Field(
        default="ReadWriteMany",
        description="ReadWriteMany: one claim for the tier. ReadWriteOnce: one claim per zone, "
        "and at most one replica per zone.",
    )
    retain: bool = Field(default=True, description="Keep the cache when the tier is deleted.")


class TierSpec(ApiModel):
    model: ModelSpec
    engine: EngineSpec = Field(default_factory=EngineSpec)
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    placement: PlacementSpec
    scaling: ScalingSpec = Field(default_factory=ScalingSpec)
    wake: WakeSpec = Field(default_factory=WakeSpec)
    interruption: InterruptionSpec = Field(default_factory=InterruptionSpec)
    cache: CacheSpec = Field(default_factory=CacheSpec)
    paused: bool = Field(
        default=False, description="Hold the tier at zero replicas; requests are refused."
    )
    replicas: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Set by `kubectl scale` or an HPA: this number rules while it is present.",
    )


# --- status -----------------------------------------------------------------------------------


class Condition(ApiModel):
    type: Annotated[str, StringConstraints(max_length=316)]
    status: Literal["True", "False", "Unknown"]
    observed_generation: int | None = None
    last_transition_time: Annotated[str, StringConstraints(max_length=40)]
    reason: Annotated[str, StringConstraints(max_length=1024)]
    message: Annotated[str, StringConstraints(max_length=32_768)]


class MarketStatus(ApiModel):
    """One (pool, zone) and what the tier has there. `refusedAt`: a launch stayed pending."""

    pool: Name
    zone: Annotated[str, StringConstraints(max_length=63)]
    desired: int = 0
    ready: int = 0
    doomed: int = 0
    refused_at: Annotated[str, StringConstraints(max_length=40)] | None = None


class StageStatus(ApiModel):
    name: Annotated[str, StringConstraints(max_length=63)]
    started_at: Annotated[str, StringConstraints(max_length=40)]


class WakeStatus(ApiModel):
    """The wake under way, or the last one (then `readyAt` is set)."""

    started_at: Annotated[str, StringConstraints(max_length=40)]
    deadline: Annotated[str, StringConstraints(max_length=40)]
    stage: Annotated[str, StringConstraints(max_length=63)]
    stages: list[StageStatus] = Field(default=[], max_length=16)
    ready_at: Annotated[str, StringConstraints(max_length=40)] | None = None
    eta: Annotated[str, StringConstraints(max_length=40)] | None = Field(
        default=None, description="When a replica is expected to be ready."
    )


class ScalingStatus(ApiModel):
    """Hysteresis of the autoscaler; kept here so that a restarted operator goes on from it."""

    over_since: Annotated[str, StringConstraints(max_length=40)] | None = None
    under_since: Annotated[str, StringConstraints(max_length=40)] | None = None
    idle_since: Annotated[str, StringConstraints(max_length=40)] | None = None
    step_started_at: Annotated[str, StringConstraints(max_length=40)] | None = None
    step_added: int = 0


class DecisionStatus(ApiModel):
    at: Annotated[str, StringConstraints(max_length=40)]
    desired: int
    reason: Annotated[str, StringConstraints(max_length=1024)]


class WeightsStatus(ApiModel):
    revision: Annotated[str, StringConstraints(max_length=128)] = Field(
        description="The commit that serves; resolved once from spec.model.revision."
    )
    requested: Annotated[str, StringConstraints(max_length=128)] = Field(
        description="The spec.model.revision that was resolved."
    )
    bytes: int | None = Field(default=None, description="Size of the model's files.")


class EngineFailureStatus(ApiModel):
    """Wakes that ended because the engine would not start; reset by a ready replica or an edit."""

    failures: int = 0
    generation: int = Field(default=0, description="The tier's generation that failed.")
    retry_at: Annotated[str, StringConstraints(max_length=40)] = Field(
        description="No replica is started before this."
    )
    message: Annotated[str, StringConstraints(max_length=1024)] = ""


class TierStatus(ApiModel):
    observed_generation: int | None = None
    phase: Literal["Asleep", "Waking", "Ready", "Draining", "Degraded"] | None = None
    conditions: list[Condition] = Field(default=[], max_length=32)
    replicas: int = 0
    ready_replicas: int = 0
    ready_summary: Annotated[str, StringConstraints(max_length=20)] = "0/0"
    selector: Annotated[str, StringConstraints(max_length=512)] = ""
    markets: list[MarketStatus] = Field(default=[], max_length=256)
    wake: WakeStatus | None = None
    last_wake_seconds: int | None = Field(
        default=None, description="Duration of the last finished wake."
    )
    scaling: ScalingStatus = Field(default_factory=ScalingStatus)
    last_decision: DecisionStatus | None = None
    weights: WeightsStatus | None = None
    engine_failure: EngineFailureStatus | None = None
