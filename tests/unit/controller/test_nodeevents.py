"""Events about nodes: what is kept of them, and for which node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

from spotinference.api.kinds import EVENT, NODE, Json
from spotinference.clients.kube import WATCH_TIMEOUT_S, Kube, Listing, WatchEvent
from spotinference.controller import nodeevents
from spotinference.controller.nodeevents import NodeEvents
from spotinference.core.providers import EVENT_REASONS
from tests.support.eventually import eventually
from tests.unit.controller.objects import obj

MADE = "2026-11-21T05:00:00Z"
SAID = "2026-11-21T06:00:00Z"


def node(uid: str = "uid-1", made: str = MADE) -> Json:
    body = obj(NODE, "node-1", uid=uid, namespace=None)
    body["metadata"]["creationTimestamp"] = made
    return body


def event(reason: str = "SpotInterrupted", uid: str = "uid-1", **about: str) -> Json:
    return obj(
        EVENT,
        "node-1.18f2",
        involvedObject={"kind": "Node", "name": "node-1", "uid": uid, **about},
        reason=reason,
        firstTimestamp=SAID,
        lastTimestamp=SAID,
    )


def seen(*events: Json) -> tuple[NodeEvents, list[str]]:
    changed: list[str] = []
    it = NodeEvents(cast("Kube", None), changed.append)
    for body in events:
        it.saw(body)
    return it, changed


def test_an_event_about_a_node_is_known_and_its_tiers_are_looked_at() -> None:
    it, changed = seen(event())
    assert [e.reason for e in it.of(node())] == ["SpotInterrupted"]
    assert changed == ["node-1"]


def test_an_event_about_an_earlier_node_of_that_name_is_not_this_ones() -> None:
    it, _ = seen(event(uid="uid-0"))
    assert it.of(node()) == ()
    it, _ = seen(event(uid="node-1"))  # as the node problem detector writes it
    assert it.of(node(made="2026-11-21T07:00:00Z")) == ()
    assert len(it.of(node())) == 1


def test_other_reasons_and_other_kinds_are_not_kept() -> None:
    it, changed = seen(event("NodeReady"), event(kind="NodeClaim"), event(name=""))
    assert it.of(node()) == ()
    assert changed == []


def test_events_of_the_new_kind_without_counts_have_a_time_too() -> None:
    body = event()
    body |= {"firstTimestamp": None, "lastTimestamp": None, "eventTime": SAID}
    it, _ = seen(body)
    assert len(it.of(node())) == 1
    body |= {"eventTime": None}
    it, _ = seen(body)
    assert it.of(node()) == ()
    body["metadata"]["creationTimestamp"] = SAID
    it, _ = seen(body)
    assert len(it.of(node())) == 1


def test_the_memory_of_events_is_bounded() -> None:
    it = NodeEvents(cast("Kube", None), lambda _: None)
    for number in range(nodeevents.MAX_REMEMBERED + 5):
        it.saw(event(name=f"node-{number}"))
    assert len(it._newest) == nodeevents.MAX_REMEMBERED


class QuietKube:
    """Nothing ever happens; what was asked for is remembered."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def list(self, *_: object, **__: object) -> Listing:
        return Listing([], "1")

    async def watch(self, _: object, namespace: str, **how: Any) -> AsyncIterator[WatchEvent]:
        self.asked.append({"namespace": namespace, **how})
        await asyncio.Event().wait()
        yield WatchEvent("BOOKMARK", {})


async def test_each_reason_is_watched_alone_and_a_quiet_watch_is_no_frozen_one() -> None:
    """Without bookmarks, which the API server does not send for events, only its time-out ends it."""
    kube = QuietKube()
    task = asyncio.create_task(NodeEvents(cast("Kube", kube), lambda _: None).run())
    await eventually(lambda: len(kube.asked) == len(EVENT_REASONS), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    selectors = {f"involvedObject.kind=Node,reason={reason}" for reason in EVENT_REASONS}
    assert {how["field_selector"] for how in kube.asked} == selectors
    assert all(how["namespace"] == "default" for how in kube.asked)
    assert all(how["silence_s"] > WATCH_TIMEOUT_S for how in kube.asked)
