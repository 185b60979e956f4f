"""Labels, annotations and the names of child objects: one module, deterministic.

Every name is derived from the tier (and market) alone, so that a restarted operator finds what it
made before, and a second create of the same child is a conflict instead of a duplicate.
"""

from __future__ import annotations

import hashlib

from spotinference.api.kinds import GROUP

FIELD_MANAGER = "spotinference-operator"

# Labels on every child object.
LABEL_TIER = f"{GROUP}/tier"
LABEL_ROLE = f"{GROUP}/role"  # one of ROLE_*
LABEL_POOL = f"{GROUP}/pool"
LABEL_ZONE = f"{GROUP}/zone"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "spotinference"

ROLE_ENGINE = "engine"
"""vLLM pods and their Deployments: what the gateway routes to."""
ROLE_CACHE = "cache"
"""The job that fills a cache volume, and the claim itself."""
ROLE_DEMAND = "demand"
"""Leases by which gateways ask for a tier to wake."""

ANNOTATION_DOOMED_UNTIL = f"{GROUP}/doomed-until"
"""On an engine pod: RFC 3339 time by which it must be gone. Gateways send it nothing new."""
ANNOTATION_DOOMED_REASON = f"{GROUP}/doomed-reason"
ANNOTATION_SPEC_HASH = f"{GROUP}/spec-hash"
"""On every child: hash of the manifest as applied; equal hash and live fields => no write."""
ANNOTATION_PARKED = f"{GROUP}/parked"
ANNOTATION_OLDEST_PARKED_AT = f"{GROUP}/oldest-parked-at"

ZONE_LABEL = "topology.kubernetes.io/zone"

ENGINE_CONTAINER = "engine"
ENGINE_PORT_NAME = "http"
ENGINE_PORT = 8000
CACHE_MOUNT = "/cache"
"""Where the tier's cache volume is mounted in engine and cache pods."""
WEIGHTS_DIR = f"{CACHE_MOUNT}/weights"
"""One directory per commit below it: /cache/weights/<commit>/config.json, …"""
VLLM_CACHE_ROOT = f"{CACHE_MOUNT}/vllm"

MAX_NAME = 63


def bounded(*parts: str, limit: int = MAX_NAME) -> str:
    """The parts joined by `-`; when too long, cut and made unique by a hash of the whole."""
    name = "-".join(parts)
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: limit - 9].rstrip('-.')}-{digest}"


def _market_part(value: str) -> str:
    return value.lower().replace(".", "-").replace("_", "-")


def engine_deployment(tier: str, pool: str, zone: str) -> str:
    """Deployment of one (tier, market); 45 characters leave room for ReplicaSet and pod suffixes."""
    return bounded(tier, _market_part(pool), _market_part(zone), limit=45)


def cache_claim(tier: str, zone: str | None) -> str:
    """Claim of the tier's cache: per zone when volumes are zonal, one for all otherwise."""
    return bounded(tier, "cache", *([_market_part(zone)] if zone else []), limit=52)


def cache_job(tier: str, zone: str | None, revision: str) -> str:
    """Job that fills the cache; another revision is another job."""
    digest = hashlib.sha256(revision.encode()).hexdigest()[:8]
    return bounded(tier, "cache", *([_market_part(zone)] if zone else []), digest, limit=52)


def service(tier: str) -> str:
    return bounded(tier, "engine")


def service_account(tier: str) -> str:
    return bounded(tier, "engine")


def disruption_budget(tier: str) -> str:
    return bounded(tier, "engine")


def network_policy(tier: str) -> str:
    return bounded(tier, "engine")


def demand_lease(tier: str, gateway_id: str) -> str:
    return bounded(tier, "demand", gateway_id)


def tier_labels(tier: str, role: str) -> dict[str, str]:
    """Labels of a child object. A tier's name is at most 40 characters, hence a valid value."""
    return {LABEL_MANAGED_BY: MANAGED_BY, LABEL_TIER: tier, LABEL_ROLE: role}
