"""Evicting a pod as a provider's drain does: through the API, so that budgets are asked."""

from __future__ import annotations

import structlog

from spotinference import errors
from spotinference.api.kinds import POD, Json
from spotinference.clients.kube import Kube

log = structlog.get_logger(__name__)

RETRY_S = 5.0
"""How often a refused eviction is tried again (kubectl drain)."""


async def evict(kube: Kube, pod: Json) -> bool:
    """Whether the API server accepted it; a disruption budget may say "not yet"."""
    meta = pod["metadata"]
    body: Json = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
        "deleteOptions": {"preconditions": {"uid": meta["uid"]}},
    }
    try:
        await kube.create(POD, body, subresource="eviction")
    except errors.SpotinferenceError as error:
        log.info("pod.eviction_refused", pod=f"{meta['namespace']}/{meta['name']}", why=str(error))
        return False
    return True
