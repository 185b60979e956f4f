"""How each provider shows that a spot node will go, and how a node shows that it is alive.

One declarative table (`SIGNS`), read by `notice_of`; called by the observer for every node that
carries an engine pod. Sources: provider documentation and released source, November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from spotinference.api import times
from spotinference.api.kinds import Json
from spotinference.core.observed import NodeHealth, Notice

Provider = Literal["gke", "eks", "karpenter", "nth", "aks", "generic"]

LEASE_STALE_S = 30.0
"""Three missed kubelet renewals (every 10 s): the node is silent."""

UNSCHEDULABLE_TAINT = "node.kubernetes.io/unschedulable"
OUT_OF_SERVICE_TAINT = "node.kubernetes.io/out-of-service"
IMPENDING_TAINT = "spotinference.dev/impending-interruption"
"""Our own sign: whoever knows of a reclaim before we do may set it on a node."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What on a node means "will be reclaimed", and where an exact deadline may stand."""

    taints: tuple[str, ...] = ()
    """keys; any taint with one of them is a notice"""
    annotations: tuple[str, ...] = ()
    """keys whose presence is a notice; an RFC 3339 value is its deadline"""
    not_ready_messages: tuple[str, ...] = ()
    """texts in the Ready=False condition of a graceful node shutdown"""
    cordon: bool = False
    """this provider cordons a node exactly when it is about to take it"""


_ALWAYS = Signs(
    taints=(IMPENDING_TAINT, OUT_OF_SERVICE_TAINT),
    not_ready_messages=("node is shutting down",),
)

SIGNS: Mapping[str, Signs] = {
    "gke": Signs(
        taints=("cloud.google.com/impending-node-termination",),
        not_ready_messages=("node is shutting down",),
    ),
    "eks": Signs(cordon=True),
    "karpenter": Signs(
        taints=("karpenter.sh/disrupted", "karpenter.sh/disruption"),
        annotations=("karpenter.sh/nodeclaim-termination-timestamp",),
    ),
    "nth": Signs(
        taints=(
            "aws-node-termination-handler/spot-itn",
            "aws-node-termination-handler/asg-lifecycle-termination",
            "aws-node-termination-handler/scheduled-maintenance",
            "aws-node-termination-handler/rebalance-recommendation",
        ),
        cordon=True,
    ),
    "aks": Signs(
        taints=("remediator.kubernetes.azure.com/unschedulable",),
        cordon=True,
    ),
    "generic": Signs(),
}


def notice_of(
    node: Json, provider: Provider, notice_seconds: int, seen_at: datetime
) -> Notice | None:
    """The notice a node shows, None when it shows none.

    `seen_at` is when this sign was first seen on this node: without a time of its own a notice is
    assumed to have begun then. A taint's `timeAdded` or an annotation's value wins.
    """
    signs = SIGNS[provider]
    spec = node.get("spec", {})
    length = timedelta(seconds=notice_seconds)
    annotations = node.get("metadata", {}).get("annotations") or {}
    stated = [_time(annotations[key]) for key in signs.annotations if key in annotations]
    deadline = next((at for at in stated if at is not None), None)
    for taint in spec.get("taints") or ():
        key = taint.get("key", "")
        if key in signs.taints or key in _ALWAYS.taints:
            begun = _time(taint.get("timeAdded")) or seen_at
            return Notice(source=f"taint {key}", deadline=deadline or begun + length)
    if stated:
        key = next(key for key in signs.annotations if key in annotations)
        return Notice(source=f"annotation {key}", deadline=deadline or seen_at + length)
    shutdown = _shutdown(node, (*signs.not_ready_messages, *_ALWAYS.not_ready_messages))
    if shutdown is not None:
        message, since = shutdown
        return Notice(source=f"Ready=False: {message}", deadline=(since or seen_at) + length)
    if signs.cordon and spec.get("unschedulable"):
        return Notice(source="cordon", deadline=seen_at + length)
    return None


def health_of(node: Json | None, lease_age_s: float | None) -> NodeHealth:
    """Whether a node can be counted on.

    `lease_age_s`: seconds since its kube-node-lease was *seen* to change by our own monotonic
    clock; None when no lease is known (a node in its first seconds), then Ready decides alone.
    """
    if node is None:
        return NodeHealth.GONE
    if lease_age_s is not None and lease_age_s > LEASE_STALE_S:
        return NodeHealth.STALE
    ready = _condition(node, "Ready")
    if ready is not None and ready.get("status") != "True":
        return NodeHealth.STALE
    return NodeHealth.HEALTHY


def _condition(node: Json, kind: str) -> Json | None:
    conditions: list[Json] = node.get("status", {}).get("conditions") or []
    return next((c for c in conditions if c.get("type") == kind), None)


def _shutdown(node: Json, texts: tuple[str, ...]) -> tuple[str, datetime | None] | None:
    ready = _condition(node, "Ready")
    if ready is None or ready.get("status") == "True":
        return None
    message = str(ready.get("message", ""))
    if any(text in message for text in texts):
        return message, _time(ready.get("lastTransitionTime"))
    return None


def _time(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        return times.parse(text)
    except ValueError:
        return None
