"""How each provider shows that a spot node will go: one declarative table.

A row is a `Sign`: where on the node (or in events about it) something stands, and what it is worth.
`core.notices` reads the table; nothing else knows a provider. `auto` is not a row: it stands for
all providers whose marks (`MARKS`) a node carries.

Sources: the providers' documentation and released source, November 2026 (docs/interruption.md names
them row by row). tests/unit/core/nodes/ holds a node of each provider before and during one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from spotinference.api.kinds import Json
from spotinference.core.observed import Confidence

Provider = Literal["auto", "gke", "eks", "karpenter", "nth", "aks", "generic"]

OUT_OF_SERVICE_TAINT = "node.kubernetes.io/out-of-service"
IMPENDING_TAINT = "spotinference.dev/impending-interruption"
"""Our own sign: whoever knows of a reclaim before we do may set it on a node."""
INTERRUPTION = "spotinference.dev/Interruption"
"""Type of the node condition that `spotinference node-watch` writes."""
RECLAIM = "Reclaim"
"""Its reason while the cloud's metadata announces the end of the machine."""
AT_RISK = "AtRisk"
"""Its reason while the metadata only recommends to leave, or announces maintenance."""


class Shown(StrEnum):
    """Where a sign stands."""

    TAINT = "taint"
    ANNOTATION = "annotation"
    LABEL = "label"
    CONDITION = "condition"
    """a node condition with status True"""
    NOT_READY = "Ready=False"
    """a text in the message of Ready=False"""
    EVENT = "event"
    """a Kubernetes event about the node"""
    CORDON = "cordon"
    """spec.unschedulable: where the provider cordons exactly the nodes that it takes"""


@dataclass(frozen=True, slots=True)
class Sign:
    shown: Shown
    key: str = ""
    """taint, annotation or label key; condition type; event reason; text of the message"""
    value: str | None = None
    """label value or condition reason that it must have; None: any"""
    confidence: Confidence = Confidence.FIRM


def _taints(*keys: str, confidence: Confidence = Confidence.FIRM) -> tuple[Sign, ...]:
    return tuple(Sign(Shown.TAINT, key, confidence=confidence) for key in keys)


_WEAK = Confidence.WEAK

EVERYWHERE = (
    *_taints(IMPENDING_TAINT, OUT_OF_SERVICE_TAINT, "ToBeDeletedByClusterAutoscaler"),
    Sign(Shown.CONDITION, INTERRUPTION, RECLAIM),
    Sign(Shown.CONDITION, INTERRUPTION, AT_RISK, _WEAK),
    Sign(Shown.NOT_READY, "node is shutting down"),
)
"""What means the same whoever runs the node. A node problem detector, or anything else that may
write conditions, can use ours."""

_KARPENTER = (
    *_taints("karpenter.sh/disrupted", "karpenter.sh/disruption"),
    Sign(Shown.ANNOTATION, "karpenter.sh/nodeclaim-termination-timestamp"),
)

SIGNS: Mapping[str, tuple[Sign, ...]] = {
    "gke": (
        *_taints("cloud.google.com/impending-node-termination"),
        *_taints("cloud.google.com/maintenance-window-started", confidence=_WEAK),
        Sign(Shown.LABEL, "cloud.google.com/active-node-maintenance", "ONGOING", _WEAK),
    ),
    "eks": (Sign(Shown.CORDON),),
    "karpenter": (
        *_KARPENTER,
        Sign(Shown.EVENT, "SpotInterrupted"),
        Sign(Shown.EVENT, "TerminatingOnInterruption"),
        Sign(Shown.EVENT, "SpotRebalanceRecommendation", confidence=_WEAK),
    ),
    "nth": (
        *_taints(
            "aws-node-termination-handler/spot-itn",
            "aws-node-termination-handler/asg-lifecycle-termination",
            "aws-node-termination-handler/scheduled-maintenance",
        ),
        *_taints("aws-node-termination-handler/rebalance-recommendation", confidence=_WEAK),
        Sign(Shown.CORDON),
    ),
    "aks": (
        *_taints(
            "remediator.kubernetes.azure.com/unschedulable",
            "cloudprovider.azure.microsoft.com/draining",
        ),
        Sign(Shown.CONDITION, "PreemptionScheduled"),
        Sign(Shown.EVENT, "PreemptScheduled"),
        *_KARPENTER,  # node auto-provisioning is Karpenter
        Sign(Shown.CORDON),
    ),
    "generic": (),
}

EVENT_REASONS = tuple(
    dict.fromkeys(s.key for signs in SIGNS.values() for s in signs if s.shown is Shown.EVENT)
)
"""What the operator watches events for."""


def _keys(shown: Shown) -> frozenset[str]:
    every = (*EVERYWHERE, *(sign for signs in SIGNS.values() for sign in signs))
    return frozenset(sign.key for sign in every if sign.shown is shown)


CONDITION_TYPES = _keys(Shown.CONDITION)
LABEL_KEYS = _keys(Shown.LABEL)
"""What of a node's conditions and labels can change a decision."""

MARKS: Mapping[Provider, tuple[str, ...]] = {
    "karpenter": ("karpenter.sh/nodepool", "karpenter.sh/capacity-type"),
    "eks": ("eks.amazonaws.com/nodegroup",),
    "gke": ("cloud.google.com/gke-nodepool", "cloud.google.com/gke-spot"),
    "aks": ("kubernetes.azure.com/cluster", "kubernetes.azure.com/scalesetpriority"),
}
"""Label keys by which `auto` knows a provider's nodes."""


def recognise(node: Json) -> tuple[Provider, ...]:
    """The providers whose marks a node carries; (generic,) when none.

    More than one is right for Karpenter on AKS. A machine of EC2 that neither EKS nor Karpenter
    manages is taken for one that the node termination handler looks after, if anybody does.
    """
    labels = node.get("metadata", {}).get("labels") or {}
    found: list[Provider] = [
        provider for provider, marks in MARKS.items() if any(mark in labels for mark in marks)
    ]
    if not found and str(node.get("spec", {}).get("providerID", "")).startswith("aws://"):
        found.append("nth")
    return tuple(found) or ("generic",)


def signs_of(node: Json, provider: Provider) -> tuple[Sign, ...]:
    """The rows that count for this node, those of its provider first."""
    known = recognise(node) if provider == "auto" else (provider,)
    return (*(sign for name in known for sign in SIGNS[name]), *EVERYWHERE)
