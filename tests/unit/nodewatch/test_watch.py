"""From announcements to the node's condition: when it is written, kept, and taken down."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast

import pytest

from spotinference import errors
from spotinference.api.kinds import NODE, Json
from spotinference.clients.kube import Kube
from spotinference.core.announcements import CONFIRMATIONS, Announcement
from spotinference.core.notices import Signals, condition, notices, sightings
from spotinference.core.observed import Confidence, Notice
from spotinference.core.providers import AT_RISK, INTERRUPTION, RECLAIM
from spotinference.nodewatch import config
from spotinference.nodewatch.app import Watch
from tests.support.virtual_time import VirtualClock, virtual_time
from tests.unit.controller.objects import obj
from tests.unit.controller.world import FakeApi

GOES = Announcement(RECLAIM, "gcp: preempted")
MAY_GO = Announcement(AT_RISK, "aws: rebalance recommendation")


@dataclass
class Scripted:
    """A metadata service that says what it is told to, and then repeats itself."""

    says: list[Announcement | Exception | None] = field(default_factory=list)
    pause_s: float = 1.0

    async def present(self) -> bool:
        return True

    async def answer(self) -> Announcement | None:
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(said, Exception):
            raise said
        return said


class Node:
    """A node and the node-watch on it."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.api = FakeApi()
        self.metadata = Scripted()
        body = obj(NODE, "n", namespace=None)
        body |= {"spec": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        self.api.put(NODE, body)
        self.start()

    def start(self) -> None:
        """A new process on the same node."""
        kube = cast("Kube", self.api)
        self.watch = Watch(kube, self.metadata, self.clock, "n", 30)

    async def hears(self, *says: Announcement | Exception | None) -> None:
        self.metadata.says = list(says)
        for _ in says:
            await asyncio.sleep(await self.watch.step())

    @property
    def written(self) -> int:
        """Writes of the condition."""
        return sum(verb == "status" for verb, _, _ in self.api.writes)

    @property
    def cordoned(self) -> bool:
        return bool(self.body()["spec"].get("unschedulable"))

    def body(self) -> Json:
        return next(body for key, body in self.api.objects.items() if key[0] == NODE.kind)

    def shows(self) -> Json | None:
        return condition(self.body(), INTERRUPTION)

    def notice(self) -> tuple[Notice | None, Notice | None]:
        """As the operator reads it."""
        found = sightings(Signals(self.body()), "generic", 120, self.clock.now())
        return notices("n", found, {s.source: self.clock.now() for s in found}, 120)


@virtual_time
async def test_while_nothing_is_announced_nothing_is_written(clock: VirtualClock) -> None:
    node = Node(clock)
    await node.hears(*[None] * 100)
    assert node.written == 0


@virtual_time
async def test_a_reclaim_is_written_at_once_and_only_once(clock: VirtualClock) -> None:
    node = Node(clock)
    ends = clock.now() + timedelta(seconds=110)
    await node.hears(*[Announcement(RECLAIM, "aws: spot instance will terminate", ends)] * 60)
    assert node.written == 1
    assert node.notice() == (
        Notice("n", f"condition {INTERRUPTION}", ends, Confidence.FIRM),
        None,
    )


@virtual_time
async def test_a_hint_is_a_weak_notice_and_the_reclaim_after_it_a_firm_one(
    clock: VirtualClock,
) -> None:
    node = Node(clock)
    await node.hears(MAY_GO)
    firm, weak = node.notice()
    assert firm is None
    assert weak is not None
    await node.hears(GOES)
    firm, weak = node.notice()
    assert weak is None
    assert firm is not None


@virtual_time
async def test_a_restart_keeps_the_end_that_stands_and_writes_nothing(clock: VirtualClock) -> None:
    node = Node(clock)
    await node.hears(GOES)
    before = node.shows()
    node.start()
    await node.hears(*[GOES] * 20)
    assert node.shows() == before
    assert node.written == 1


@virtual_time
async def test_a_restart_into_a_metadata_service_that_fails_clears_nothing(
    clock: VirtualClock,
) -> None:
    node = Node(clock)
    await node.hears(GOES)
    node.start()
    unclear = errors.ApiUnavailable("hang")
    await node.hears(*[unclear] * 20, None, unclear, None, None, unclear, None, None)
    assert node.written == 1
    await node.hears(None)
    shown = node.shows()
    assert shown is not None
    assert shown["status"] == "False"


@virtual_time
async def test_what_is_taken_back_is_cleared_after_it_was_said_several_times(
    clock: VirtualClock,
) -> None:
    node = Node(clock)
    await node.hears(GOES, *[None] * (CONFIRMATIONS - 1))
    assert node.notice()[0] is not None
    await node.hears(None)
    assert node.notice() == (None, None)
    await node.hears(*[None] * 50)
    assert node.written == 2


@virtual_time
async def test_an_answer_that_flickers_does_not_make_the_condition_flap(
    clock: VirtualClock,
) -> None:
    node = Node(clock)
    await node.hears(*[GOES, None, MAY_GO] * 30)
    assert node.written == 1


@virtual_time
async def test_a_node_that_goes_is_cordoned_until_that_is_taken_back(clock: VirtualClock) -> None:
    node = Node(clock)
    await node.hears(MAY_GO)
    assert not node.cordoned, "a hint lasts for hours"
    await node.hears(*[GOES] * 5)
    assert node.cordoned
    assert len(node.api.writes) == 3
    await node.hears(*[None] * CONFIRMATIONS)
    assert not node.cordoned


@virtual_time
async def test_a_crash_between_the_condition_and_the_cordon_is_made_good(
    clock: VirtualClock,
) -> None:
    node = Node(clock)
    await node.hears(GOES)
    node.body()["spec"] = {}
    node.start()
    await node.hears(GOES)
    assert node.cordoned


@virtual_time
async def test_a_node_that_others_cordoned_stays_so(clock: VirtualClock) -> None:
    node = Node(clock)
    node.body()["spec"] = {"unschedulable": True}
    await node.hears(*[None] * 10, MAY_GO, *[None] * 10)
    assert node.cordoned
    assert node.written == 2


@virtual_time
async def test_a_new_end_is_written(clock: VirtualClock) -> None:
    node = Node(clock)
    for seconds in (60, 20):
        ends = clock.now() + timedelta(seconds=seconds)
        await node.hears(Announcement(RECLAIM, "azure: Preempt", ends))
    firm, _ = node.notice()
    assert firm is not None
    assert firm.deadline == ends
    assert node.written == 2


@virtual_time
async def test_a_node_that_registers_anew_gets_its_condition_again(clock: VirtualClock) -> None:
    node = Node(clock)
    await node.hears(GOES)
    body = node.body()
    body["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    node.api.put(NODE, body)
    await node.hears(*[GOES] * round(config.RECHECK_S + 2))
    assert node.notice()[0] is not None


@virtual_time
async def test_an_api_server_that_is_away_is_told_later(clock: VirtualClock) -> None:
    node = Node(clock)
    node.api.down = True
    await node.hears(GOES, GOES, GOES)
    assert node.written == 0
    node.api.down = False
    await node.hears(GOES)
    assert node.notice()[0] is not None


@virtual_time
async def test_failures_are_asked_again_soon_and_then_ever_less_often(clock: VirtualClock) -> None:
    node = Node(clock)
    node.metadata.says = [errors.ApiUnavailable("500")]
    pauses = [await node.watch.step() for _ in range(8)]
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10, 10]


def test_a_node_without_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPOTINFERENCE_NODE_WATCH_NODE", raising=False)
    with pytest.raises(errors.ConfigInvalid, match="--node"):
        config.load(provider="aws")
    with pytest.raises(errors.ConfigInvalid, match="--provider"):
        config.load(node="n", provider="ibm")
