"""`InferenceTier`: one served model. Its spec as Python values; its status is in `api/tier_status.py`.

The CRD is rendered from these models (`api/crd.py`); what is not acted on is not here. Limits stand
beside the fields, rules with their sentences in `api/rules.py`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from spotinference.api import rules as r
from spotinference.api.model import ApiModel
from spotinference.api.rules import Checked, Rule

Name = Annotated[str, StringConstraints(min_length=1, max_length=63), Checked(r.DNS_SUBDOMAIN)]
Duration = Annotated[str, StringConstraints(max_length=20), Checked(r.DURATION)]
Delay = Annotated[
    str, StringConstraints(max_length=20), Checked(r.DURATION, r.duration_between("0s", "1h"))
]
Timeout = Annotated[
    str, StringConstraints(max_length=20), Checked(r.DURATION, r.duration_between("1s", "1h"))
]
LongTimeout = Annotated[
    str, StringConstraints(max_length=20), Checked(r.DURATION, r.duration_between("1s", "24h"))
]
Quantity = Annotated[
    str,
    StringConstraints(min_length=1, max_length=20),
    Checked(r.QUANTITY, r.POSITIVE_QUANTITY),
]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=63), Checked(r.IDENTIFIER)]
ServedName = Annotated[str, StringConstraints(min_length=1, max_length=128), Checked(r.SERVED_NAME)]


class SecretKeyRef(ApiModel):
    """A key of a Secret in the tier's namespace."""

    name: Annotated[
        str, StringConstraints(min_length=1, max_length=253), Checked(r.DNS_SUBDOMAIN)
    ] = Field(description="The Secret's name.")
    key: Annotated[str, StringConstraints(min_length=1, max_length=253), Checked(r.SECRET_KEY)] = (
        Field(default="token", description="Which key of its data holds the token.")
    )


class ModelSpec(ApiModel):
    """Which weights are served, and under which names."""

    rules: ClassVar[tuple[Rule, ...]] = (
        r.REVISION_ONLY_OF_HUB,
        r.TOKEN_ONLY_OF_HUB,
        r.ALIAS_NOT_SERVED_NAME,
    )

    source: Annotated[
        str,
        StringConstraints(min_length=6, max_length=512),
        Checked(r.MODEL_SOURCE, r.NO_PARENT_FOLDERS, r.SOURCE_IMMUTABLE),
    ] = Field(
        description="hf://ORG/NAME, or pvc://CLAIM/PATH for weights on a claim of your own. "
        "Immutable: another model is another tier; its revision may change."
    )
    revision: Annotated[
        str,
        StringConstraints(min_length=1, max_length=128),
        Checked(r.REVISION, r.NO_PARENT_FOLDERS),
    ] = Field(
        default="main",
        description="Branch, tag or commit of an hf:// source; resolved once to a commit "
        "(status.weights.revision).",
    )
    served_name: ServedName | None = Field(
        default=None, description="Name clients ask for; default: the tier's name."
    )
    aliases: Annotated[list[ServedName], Checked(r.unique("alias"))] = Field(
        default=[], max_length=8, description="Further names clients may ask for."
    )
    token_secret_ref: SecretKeyRef | None = Field(
        default=None, description="Hub token for gated models; used by the cache job only."
    )


class EnvVar(ApiModel):
    """A variable of the engine's environment; the same on all replicas."""

    name: Annotated[
        str,
        StringConstraints(min_length=1, max_length=128),
        Checked(r.ENV_NAME, r.ENV_ALLOWED),
    ] = Field(description="Name of the variable; those that the operator sets are refused.")
    value: Annotated[str, StringConstraints(max_length=4096)] = Field(
        default="", description="Its value, as it is; no references are expanded."
    )


