"""The signs of an interruption per provider, and the health of a node."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from spotinference.api.kinds import Json
from spotinference.core.notices import Signals, notices, sightings
from spotinference.core.observed import Notice
from spotinference.core.providers import Provider

SEEN = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)
READY = {"type": "Ready", "status": "True"}


def notice_of(node: Json, provider: Provider, notice_seconds: int, seen: datetime) -> Notice | None:
    """The firm notice of a node whose signs were all first seen at `seen`."""
    found = sightings(Signals(node), provider, notice_seconds, seen)
    return notices("n", found, {s.source: seen for s in found}, notice_seconds)[0]


def node(**parts: object) -> Json:
    return {"metadata": {"name": "n"}, "spec": {}, "status": {"conditions": [READY]}, **parts}


def tainted(key: str, added: str | None = None) -> Json:
    taint = {"key": key, "effect": "NoSchedule", **({"timeAdded": added} if added else {})}
    return node(spec={"taints": [taint]})


@pytest.mark.parametrize(
    ("provider", "key"),
    [
        ("gke", "cloud.google.com/impending-node-termination"),
        ("karpenter", "karpenter.sh/disrupted"),
        ("nth", "aws-node-termination-handler/spot-itn"),
        ("aks", "remediator.kubernetes.azure.com/unschedulable"),
        ("generic", "spotinference.dev/impending-interruption"),
        ("eks", "spotinference.dev/impending-interruption"),
    ],
)
def test_each_provider_has_its_taint(provider: Provider, key: str) -> None:
    found = notice_of(tainted(key), provider, 120, SEEN)
    assert found is not None
    assert found.source == f"taint {key}"
    assert found.deadline == SEEN + timedelta(seconds=120)


def test_the_time_on_a_taint_wins_over_when_we_saw_it() -> None:
    found = notice_of(
        tainted("karpenter.sh/disrupted", "2026-11-01T11:59:00Z"), "karpenter", 120, SEEN
    )
    assert found is not None
    assert found.deadline == SEEN + timedelta(seconds=60)


def test_an_announced_end_wins_over_the_usual_notice_time() -> None:
    body = node(
        metadata={
            "name": "n",
            "annotations": {"karpenter.sh/nodeclaim-termination-timestamp": "2026-11-01T12:05:00Z"},
        }
    )
    found = notice_of(body, "karpenter", 120, SEEN)
    assert found is not None
    assert found.deadline == SEEN + timedelta(minutes=5)


def test_a_graceful_node_shutdown_is_a_notice() -> None:
    ready = {"type": "Ready", "status": "False", "message": "node is shutting down"}
    found = notice_of(node(status={"conditions": [ready]}), "gke", 30, SEEN)
    assert found is not None
    assert found.deadline == SEEN + timedelta(seconds=30)


@pytest.mark.parametrize(
    ("provider", "means_notice"),
    [("eks", True), ("nth", True), ("aks", True), ("gke", False), ("generic", False)],
)
def test_a_cordon_is_a_notice_only_where_the_provider_cordons(
    provider: Provider, means_notice: bool
) -> None:
    body = node(spec={"unschedulable": True})
    assert (notice_of(body, provider, 120, SEEN) is not None) == means_notice


@pytest.mark.parametrize("provider", ["gke", "eks", "karpenter", "nth", "aks", "generic"])
def test_an_ordinary_spot_node_shows_no_notice(provider: Provider) -> None:
    body = tainted("nvidia.com/gpu")
    body["metadata"]["labels"] = {"cloud.google.com/gke-spot": "true"}
    assert notice_of(body, provider, 120, SEEN) is None


def test_a_damaged_time_falls_back_to_the_notice_time() -> None:
    found = notice_of(tainted("karpenter.sh/disrupted", "yesterday"), "karpenter", 120, SEEN)
    assert found is not None
    assert found.deadline == SEEN + timedelta(seconds=120)
