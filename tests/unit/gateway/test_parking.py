"""What the queues of those who wait keep in memory."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from spotinference.api.tier import TierSpec
from spotinference.core.observed import TierRef
from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.metrics import Metrics
from spotinference.gateway.parking import LINE_SLACK, Parking

AT = datetime(2026, 11, 21, tzinfo=UTC)
TIER: Any = SimpleNamespace(
    ref=TierRef("default", "demo"),
    names=("demo",),
    spec=TierSpec.model_validate(
        {"model": {"source": "hf://org/demo"}, "placement": {"pools": ["spot"]}}
    ),
)


async def test_those_who_gave_up_leave_nothing_while_others_wait_for_a_tier_that_never_comes() -> (
    None
):
    room = 0
    parking = Parking(GatewaySettings(), Metrics(), on_wanted=lambda *_: None, room=lambda *_: room)
    stays = [parking.enter(TIER, parking.ticket(AT, 10, "k"), wakes=True) for _ in range(3)]
    for _ in range(50 * LINE_SLACK):
        ticket = parking.ticket(AT, 10, "k")
        parking.enter(TIER, ticket, wakes=True)
        parking.leave(TIER.ref, ticket)
    last = parking.enter(TIER, parking.ticket(AT, 10, "k"), wakes=True)
    assert len(parking._queues[TIER.ref].line) <= 2 * 4 + LINE_SLACK
    room = 2
    parking.release(TIER.ref)
    assert [future.done() for future in (*stays, last)] == [True, True, False, False]
