"""What clients are told about the wait comes from the tier's own wakes, and is held to the truth."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from spotinference.api import times
from spotinference.api.kinds import Json
from spotinference.core.observed import TierRef
from tests.support.eventually import eventually
from tests.support.fake_kube import NAMESPACE
from tests.support.gateway import CHAT, bench, chat, stream

DEMO = TierRef(NAMESPACE, "demo")


def wake(begun_s_ago: float, *stages: tuple[str, float], ready: float | None = None) -> Json:
    """A wake of the tier's status; times in seconds after its begin."""
    start = datetime.now(UTC) - timedelta(seconds=begun_s_ago)

    def at(seconds: float) -> str:
        return times.to_micro_text(start + timedelta(seconds=seconds))

    body: Json = {
        "startedAt": at(0),
        "deadline": at(600),
        "stage": "ready" if ready is not None else stages[-1][0],
        "stages": [{"name": name, "startedAt": at(s)} for name, s in stages],
        "eta": at(590),
    }
    if ready is not None:
        body["readyAt"] = at(ready)
        body["stages"].append({"name": "ready", "startedAt": at(ready)})
    return body


FIRST = (("scheduling", 1.0), ("starting", 41.0), ("loading", 61.0))


async def test_the_wait_is_told_from_the_stages_of_the_tiers_last_wake() -> None:
    async with bench(fail_fast_s=0.01, heartbeat_s=0.02) as b:
        await b.tier("demo", status={"phase": "Asleep", "wake": wake(9000, *FIRST, ready=100)})
        arrived: list[bytes] = []
        async with b.http() as http:
            waiting = asyncio.create_task(stream(http, CHAT, chat(), arrived=arrived))
            await eventually(lambda: b"eta_seconds=100" in b"".join(arrived), 5)
            status = {"phase": "Waking", "wake": wake(6, ("scheduling", 1.0), ("loading", 5.0))}
            await b.tier("demo", status=status)
            await eventually(lambda: b"eta_seconds=38" in b"".join(arrived), 5, "a machine at once")
            await b.replica()
            seen = await waiting
        assert int(seen.headers["x-spotinference-eta"]) in range(99, 101)
        registry = b.gateway.context.metrics.registry
        name = "spotinference_gateway_eta_error_seconds"
        assert registry.get_sample_value(f"{name}_count", {"tier": "demo"}) == 1
        below = [
            registry.get_sample_value(f"{name}_bucket", {"tier": "demo", "le": bound})
            for bound in ("60.0", "120.0")
        ]
        assert below == [0, 1], "told 100 s, and it took a few"


async def test_a_wake_that_is_seen_again_is_learned_once() -> None:
    async with bench() as b:
        asleep = {"phase": "Asleep", "wake": wake(9000, *FIRST, ready=100)}
        ready = {"phase": "Ready", "wake": wake(500, *FIRST, ready=200)}

        def total() -> int | None:
            tier = b.gateway.context.catalogue.get(DEMO)
            return tier.eta_seconds(datetime.now(UTC), 0) if tier is not None else None

        for status in (asleep, asleep):
            await b.tier("demo", status=status)
        assert total() == 100
        for status in (ready, ready, ready):
            await b.tier("demo", status=status)
        await eventually(lambda: total() == 150, 5, "the mean of the two")


async def test_a_first_wake_is_told_from_what_the_operator_expects() -> None:
    async with bench() as b:
        begun = wake(10, ("scheduling", 1.0))
        await b.tier("demo", status={"phase": "Waking", "wake": begun})
        tier = b.gateway.context.catalogue.get(DEMO)
        assert tier is not None
        assert tier.eta_seconds(datetime.now(UTC), 0) in range(579, 582)
