"""Whether a node can be counted on, by what was seen of it."""

from __future__ import annotations

from spotinference.api.kinds import Json
from spotinference.core.notices import condition
from spotinference.core.observed import NodeHealth

LEASE_STALE_S = 30.0
"""Three missed kubelet renewals (every 10 s): the node is silent."""


def health_of(node: Json | None, lease_age_s: float | None) -> NodeHealth:
    """Whether a node can be counted on.

    `lease_age_s`: seconds since its kube-node-lease was *seen* to change by our own monotonic
    clock; None when no lease is known (a node in its first seconds), then Ready decides alone.
    """
    if node is None:
        return NodeHealth.GONE
    if lease_age_s is not None and lease_age_s > LEASE_STALE_S:
        return NodeHealth.STALE
    ready = condition(node, "Ready")
    if ready is not None and ready.get("status") != "True":
        return NodeHealth.STALE
    return NodeHealth.HEALTHY
