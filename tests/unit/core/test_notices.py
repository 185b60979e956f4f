"""Golden nodes: each provider's node objects before and during an interruption, and what is read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from spotinference.api import times
from spotinference.api.kinds import Json
from spotinference.core.notices import (
    EVENT_GRACE_S,
    HINT_S,
    Sighting,
    Signals,
    notices,
    sightings,
    time_in,
)
from spotinference.core.observed import Confidence, NodeEvent, Notice
from spotinference.core.providers import SIGNS, Provider, recognise

FOLDER = Path(__file__).parent / "nodes"
GOLDEN = sorted(FOLDER.glob("*.yaml"))
NOW = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)
Read = tuple[Notice | None, Notice | None]


def read(
    node: Json,
    provider: Provider,
    *,
    events: tuple[NodeEvent, ...] = (),
    notice_seconds: int = 120,
    now: datetime = NOW,
) -> Read:
    found = sightings(Signals(node, events), provider, notice_seconds, now)
    seen = {s.source: NOW for s in found}
    return notices(node["metadata"]["name"], found, seen, notice_seconds)


def golden(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def events_of(case: Json) -> tuple[NodeEvent, ...]:
    return tuple(
        NodeEvent(e["reason"], times.parse(e["firstTimestamp"]), times.parse(e["lastTimestamp"]))
        for e in case["events"]
    )


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
@pytest.mark.parametrize("auto", [False, True], ids=["named", "auto"])
def test_a_node_shows_nothing_before_and_its_notice_during_an_interruption(
    file: Path, auto: bool
) -> None:
    case = golden(file)
    provider: Provider = "auto" if auto else case["provider"]
    length, expect = case["noticeSeconds"], case["expect"]
    assert read(case["before"], provider, notice_seconds=length) == (None, None)
    firm, weak = read(case["during"], provider, events=events_of(case), notice_seconds=length)
    if expect["confidence"] == "weak":
        assert firm is None
        assert weak is not None
        assert (weak.source, weak.confidence) == (expect["source"], Confidence.WEAK)
        assert weak.deadline == NOW + timedelta(seconds=HINT_S)
    else:
        assert weak is None
        assert firm == Notice(
            case["during"]["metadata"]["name"], expect["source"], times.parse(expect["deadline"])
        )


def test_every_provider_has_a_golden_node() -> None:
    shown = {golden(file)["provider"] for file in GOLDEN}
    assert shown == set(SIGNS) == set(get_args(Provider)) - {"auto"}


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_auto_knows_the_provider_by_the_node(file: Path) -> None:
    case = golden(file)
    assert case["provider"] in recognise(case["before"])


def test_another_providers_signs_mean_nothing() -> None:
    karpenter = golden(FOLDER / "karpenter.yaml")["during"]
    assert read(karpenter, "gke") == (None, None)


def test_a_notice_after_a_hint_is_a_notice() -> None:
    case = golden(FOLDER / "nth-rebalance.yaml")["during"]
    case["spec"]["taints"].append(
        {"key": "aws-node-termination-handler/spot-itn", "effect": "NoSchedule"}
    )
    firm, weak = read(case, "nth")
    assert weak is None
    assert firm is not None
    assert firm.deadline == NOW + timedelta(seconds=120)


def test_a_stated_end_wins_over_an_assumed_one_and_the_earliest_of_several_counts() -> None:
    early, late = NOW + timedelta(seconds=10), NOW + timedelta(seconds=300)
    found = (
        Sighting("a", Confidence.FIRM),
        Sighting("b", Confidence.FIRM, stated=late),
        Sighting("c", Confidence.FIRM, stated=early),
    )
    firm, _ = notices("n", found, {"a": NOW, "b": NOW, "c": NOW}, 5)
    assert firm is not None
    assert firm.deadline == early


def test_an_event_is_believed_only_for_a_while_because_it_cannot_be_taken_back() -> None:
    node = golden(FOLDER / "karpenter-event.yaml")["during"]
    event = (NodeEvent("SpotInterrupted", NOW, NOW),)
    last = NOW + timedelta(seconds=120 + EVENT_GRACE_S)
    firm, _ = read(node, "karpenter", events=event, now=last - timedelta(seconds=1))
    assert firm is not None
    assert read(node, "karpenter", events=event, now=last) == (None, None)


def test_a_repeated_event_moves_no_deadline_but_keeps_a_hint_alive() -> None:
    node = golden(FOLDER / "karpenter-event.yaml")["during"]
    again = NOW + timedelta(seconds=100)
    firm, _ = read(node, "karpenter", events=(NodeEvent("SpotInterrupted", NOW, again),), now=again)
    assert firm is not None
    assert firm.deadline == NOW + timedelta(seconds=120)
    hint = (NodeEvent("SpotRebalanceRecommendation", NOW, again),)
    _, weak = read(node, "karpenter", events=hint, now=again)
    assert weak is not None
    assert weak.deadline == again + timedelta(seconds=HINT_S)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("until 2026-11-01T12:00:05Z", NOW + timedelta(seconds=5)),
        ("Preempt Scheduled: Sun, 01 Nov 2026 12:00:05 GMT. For more", NOW + timedelta(seconds=5)),
        ("Sun, 1 Nov 2026 12:00:05 GMT", NOW + timedelta(seconds=5)),
        ("Sun, 41 Nov 2026 12:00:05 GMT", None),
        ("soon", None),
        ("", None),
    ],
)
def test_the_time_in_a_message(text: str, at: datetime | None) -> None:
    assert time_in(text) == at
