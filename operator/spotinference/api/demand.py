"""Demand: how a gateway tells the operator that requests wait for a tier.

One Lease per (tier, gateway replica) in the tier's namespace, owned by the tier so that it goes
with it. Written once when the first request parks, renewed every `RENEW_S` while any waits, and
deleted when none does. A gateway that dies leaves a Lease that expires: the operator counts it
from the moment it *saw* the last change, by its own monotonic clock, so clock skew is harmless.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from spotinference.api import names, times
from spotinference.api.kinds import LEASE, TIER, Json

LEASE_DURATION_S = 30
RENEW_S = 10
MAX_PARKED = 1_000_000
"""No gateway holds more (`spec.wake.maxParked` is at most a tenth of it)."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one gateway replica says about one tier."""

    gateway_id: str
    parked: int
    oldest_parked_at: datetime


def lease(
    *, namespace: str, tier: str, tier_uid: str, demand: Demand, renewed_at: datetime
) -> Json:
    """The Lease to apply for this demand."""
    return {
        "apiVersion": LEASE.api_version,
        "kind": LEASE.kind,
        "metadata": {
            "name": names.demand_lease(tier, demand.gateway_id),
            "namespace": namespace,
            "labels": names.tier_labels(tier, names.ROLE_DEMAND),
            "annotations": {
                names.ANNOTATION_PARKED: str(demand.parked),
                names.ANNOTATION_OLDEST_PARKED_AT: times.to_micro_text(demand.oldest_parked_at),
            },
            "ownerReferences": [
                {
                    "apiVersion": TIER.api_version,
                    "kind": TIER.kind,
                    "name": tier,
                    "uid": tier_uid,
                }
            ],
        },
        "spec": {
            "holderIdentity": demand.gateway_id,
            "leaseDurationSeconds": LEASE_DURATION_S,
            "renewTime": times.to_micro_text(renewed_at),
        },
    }


def parse(body: Json) -> Demand | None:
    """The demand in a Lease; None when it is not one of ours or is damaged."""
    annotations = body.get("metadata", {}).get("annotations", {})
    try:
        return Demand(
            gateway_id=str(body["spec"]["holderIdentity"]),
            parked=min(MAX_PARKED, max(0, int(annotations[names.ANNOTATION_PARKED]))),
            oldest_parked_at=times.parse(annotations[names.ANNOTATION_OLDEST_PARKED_AT]),
        )
    except (KeyError, TypeError, ValueError):
        return None
