"""The lane: urgent writes before all others, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from typing import cast

from spotinference import errors
from spotinference.api.kinds import DEPLOYMENT, POD, Json, Kind
from spotinference.clients.kube import Kube
from spotinference.controller.metrics import Metrics
from spotinference.controller.store import Store
from spotinference.controller.writer import YIELD_S, Writer
from tests.support.virtual_time import VirtualClock, virtual_time
from tests.unit.controller.objects import deployment, engine_pod
from tests.unit.controller.world import FakeApi


class SlowApi(FakeApi):
    """Applies take a while, as they do when many come at once."""

    apply_s = 0.1

    async def apply(self, kind: Kind, body: Json, *, subresource: str | None = None) -> Json:
        await asyncio.sleep(self.apply_s)
        return await super().apply(kind, body, subresource=subresource)


def writer(clock: VirtualClock) -> tuple[Writer, SlowApi, list[bool]]:
    api, leads = SlowApi(), [True]
    api.put(POD, engine_pod())
    made = Writer(cast("Kube", api), Store(clock), Metrics(), lambda: leads[0])
    return made, api, leads


def doom(it: Writer) -> asyncio.Task[None]:
    return asyncio.create_task(it.annotate(POD, engine_pod(), {"doomed": "yes"}))


@virtual_time
async def test_what_is_not_urgent_steps_back_behind_every_urgent_write(
    clock: VirtualClock,
) -> None:
    it, api, _ = writer(clock)
    urgent = [
        asyncio.create_task(it.apply(DEPLOYMENT, deployment(1, name=f"d-{n}"), urgent=True))
        for n in range(3)
    ]
    await asyncio.sleep(0)
    await asyncio.gather(doom(it), *urgent)
    assert [write[1] for write in api.writes] == ["Deployment"] * 3 + ["Pod"]


@virtual_time
async def test_a_write_steps_back_for_a_moment_only(clock: VirtualClock) -> None:
    it, api, _ = writer(clock)
    api.apply_s = 60
    urgent = asyncio.create_task(it.apply(DEPLOYMENT, deployment(1), urgent=True))
    await asyncio.sleep(0)
    began = clock.monotonic()
    await doom(it)
    assert clock.monotonic() - began <= YIELD_S + 0.01
    urgent.cancel()
    await asyncio.gather(urgent, return_exceptions=True)
    began = clock.monotonic()
    await doom(it)
    assert clock.monotonic() == began, "an urgent write that was given up blocks nobody"


@virtual_time
async def test_leadership_lost_while_stepping_back_is_noticed(clock: VirtualClock) -> None:
    it, api, leads = writer(clock)
    urgent = asyncio.create_task(it.apply(DEPLOYMENT, deployment(1), urgent=True))
    await asyncio.sleep(0)
    waiting = doom(it)
    await asyncio.sleep(0.05)
    leads[0] = False
    await asyncio.gather(urgent, waiting, return_exceptions=True)
    assert isinstance(waiting.exception(), errors.NotLeader)
    assert [write[1] for write in api.writes] == ["Deployment"]
