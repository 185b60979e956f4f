"""`/v1/models`: the tiers that a key opens, asleep or not, under every name they have."""

from __future__ import annotations

from urllib.parse import unquote

from spotinference.api.keys import ApiKey
from spotinference.api.kinds import Json
from spotinference.gateway.catalogue import Tier
from spotinference.gateway.context import Context

PREFIX = "/v1/models/"


def listed(context: Context, key: ApiKey) -> Json:
    """The body of GET /v1/models."""
    tiers = sorted(context.catalogue.of(key.namespace), key=lambda tier: tier.ref)
    data = [
        _shown(context, tier, name)
        for tier in tiers
        if tier.opened_by(key)
        for name in tier.names
        if context.catalogue.find(key.namespace, name) is tier
    ]
    return {"object": "list", "data": data}


def name_in(path: str) -> str:
    """The model of GET /v1/models/{id}; ids may hold slashes, sent as they are or as %2F."""
    return unquote(path.removeprefix(PREFIX), errors="replace")


def shown(context: Context, tier: Tier, name: str) -> Json:
    """The body of GET /v1/models/{id}."""
    return _shown(context, tier, name)


def _shown(context: Context, tier: Tier, name: str) -> Json:
    """One model: OpenAI's fields, vLLM's (root, parent, max_model_len), and ours.

    `eta_seconds`: until a replica would be there if it were asked for now; null when one is there,
    or none will come.
    """
    ready = sum(replica.routable for replica in context.replicas.of(tier.ref))
    paused = tier.spec.paused
    phase = "paused" if paused else tier.phase.lower() or "unknown"
    return {
        "id": name,
        "object": "model",
        "created": tier.created,
        "owned_by": tier.ref.namespace,
        "root": tier.names[0],
        "parent": None if name == tier.names[0] else tier.names[0],
        "max_model_len": tier.context_window,
        "status": phase,
        "ready_replicas": ready,
        "eta_seconds": None if ready or paused else tier.eta_seconds(context.clock.now(), 0),
        "revision": tier.revision,
    }
