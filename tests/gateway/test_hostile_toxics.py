"""Eight toxics between gateway and engine: the same answer, or an honest error; never half a one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from spotinference.api.kinds import POD
from tests.gateway.test_edges import is_whole
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, Bench, Engine, Seen, bench, chat, stream
from tests.support.toxics import TOXICS, Kind, Link, Toxic, hop

SETTINGS = {
    "connect_timeout_s": 0.5,
    "first_byte_timeout_s": 0.4,
    "first_byte_floor_s": 0.4,
    "next_byte_timeout_s": 0.4,
    "next_byte_floor_s": 0.4,
    "answer_timeout_s": 0.8,
    "answer_floor_s": 0.8,
    "deadline_check_s": 0.05,
    "max_losses": 2,
}
MILD = {"latency", "bandwidth", "slicer", "slow_close"}
"""They delay or cut up, but what was said arrives."""
PLACES = {"at-once": 0, "in-the-head": 60, "mid-answer": 4000}


@asynccontextmanager
async def spoilt(b: Bench) -> AsyncIterator[tuple[Link, Engine]]:
    """A replica of `demo` behind a hop."""
    engine = Engine("spoilt", await b.start_engine())
    b.engines["spoilt"] = engine
    async with hop(engine.sim.port) as link:
        b.kube.put(POD, b.pod("spoilt", "demo", link.port))
        await eventually(lambda: "spoilt" in b.routable(), 5)
        yield link, engine


async def elsewhere(b: Bench, http: aiohttp.ClientSession) -> Seen:
    """The answer of a replica that is gone again: no connection through the hop exists yet."""
    clean = await b.replica()
    with b.preferring(clean):
        undisturbed = await stream(http, CHAT, chat())
    b.kube.drop(POD, clean.pod)
    await eventually(lambda: b.routable() == ["spoilt"], 5)
    return undisturbed


async def ask_whole(http: aiohttp.ClientSession) -> tuple[int, str]:
    """Status, and the text of the answer or the code of the error."""
    async with http.post(CHAT, json=chat(stream=False)) as response:
        body = await response.json()
        if response.status == 200:
            return 200, body["choices"][0]["message"]["content"]
        return response.status, body["error"]["code"]


async def ask_stream(http: aiohttp.ClientSession) -> Seen | int:
    """What was seen, or the status of a refusal."""
    seen = await stream(http, CHAT, chat())
    return seen if seen.status == 200 else seen.status


def honest(answer: Seen | int) -> bool:
    """Nobody takes this for a whole answer."""
    if isinstance(answer, int):
        return answer >= 500
    return answer.error is not None and not answer.clean and answer.done == 0


@pytest.mark.fault(37, 61, 62)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", TOXICS)
async def test_with_another_replica_a_spoilt_one_costs_no_answer(kind: Kind, place: str) -> None:
    async with bench(**SETTINGS) as b:
        await b.tier("demo")
        await b.replica()
        async with b.http() as http, spoilt(b) as (link, engine):
            with b.preferring(b.engines["demo-0"]):
                undisturbed = await stream(http, CHAT, chat())
            text = undisturbed.text
            link.toxic = Toxic(kind, after_bytes=PLACES[place])
            with b.preferring(engine):
                seen = await asyncio.wait_for(stream(http, CHAT, chat()), 10)
                is_whole(seen, undisturbed)
                assert await asyncio.wait_for(ask_whole(http), 10) == (200, text)
            assert link.passed >= 1


@pytest.mark.fault(37, 61, 62)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", TOXICS)
async def test_alone_it_gives_the_same_answer_or_an_honest_error(kind: Kind, place: str) -> None:
    async with bench(**SETTINGS) as b:
        await b.tier("demo", wake={"cap": "1s", "budget": "1s"})
        async with b.http() as http, spoilt(b) as (link, _):
            undisturbed = await elsewhere(b, http)
            link.toxic = Toxic(kind, after_bytes=PLACES[place])
            streamed, (status, said) = await asyncio.gather(
                asyncio.wait_for(ask_stream(http), 20), asyncio.wait_for(ask_whole(http), 20)
            )
            if kind in MILD or (isinstance(streamed, Seen) and streamed.done):
                assert isinstance(streamed, Seen)  # in pieces, each carried on where it was cut
                is_whole(streamed, undisturbed)
            else:
                assert honest(streamed), streamed
            if kind in MILD or status == 200:
                assert (status, said) == (200, undisturbed.text)
            else:
                assert status >= 500, said
                assert said in {"upstream_lost", "wake_timeout", "engine_failed"}


@pytest.mark.fault(37, 62)
@pytest.mark.parametrize("kind", TOXICS)
async def test_a_hop_that_recovers_carries_the_rest_of_the_same_stream(kind: Kind) -> None:
    async with bench(**SETTINGS) as b:
        await b.tier("demo")
        async with b.http() as http, spoilt(b) as (link, _):
            undisturbed = await elsewhere(b, http)
            link.toxic = Toxic(kind, after_bytes=PLACES["mid-answer"], times=1)
            running = asyncio.create_task(stream(http, CHAT, chat()))
            if kind == "down":
                await eventually(lambda: not link.listening, 5)
                await link.start()
            is_whole(await asyncio.wait_for(running, 10), undisturbed)
