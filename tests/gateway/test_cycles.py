"""What a request leaves behind is freed at once, not when the collector of cycles comes round.

It comes seldom (`app.GC_THRESHOLDS`), and an answer that was cut keeps what it had delivered: in an
hour of clients that leave, cycles were a hundred megabytes.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import aiohttp
import pytest

from spotinference.devcluster.simengine.faults import Fault
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, Bench, Engine, bench, chat, stream

OURS = ("spotinference.gateway", "spotinference.clients", "spotinference.core")
REQUESTS = 5

Use = Callable[[Bench, Engine, aiohttp.ClientSession], Awaitable[None]]


@contextmanager
def cycles() -> Iterator[Counter[str]]:
    """After the block: what of ours only the collector could have freed, by class."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found.update(
            type(thing).__qualname__
            for thing in gc.garbage
            if (type(thing).__module__ or "").startswith(OURS)
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.collect()


async def streamed(_: Bench, __: Engine, http: aiohttp.ClientSession) -> None:
    assert (await stream(http, CHAT, chat())).done == 1


async def whole(_: Bench, __: Engine, http: aiohttp.ClientSession) -> None:
    async with http.post(CHAT, json=chat(stream=False)) as response:
        assert response.status == 200
        await response.read()


async def unknown(_: Bench, __: Engine, http: aiohttp.ClientSession) -> None:
    async with http.post(CHAT, json=chat(model="nobody")) as response:
        assert response.status == 404
        await response.read()


async def left(b: Bench, engine: Engine, http: aiohttp.ClientSession) -> None:
    async with http.post(CHAT, json=chat(max_tokens=3000, ignore_eos=True)) as response:
        await response.content.readany()
        response.close()
    await eventually(lambda: not (b.gateway.server._running or engine.sim.engine.unfinished))


async def left_in_a_crowd(b: Bench, engine: Engine, http: aiohttp.ClientSession) -> None:
    """So many that some of them are found gone by what is written to them."""
    await asyncio.gather(*(left(b, engine, http) for _ in range(100)))


async def left_waiting(b: Bench, _: Engine, http: aiohttp.ClientSession) -> None:
    waiting = asyncio.create_task(stream(http, CHAT, chat(model="asleep")))
    await eventually(lambda: b.parked("asleep") == 1)
    waiting.cancel()
    await asyncio.wait([waiting])
    await eventually(lambda: not b.gateway.server._running)


async def cut(_: Bench, engine: Engine, http: aiohttp.ClientSession) -> None:
    engine.sim.faults.plan = Fault(mode="rst", after_chunks=9, times=1)
    assert (await stream(http, CHAT, chat())).done == 1


async def replayed(_: Bench, engine: Engine, http: aiohttp.ClientSession) -> None:
    engine.sim.faults.plan = Fault(mode="rst", after_chunks=9, times=1)
    assert (await stream(http, CHAT, chat(temperature=1, seed=7))).done == 1


async def failed(_: Bench, engine: Engine, http: aiohttp.ClientSession) -> None:
    engine.sim.faults.plan = Fault(mode="status", status=400, times=1)
    async with http.post(CHAT, json=chat(stream=False)) as response:
        assert response.status == 400
        await response.read()


async def response_stream(_: Bench, __: Engine, http: aiohttp.ClientSession) -> None:
    body = {"model": "demo", "input": "hi", "stream": True, "max_output_tokens": 9}
    assert (await stream(http, "/v1/responses", body)).clean


USES = {
    use.__name__: use
    for use in (
        streamed,
        whole,
        unknown,
        left,
        left_in_a_crowd,
        left_waiting,
        cut,
        replayed,
        failed,
        response_stream,
    )
}


@pytest.mark.parametrize("name", USES)
async def test_a_request_leaves_no_cycle(name: str) -> None:
    async with bench(eject_s=0.01) as b:
        await b.tier("demo")
        await b.tier("asleep")
        engine = await b.replica(tokens_per_s=500 if name.startswith("left") else 0)
        async with b.http() as http:
            await USES[name](b, engine, http)  # what is made once
            with cycles() as found:
                for _ in range(1 if "crowd" in name else REQUESTS):
                    await USES[name](b, engine, http)
                await asyncio.sleep(0)
        assert not found