class EngineSpec(ApiModel):
    """How vLLM is started. Any change rolls the replicas."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512), Checked(r.IMAGE)] = (
        Field(
            default="vllm/vllm-openai:v0.32.0",
            description="vLLM's image with a tag or digest; its entry point is `vllm serve`.",
        )
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, le=64, description="GPUs that share one replica's weights."
    )
    max_model_len: int | None = Field(
        default=None,
        ge=1,
        le=10_485_760,
        description="Longest prompt plus answer in tokens; default: what the model allows.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="Number format of weights and activations."
    )
    quantization: Identifier | None = Field(
        default=None,
        description="Quantisation method, e.g. awq_marlin; default: what the model's files say.",
    )
    kv_cache_dtype: Identifier | None = Field(
        default=None, description="Number format of the KV cache, e.g. fp8."
    )
    max_num_seqs: int | None = Field(
        default=None, ge=1, le=65_536, description="Requests that one replica runs at a time."
    )
    max_num_batched_tokens: int | None = Field(
        default=None, ge=1, le=10_485_760, description="Tokens in one step of one replica."
    )
    gpu_memory_utilization: (
        Annotated[str, StringConstraints(max_length=6), Checked(r.UTILIZATION)] | None
    ) = Field(default=None, description='Share of GPU memory as a decimal string, e.g. "0.92".')
    prefix_caching: bool = Field(
        default=True, description="Keep the KV cache of prompts for requests that begin alike."
    )
    tool_call_parser: Identifier | None = Field(
        default=None, description="vLLM's parser for tool calls, e.g. hermes; enables tools."
    )
    reasoning_parser: Identifier | None = Field(
        default=None, description="vLLM's parser for reasoning, e.g. deepseek_r1."
    )
    startup: LongTimeout = Field(
        default="10m", description="How long a replica may load before it is restarted."
    )
    extra_args: Annotated[
        list[
            Annotated[
                str,
                StringConstraints(min_length=1, max_length=1024),
                Checked(*r.EXTRA_ARGUMENT),
            ]
        ],
        Checked(r.FLAG_FIRST),
    ] = Field(
        default=[],
        max_length=64,
        description="Further `vllm serve` arguments, one word per item. Flags that a field sets or "
        "that the operator needs are refused, with `_` for `-` and every prefix too.",
    )
    env: Annotated[list[EnvVar], Checked(r.ENV_UNIQUE), r.keyed_by("name")] = Field(
        default=[], max_length=64, description="Further environment of the engine."
    )


class GpuRequest(ApiModel):
    """The GPUs of one replica."""

    count: int = Field(default=1, ge=1, le=16, description="GPUs of one replica.")
    resource_name: Annotated[
        str, StringConstraints(min_length=1, max_length=253), Checked(r.RESOURCE_NAME)
    ] = Field(default="nvidia.com/gpu", description="The extended resource that counts GPUs.")


class ResourcesSpec(ApiModel):
    """What one replica asks of its node."""

    rules: ClassVar[tuple[Rule, ...]] = (r.SHARED_MEMORY_WITHIN_MEMORY,)

    gpu: GpuRequest = Field(default_factory=GpuRequest, description="The GPUs of one replica.")
    cpu: Quantity = Field(default="4", description="CPU request of one replica.")
    memory: Quantity = Field(default="16Gi", description="Memory request and limit of one replica.")
    shared_memory: Quantity = Field(
        default="2Gi", description="Size of /dev/shm; counts against memory."
    )


class OnDemandSpec(ApiModel):
    """When on-demand nodes, which cost more, may be used."""

    base: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="So many replicas of a tier that is awake stand on on-demand pools in any case.",
    )
    burst: bool = Field(
        default=True,
        description="Use on-demand pools of `placement.pools` while no spot market has capacity.",
    )


class PlacementSpec(ApiModel):
    """Where replicas may run."""

    pools: Annotated[list[Name], Checked(r.unique("pool"))] = Field(
        min_length=1, max_length=16, description="GPUPools in order of preference."
    )
    on_demand: OnDemandSpec = Field(
        default_factory=OnDemandSpec, description="When on-demand nodes may be used."
    )
    overprovision: int = Field(
        default=0,
        ge=0,
        le=10,
        description="At most so many spot replicas beyond the wanted ones, each only while it is worth "
        "its price: its markets are not calm. Within `scaling.maxReplicas`.",
    )
    max_hourly_cost: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000_000,
        description="In micro-USD per hour: no replica is launched that would take the prices of "
        "the tier's replicas, by their pools, above it; the first one neither. Pools without a price "
        "are then not used.",
    )


class ScaleUpSpec(ApiModel):
    """How fast replicas are added. A wake is exempt."""

    stabilization: Delay = Field(
        default="60s",
        description="Load must stay over target this long before replicas are added; what is foreseen "
        "is added at once.",
    )
    max_step: int = Field(
        default=10, ge=1, le=100, description="At most this many replicas are added per period."
    )
    period: Timeout = Field(
        default="120s", description="At most maxStep replicas are added per period."
    )


class ScaleDownSpec(ApiModel):
    """How fast replicas are taken away."""

    stabilization: Delay = Field(
        default="300s",
        description="Load must stay under target this long before one goes (or, once the load is "
        "foreseen, all that have been spare for long enough).",
    )


class SloSpec(ApiModel):
    """Latencies that most requests shall keep, as the engine itself measures them."""

    ttft: Annotated[
        str, StringConstraints(max_length=20), Checked(r.DURATION, r.duration_between("1ms", "10m"))
    ] = Field(
        default="1s",
        description="Time to the first token of a request that reached a replica (waking is not "
        "in it).",
    )
    itl: Annotated[
        str, StringConstraints(max_length=20), Checked(r.DURATION, r.duration_between("1ms", "1m"))
    ] = Field(default="33ms", description="Time between two tokens of a request.")
    percentile: int = Field(
        default=95, ge=50, le=99, description="So many in a hundred must keep each of them."
    )


class ScalingSpec(ApiModel):
    """How many replicas there are."""

    rules: ClassVar[tuple[Rule, ...]] = (r.MIN_WITHIN_MAX,)

    min_replicas: int = Field(
        default=0, ge=0, le=1000, description="Never fewer than this; 0 lets the tier sleep."
    )
    max_replicas: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Never more than this, but for one that starts to relieve an on-demand one.",
    )
    target_waiting: int = Field(
        default=4, ge=1, le=10_000, description="Waiting requests per replica aimed at."
    )
    target_running: int = Field(
        default=64,
        ge=1,
        le=10_000,
        description="Running requests per replica aimed at; with slo, until one is learned.",
    )
    slo: SloSpec | None = Field(
        default=None,
        description="Aim at these latencies: how many requests a replica takes is learned from them "
        "and replaces targetRunning.",
    )
    idle_timeout: LongTimeout = Field(
        default="10m", description="Without running, waiting or parked work this long: sleep."
    )
    sleep_after: Literal["idleTimeout", "learned"] = Field(
        default="idleTimeout",
        description="learned: sleep as early as has cost least over the idle times seen, a wake "
        "counting as its replica time; idleTimeout is the bound then.",
    )
    scale_up: ScaleUpSpec = Field(
        default_factory=ScaleUpSpec, description="How fast replicas are added."
    )
    scale_down: ScaleDownSpec = Field(
        default_factory=ScaleDownSpec, description="How fast replicas are taken away."
    )


class WakeSpec(ApiModel):
    """What a request to a sleeping tier may expect."""

    rules: ClassVar[tuple[Rule, ...]] = (r.BUDGET_WITHIN_CAP,)

    budget: Timeout = Field(
        default="8m", description="What a wake should take; a slower one is reported."
    )
    cap: Timeout = Field(default="10m", description="A request waits this long, then gets a 504.")
    max_parked: int = Field(
        default=1000, ge=1, le=100_000, description="Requests held per gateway; beyond it 429."
    )
    heartbeat: Literal["auto", "off"] = Field(
        default="auto", description="SSE comments to waiting streams."
    )


class InterruptionSpec(ApiModel):
    """What happens to running requests when a replica goes."""

    drain: Annotated[str, StringConstraints(max_length=20), Checked(r.DRAIN)] = Field(
        default="auto",
        description="How long running requests may finish when a replica goes: auto (25s), "
        "or a duration.",
    )
    continuation: Literal["auto", "off"] = Field(
        default="auto", description="Continue cut streams on another replica."
    )


class CacheSpec(ApiModel):
    """The volume that keeps weights and compiled kernels when the machine is gone."""

    rules: ClassVar[tuple[Rule, ...]] = r.CLAIM_IMMUTABLE

    size: Quantity = Field(default="100Gi", description="Size of each claim; may only grow.")
    storage_class_name: (
        Annotated[str, StringConstraints(min_length=1, max_length=253), Checked(r.DNS_SUBDOMAIN)]
        | None
    ) = Field(default=None, description="StorageClass of the claims; default: the cluster's.")
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"] = Field(
        default="ReadWriteMany",
        description="ReadWriteMany: one claim for the tier. ReadWriteOnce: one claim per zone, "
        "and at most one replica per zone.",
    )
    retain: bool = Field(default=True, description="Keep the cache when the tier is deleted.")


class TierSpec(ApiModel):
    """What is served, where it may run, and how it sleeps, wakes and scales."""

    rules: ClassVar[tuple[Rule, ...]] = (r.REPLICAS_WITHIN_MAX, r.GPUS_FOR_TENSOR_PARALLEL)

    model: ModelSpec = Field(description="Which weights are served, and under which names.")
    engine: EngineSpec = Field(default_factory=EngineSpec, description="How vLLM is started.")
    resources: ResourcesSpec = Field(
        default_factory=ResourcesSpec, description="What one replica asks of its node."
    )
    placement: PlacementSpec = Field(description="Where replicas may run.")
    scaling: ScalingSpec = Field(
        default_factory=ScalingSpec, description="How many replicas there are."
    )
    wake: WakeSpec = Field(
        default_factory=WakeSpec, description="What a request to a sleeping tier may expect."
    )
    interruption: InterruptionSpec = Field(
        default_factory=InterruptionSpec,
        description="What happens to running requests when a replica goes.",
    )
    cache: CacheSpec = Field(
        default_factory=CacheSpec, description="The volume of weights and compiled kernels."
    )
    paused: bool = Field(
        default=False, description="Hold the tier at zero replicas; requests are refused."
    )
    replicas: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Set by `kubectl scale` or an HPA: this number rules while it is present.",
    )
