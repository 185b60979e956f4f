"""A replica has a notice: its answers finish there or leave in time, and nobody hears it."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from spotinference.api import names
from spotinference.api.kinds import POD, Json
from spotinference.core.observed import TierRef
from spotinference.devcluster.simengine.faults import Fault
from tests.support.continuation import heard
from tests.support.evacuation import evacuated, notice
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, Bench, Engine, Seen, bench, chat, stream

SPEED = 100.0


def text(seen: Seen) -> str:
    assert seen.error is None, seen.error
    assert (seen.clean, seen.done, len(seen.identities)) == (True, 1, 1)
    return heard(seen.chunks)[0].text


async def streams(b: Bench, engine: Engine, *bodies: Json) -> list[asyncio.Task[Seen]]:
    """Running on this replica, each with some tokens."""
    arrived: list[list[bytes]] = [[] for _ in bodies]

    async def one(body: Json, into: list[bytes]) -> Seen:
        async with b.http() as http:
            return await stream(http, CHAT, body, arrived=into)

    with b.preferring(engine):
        tasks = [
            asyncio.create_task(one(body, into)) for body, into in zip(bodies, arrived, strict=True)
        ]
        await eventually(lambda: all(b"".join(into).count(b'"content"') > 3 for into in arrived), 5)
    return tasks


def on(b: Bench, engine: Engine) -> int:
    replicas = b.gateway.context.replicas.of(TierRef("default", "demo"))
    return sum(len(r.answers) for r in replicas if r.name == engine.pod)


async def test_what_fits_finishes_where_it_is_and_the_rest_moves_before_the_cut() -> None:
    async with bench(evacuation_tick_s=0.02, evacuation_margin_s=0.2) as b:
        await b.tier("demo")
        doomed = await b.replica(tokens_per_s=SPEED)
        other = await b.replica()
        long = {"max_tokens": 500, "ignore_eos": True}
        bodies = [
            chat(max_tokens=50, ignore_eos=True),
            chat("a long one", **long),
            chat("a sampled one", temperature=0.9, seed=3, **long),
        ]
        with b.preferring(other):
            async with b.http() as http:
                whole = [text(await stream(http, CHAT, body)) for body in bodies]
        other.sim.requests.clear()
        running = await streams(b, doomed, *bodies)
        notice(b, doomed, 3)
        short, *moved = [text(await task) for task in running]
        assert short == whole[0]
        assert moved == whole[1:]
        assert evacuated(b) == 2
        assert [r["path"] for r in other.sim.requests].count("/v1/completions") == 1
        assert len(other.sim.requests) == 2
        assert not interruptions(b)


async def test_with_nowhere_to_go_an_answer_stays_until_a_replica_comes() -> None:
    async with bench(evacuation_tick_s=0.02, evacuation_margin_s=0.2) as b:
        await b.tier("demo")
        doomed = await b.replica(tokens_per_s=SPEED)
        body = chat(max_tokens=1000, ignore_eos=True)
        (task,) = await streams(b, doomed, body)
        notice(b, doomed, 5)
        await eventually(lambda: not b.routable(), 5)
        stays = on(b, doomed)
        await b.replica()
        assert stays == 1
        assert len(text(await asyncio.wait_for(task, 8))) > 2000
        assert evacuated(b) == 1


async def test_many_answers_leave_in_portions() -> None:
    async with bench(evacuation_tick_s=0.05, evacuation_margin_s=0.2) as b:
        await b.tier("demo")
        doomed = await b.replica(tokens_per_s=10)
        other = await b.replica()
        bodies = [chat(f"story {i}", max_tokens=200, ignore_eos=True) for i in range(20)]
        running = await streams(b, doomed, *bodies)
        notice(b, doomed, 8)
        counts: list[int] = []

        def gone() -> bool:
            counts.append(on(b, doomed))
            return counts[-1] == 0

        await eventually(gone, 8)
        assert {count for count in counts if 0 < count < 20}, counts
        await eventually(lambda: len(other.sim.requests) == 20, 5)
        for task in running:
            assert text(await task)


async def test_a_notice_that_is_withdrawn_or_no_time_moves_nobody() -> None:
    async with bench(evacuation_tick_s=0.02) as b:
        await b.tier("demo")
        doomed = await b.replica(tokens_per_s=SPEED)
        await b.replica()
        (task,) = await streams(b, doomed, chat(max_tokens=60, ignore_eos=True))
        nonsense = {names.ANNOTATION_DOOMED_UNTIL: "soon"}
        b.kube.put(POD, b.pod(doomed.pod, "demo", doomed.sim.port, annotations=nonsense))
        await eventually(lambda: doomed.pod not in b.routable(), 5)
        assert text(await task)
        assert evacuated(b) == 0


async def test_what_was_not_answered_yet_leaves_and_begins_elsewhere() -> None:
    """Streams of every class at once; whole answers when their replica is about to go."""
    async with bench(evacuation_tick_s=0.02, evacuation_margin_s=0.2) as b:
        await b.tier("demo", interruption={"continuation": "off"})
        doomed = await b.replica()
        other = await b.replica()
        doomed.sim.faults.plan = Fault(mode="hang_headers")
        async with b.http() as http:
            with b.preferring(doomed):
                streamed = asyncio.create_task(stream(http, CHAT, chat(max_tokens=20)))
                whole = asyncio.create_task(post(http, CHAT, chat(max_tokens=20, stream=False)))
                embedded = asyncio.create_task(post(http, "/tokenize", {"prompt": "a b"}))
                await eventually(lambda: on(b, doomed) == 3, 5)
            notice(b, doomed, 30)
            assert (await streamed).done == 1
            assert not whole.done()
            assert not embedded.done()
            notice(b, doomed, 0.1)
            assert (await whole)["choices"][0]["finish_reason"] == "length"
            assert (await embedded)["count"] > 0
        assert evacuated(b) == 3
        assert len(other.sim.requests) == 3
        assert not interruptions(b)


@pytest.mark.parametrize("more", [{"temperature": 0}, {"temperature": 0.9}])
async def test_a_response_leaves_and_goes_on_as_one(more: Json) -> None:
    async with bench(evacuation_tick_s=0.02, evacuation_margin_s=0.2) as b, b.http() as http:
        await b.tier("demo")
        doomed = await b.replica(tokens_per_s=SPEED)
        await b.replica()
        body: Json = {"model": "demo", "input": "hi", "stream": True, "max_output_tokens": 500}
        arrived: list[bytes] = []
        with b.preferring(doomed):
            task = asyncio.create_task(stream(http, "/v1/responses", body | more, arrived=arrived))
            await eventually(lambda: b"".join(arrived).count(b"output_text.delta") > 5, 5)
        notice(b, doomed, 2)
        seen = await task
        lines = seen.raw.decode().splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
        final = events[-1]["response"]
        assert final["status"] in {"completed", "incomplete"}
        assert text == final["output"][0]["content"][0]["text"]
        assert evacuated(b) == 1
        assert not interruptions(b)


async def test_a_response_that_fits_finishes_where_it_is() -> None:
    async with bench(evacuation_tick_s=0.02, evacuation_margin_s=0.2) as b, b.http() as http:
        await b.tier("demo")
        doomed = await b.replica(tokens_per_s=SPEED)
        other = await b.replica()
        body: Json = {"model": "demo", "input": "hi", "stream": True, "max_output_tokens": 40}
        arrived: list[bytes] = []
        with b.preferring(doomed):
            task = asyncio.create_task(stream(http, "/v1/responses", body, arrived=arrived))
            await eventually(lambda: b"".join(arrived).count(b"output_text.delta") > 5, 5)
        notice(b, doomed, 20)
        assert (await task).raw.count(b"event: response.completed") == 1
        assert evacuated(b) == 0
        assert not other.sim.requests


async def post(http: aiohttp.ClientSession, path: str, body: Json) -> Json:
    async with http.post(path, json={"model": "demo"} | body) as response:
        answer: Json = await response.json()
        assert response.status == 200, answer
        return answer


def interruptions(b: Bench) -> float | None:
    return b.gateway.context.metrics.registry.get_sample_value(
        "spotinference_gateway_interruptions_total", {"tier": "demo"}
    )
