"""More answers than a gateway may give: the excess is told so at once, who runs does not notice."""

from __future__ import annotations

import asyncio

import pytest

from spotinference.gateway.connection import Connection
from tests.support.eventually import eventually
from tests.support.gateway import CHAT, bench, chat, stream


async def test_the_excess_is_refused_and_comes_back_when_there_is_room() -> None:
    async with bench(tokens_per_s=200, max_answers=2) as b, b.http() as http:
        await b.tier("demo")
        engine = await b.replica()
        running = [asyncio.create_task(stream(http, CHAT, chat(max_tokens=100))) for _ in range(2)]
        await eventually(lambda: len(engine.sim.requests) == 2, 5)
        async with http.post(CHAT, json=chat()) as refused:
            assert refused.status == 503
            assert (await refused.json())["error"]["code"] == "gateway_busy"
            assert 2 <= int(refused.headers["Retry-After"]) <= 8
            assert refused.headers["x-should-retry"] == "true"
        async with http.get("/v1/models") as response:
            assert response.status == 200
        assert len(engine.sim.requests) == 2
        assert [(await task).done for task in running] == [1, 1]
        assert (await stream(http, CHAT, chat(max_tokens=2))).done == 1


async def test_parked_requests_take_no_place_of_answers() -> None:
    async with bench(max_answers=2) as b, b.http() as http:
        await b.tier("demo")
        await b.tier("asleep")
        await b.replica()
        parked = [asyncio.create_task(stream(http, CHAT, chat(model="asleep"))) for _ in range(5)]
        await eventually(lambda: b.parked("asleep") == 5, 5)
        assert (await stream(http, CHAT, chat(max_tokens=2))).done == 1
        for task in parked:
            task.cancel()
        await asyncio.gather(*parked, return_exceptions=True)


async def test_the_excess_is_refused_without_a_task_but_never_before_its_key_and_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench(tokens_per_s=50, max_answers=1) as b, b.http() as http:
        await b.tier("demo")
        engine = await b.replica()
        running = asyncio.create_task(stream(http, CHAT, chat(max_tokens=2000)))
        await eventually(lambda: len(engine.sim.requests) == 1, 5)
        wrong = {"Authorization": "Bearer sk-spot-wrong"}
        async with http.post(CHAT, json=chat(), headers=wrong) as unknown:
            assert unknown.status == 401
        async with http.post("/v1/nothing", json=chat()) as nothing:
            assert nothing.status == 404

        async def never(_: Connection) -> None:
            await asyncio.Event().wait()

        with monkeypatch.context() as patched:
            patched.setattr(Connection, "_answer", never)
            for _ in range(3):
                async with asyncio.timeout(5), http.post(CHAT, json=chat()) as refused:
                    assert refused.status == 503
                    assert (await refused.json())["error"]["code"] == "gateway_busy"
                    assert refused.headers["x-request-id"]
        async with http.get("/v1/models") as response:  # on the same connections
            assert response.status == 200
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await eventually(lambda: not b.gateway.server._running, 5)
        assert (await stream(http, CHAT, chat(max_tokens=2))).done == 1
