"""What a reflector does when its watch does not stand: it lists again, and never in a tight circle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from spotinference import errors
from spotinference.api.kinds import NODE, Json
from spotinference.clients.kube import Kube, Listing, WatchEvent
from spotinference.clients.reflector import Reflector
from tests.support.virtual_time import VirtualClock, virtual_time
from tests.unit.controller.objects import obj

REQUEST_S = 0.01


class Api:
    """One node; each watch ends after `lasts_s` with `error`, or normally."""

    def __init__(self, error: errors.SpotinferenceError | None, lasts_s: float = 0.0) -> None:
        self.error = error
        self.lasts_s = lasts_s
        self.lists = self.watches = 0

    async def list(self, *_: object, **__: object) -> Listing:
        self.lists += 1
        await asyncio.sleep(REQUEST_S)
        return Listing([self.node()], "5")

    async def watch(self, *_: object, **__: object) -> AsyncIterator[WatchEvent]:
        self.watches += 1
        await asyncio.sleep(REQUEST_S)
        yield WatchEvent("BOOKMARK", self.node())
        await asyncio.sleep(self.lasts_s)
        if self.error is not None:
            raise self.error

    def node(self) -> Json:
        return obj(NODE, "node-1", namespace=None, version=5)


async def run_for(seconds: float, api: Api, **how: Any) -> Reflector:
    reflector = Reflector(cast("Kube", api), NODE, **how)
    task = asyncio.create_task(reflector.run())
    await asyncio.sleep(seconds)
    assert not task.done()
    task.cancel()
    return reflector


@pytest.mark.fault(7)
@virtual_time
async def test_a_version_that_is_too_old_is_listed_anew_at_once(clock: VirtualClock) -> None:
    api = Api(errors.Expired("too old"), lasts_s=60)
    await run_for(60.2, api)
    assert api.lists == 2


@pytest.mark.fault(7)
@pytest.mark.parametrize("error", [errors.Expired("too old"), errors.ApiUnavailable("gone")])
def test_watches_that_end_at_once_are_not_followed_by_a_storm_of_lists(
    error: errors.SpotinferenceError,
) -> None:
    @virtual_time
    async def run(clock: VirtualClock) -> None:
        api = Api(error)
        await run_for(120, api)
        assert 10 <= api.lists <= 80
        assert api.watches == api.lists

    run()


@pytest.mark.fault(5)
@virtual_time
async def test_watches_that_end_in_order_but_at_once_are_not_asked_for_in_a_circle(
    clock: VirtualClock,
) -> None:
    api = Api(None)
    await run_for(120, api)
    assert 10 <= api.watches <= 80
    api = Api(None, lasts_s=30)
    await run_for(121, api)
    assert (api.lists, api.watches) == (1, 5)
