"""Everything a decision about one tier may look at, as plain values.

Built by `controller/observe.py` from watched objects and scrapes; by the simulator and the tests
directly. `now` is part of it, so `decide` needs no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from spotinference.api.demand import Demand
from spotinference.api.kinds import Json
from spotinference.api.pool import PoolSpec
from spotinference.api.tier import TierSpec
from spotinference.api.tier_status import TierStatus
from spotinference.core.latency import Histogram
from spotinference.core.sizing import Memory, Reading


class TierRef(NamedTuple):
    """A tuple, because each request looks a dozen things up by it: a dataclass hashes in Python."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class Market:
    """One (pool, zone): where spot capacity and price exist."""

    pool: str
    zone: str

    def __str__(self) -> str:
        return f"{self.pool}/{self.zone}"


class Confidence(StrEnum):
    """How much a notice is worth."""

    FIRM = "firm"
    """the node goes: its replicas are doomed and replaced"""
    WEAK = "weak"
    """it may go, or never (a rebalance hint): nothing new is placed beside it, nothing is doomed"""


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning that a node will go, whoever gave it and however it shows (`core.notices`)."""

    node: str
    source: str
    """the sign, in words for people: `taint karpenter.sh/disrupted`"""
    deadline: datetime
    """firm: the latest moment the node is still there; weak: until when the hint is believed"""
    confidence: Confidence = Confidence.FIRM


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """A Kubernetes event about a node: some providers show their notices nowhere else."""

    reason: str
    first_at: datetime
    last_at: datetime


class NodeHealth(StrEnum):
    HEALTHY = "healthy"
    STALE = "stale"
    """three kubelet renewals missed (30 s), or Ready is not True: out of routing, replaced"""
    GONE = "gone"
    """the node object does not exist (any more)"""


@dataclass(frozen=True, slots=True)
class NodeView:
    name: str
    health: NodeHealth
    notice: Notice | None = None
    """a firm one"""
    hint: Notice | None = None
    """a weak one, of a node without a firm one"""
    held: bool = False
    """its kubelet is silent, as are many others, but its engines answer: not acted upon"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One successful scrape of one replica. A failed scrape is no sample: unknown is not zero."""

    at: datetime
    running: int
    waiting: int
    finished_total: float = 0.0
    rejected_total: float = 0.0
    active_at: datetime | None = None
    """when the scraper last saw work on it: running or waiting above zero, or finished_total moved.

    Without it short requests between two scrapes are invisible and a tier in use falls asleep.
    """
    tokens_total: float = 0.0
    """output tokens since the engine started"""
    preempted_total: float = 0.0
    kv_use: float | None = None
    """share of the KV cache in use; None: not told"""
    ttft: Histogram | None = None
    itl: Histogram | None = None
    """latencies since the engine started; None: not told"""


@dataclass(frozen=True, slots=True)
class Window:
    """The context window that an engine reported."""

    tokens: int
    arguments: str
    """`core.window.arguments_hash` of what it was started with"""


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One engine pod."""

    name: str
    uid: str
    market: Market
    created_at: datetime
    node: NodeView | None
    """None: not bound to a node yet"""
    ready: bool
    running: bool
    """its engine container's process runs (loading, or serving)"""
    deleting: bool
    loaded: bool = False
    """its startup probe has passed: not ready now means that it fell silent, not that it loads"""
    ended: bool = False
    """phase Failed or Succeeded (evicted, not admitted): its ReplicaSet counts it no more"""
    ip: str | None = None
    ready_at: datetime | None = None
    unready_since: datetime | None = None
    """since when it is not ready; None: it is, or not known"""
    doomed_until: datetime | None = None
    doomed_reason: str | None = None
    """annotation doomed-reason: a `plan.DoomReason` value"""
    restarts: int = 0
    """restartCount of its engine container"""
    scheduled_at: datetime | None = None
    """when it was bound to its node"""
    unschedulable_since: datetime | None = None
    unschedulable_message: str = ""
    volume_zones: frozenset[str] | None = None
    """zones in which its volumes can be mounted; None: in any, or not known"""
    failure: str | None = None
    """the container's own words: crash, image pull, OOM; None while all is well"""
    revision: str | None = None
    """hash of the pod template it was made from (label pod-template-hash)"""
    sample: Sample | None = None
    """the newest sample not older than the freshness bound; None: unknown"""
    window: Window | None = None
    """None: not told yet"""


@dataclass(frozen=True, slots=True)
class CacheView:
    """One cache claim and the job that fills it. `zone` None: one claim for all zones."""

    zone: str | None
    bound: bool
    complete: bool
    """the job finished and its manifest is written"""
    revision: str | None = None
    """the commit it holds, from the job's termination message"""
    size_bytes: int | None = None
    failure: str | None = None
    claim_message: str | None = None
    """why the claim is still pending, or (bound) why no node takes its job: the scheduler's words"""


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """What the operator's own configuration contributes to manifests."""

    image: str
    """our own image, for cache jobs"""
    hub_endpoint: str = "https://huggingface.co"
    gateway_selector: Mapping[str, str] = field(
        default_factory=lambda: {"app.kubernetes.io/component": "gateway"}
    )
    operator_selector: Mapping[str, str] = field(
        default_factory=lambda: {"app.kubernetes.io/component": "operator"}
    )
    system_namespace: str = "spotinference"


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned of the tier's load up to the last reading, and that reading."""

    memory: Memory
    reading: Reading


@dataclass(frozen=True, slots=True)
class Observed:
    now: datetime
    ref: TierRef
    uid: str
    generation: int
    deleting: bool
    spec: TierSpec
    status: TierStatus
    pools: Mapping[str, PoolSpec]
    """the pools that exist among those the tier names, or in which something of it stands"""
    replicas: tuple[ReplicaView, ...]
    caches: tuple[CacheView, ...]
    demands: tuple[Demand, ...]
    """unexpired demand of all gateways"""
    children: Mapping[tuple[str, str], Json]
    """live children by (kind, name): Deployments, Service, PVCs, Jobs, PDB, NetworkPolicy, …"""
    settings: OperatorSettings
    learned: Learned | None = None
    """None: nothing yet, and the targets alone decide"""
