"""What an engine does when it is told to stop: the reasons why routing must stop before.

Each test has an engine of its own, for none survives it.
"""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest

from tests.support.engine import MODEL, EngineClient, Json, events
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(400)

CHAT: list[Json] = [{"role": "user", "content": "Tell me about spot machines."}]
LONG: Json = {"messages": CHAT, "max_tokens": 400, "temperature": 0, "ignore_eos": True}
SILENCE_S = 10.0


async def _first_event(engine: EngineClient, response: aiohttp.ClientResponse) -> None:
    assert response.status == 200
    async for _ in events(response):
        return


async def test_draining_finishes_what_runs_and_refuses_what_is_new(draining: EngineClient) -> None:
    server = draining.server
    async with draining.open(**LONG) as response:
        await _first_event(draining, response)
        server.terminate()

        async def refuses() -> bool:
            status, answer = await draining.post(
                "/v1/chat/completions", {"model": MODEL, "messages": CHAT, "max_tokens": 2}
            )
            return (
                status == 500
                and answer["error"]["message"] == "cannot schedule new futures after shutdown"
            )

        await eventually(refuses, 20, "new requests refused with 500")
        assert (await draining.get("/health"))[0] == 200

        # A prompt of tokens needs no tokenising, so it gets past that refusal: the answer is
        # empty, and must not pass for a finished one.
        tokens: Json = {"prompt": [20, 21, 22], "max_tokens": 5}
        _, whole = await draining.post("/v1/completions", {"model": MODEL, **tokens})
        assert whole["choices"][0]["finish_reason"] == "abort"
        assert whole["usage"]["completion_tokens"] == 0
        streamed = await draining.stream(**tokens)
        assert streamed.done
        assert streamed.text == ""
        assert streamed.finish_reasons == []

        rest = [event async for event in events(response)]
        assert rest[-1] == "[DONE]"
        assert '"finish_reason":"length"' in rest[-2]
    code = await asyncio.to_thread(server.process.wait, 60)
    assert code == 0


async def test_a_stream_that_an_abrupt_shutdown_cuts_never_looks_finished(
    aborting: EngineClient,
) -> None:
    await _never_looks_finished(aborting)


async def test_a_stream_that_is_not_drained_in_time_never_looks_finished(
    hurrying: EngineClient,
) -> None:
    await _never_looks_finished(hurrying)


async def _never_looks_finished(engine: EngineClient) -> None:
    """Silence, a closed connection, or an error event and [DONE]: which is a race inside vLLM."""
    async with engine.open(**{**LONG, "max_tokens": 1900}) as response:
        await _first_event(engine, response)
        engine.server.terminate()
        rest: list[str] = []
        stream = events(response)
        with contextlib.suppress(TimeoutError, StopAsyncIteration, aiohttp.ClientError):
            while True:
                async with asyncio.timeout(SILENCE_S):
                    rest.append(await anext(stream))
    assert '"finish_reason":"' not in "".join(rest)
    if rest and rest[-1] == "[DONE]":
        assert rest[-2].startswith('{"error"')
        assert "EngineCore encountered an issue" in rest[-2]
    await asyncio.to_thread(engine.server.process.wait, 60)
