"""Events on tiers: deterministic names, counted repetitions, a bounded rate."""

from __future__ import annotations

import asyncio

from spotinference import errors
from spotinference.api.conditions import Reason
from spotinference.controller.events import BURST, REPEAT_S
from spotinference.core.plan import EventNote, EventType
from tests.support.virtual_time import VirtualClock, virtual_time
from tests.unit.controller.objects import REF, TIER_UID
from tests.unit.controller.world import Shell

NOTE = EventNote(EventType.WARNING, Reason.NO_CAPACITY, "no market has capacity")


@virtual_time
async def test_a_repetition_is_a_higher_count_of_the_same_event(clock: VirtualClock) -> None:
    it = Shell(clock)
    for _ in range(10):
        await it.events.post(REF, TIER_UID, NOTE)
        await asyncio.sleep(REPEAT_S / 5)
    events = [body for (kind, _, _), body in it.api.objects.items() if kind == "Event"]
    assert len(events) == 1
    assert [verb for verb, _, _ in it.wrote()] == ["create", "patch"]
    assert events[0]["count"] == 6


@virtual_time
async def test_another_message_is_another_event(clock: VirtualClock) -> None:
    it = Shell(clock)
    await it.events.post(REF, TIER_UID, NOTE)
    await it.events.post(REF, TIER_UID, EventNote(NOTE.type, NOTE.reason, "still none"))
    assert len({name for _, _, name in it.wrote()}) == 2


@virtual_time
async def test_a_tier_that_babbles_is_cut_off_at_its_budget(clock: VirtualClock) -> None:
    it = Shell(clock)
    for number in range(200):
        await it.events.post(REF, TIER_UID, EventNote(NOTE.type, NOTE.reason, f"no {number}"))
    assert len(it.wrote()) == BURST


@virtual_time
async def test_an_event_known_to_a_former_process_is_touched_not_doubled(
    clock: VirtualClock,
) -> None:
    it = Shell(clock)
    await it.events.post(REF, TIER_UID, NOTE)
    it.events._posted.clear()
    await it.events.post(REF, TIER_UID, NOTE)
    assert [verb for verb, _, _ in it.wrote()] == ["create", "create", "patch"]


@virtual_time
async def test_a_lost_event_is_no_failure(clock: VirtualClock) -> None:
    it = Shell(clock)
    it.api.refusals["create", "Event"] = errors.Forbidden("no")
    await it.events.post(REF, TIER_UID, NOTE)
