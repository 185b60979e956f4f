"""Which tiers a gateway knows, from the objects that the API server hands it."""

from __future__ import annotations

from spotinference.api.kinds import Json
from spotinference.gateway.catalogue import Catalogue
from tests.support import specs


def stored(change: Json) -> Json:
    body = specs.changed(specs.tier(), change)
    created = {"creationTimestamp": "2026-11-01T12:00:00Z", "uid": "u", "namespace": "default"}
    return {**body, "metadata": {**body["metadata"], **created}}


def test_defaults_of_a_newer_crd_make_no_tier_unreadable() -> None:
    """An upgrade brings the CRDs first: until we are replaced, their defaults stand in all tiers."""
    catalogue = Catalogue()
    body = stored({"spec.reserve": {"share": 1}, "spec.scaling.surge": 2})
    catalogue.changed(None, body)
    assert catalogue.find("default", body["metadata"]["name"]) is not None
    catalogue.changed(body, stored({"spec.wake.cap": "soon"}))
    assert catalogue.find("default", body["metadata"]["name"]) is None
    assert catalogue.invalid("default", body["metadata"]["name"]) is not None
